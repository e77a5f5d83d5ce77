"""Splits as slices: the same tensors, and one value each for codes to pass through."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from tests.small_models import context, normal, run


class Split(nn.Module):
    """Use some parts of a split, weighted by their place."""

    def __init__(self, split: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        first, *_, last = self.split(x)
        return first.sum() + 3 * last.sum() + last * 2


FORMS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "chunk": lambda x: x.chunk(3, -1),
    "uneven chunk": lambda x: x.chunk(4, dim=1),
    "split": lambda x: x.split(4, 2),
    "split of sizes": lambda x: x.split([1, 5], dim=1),
    "split of the first axis": lambda x: torch.split(x, 1),
    "unbind": lambda x: x.unbind(1),
    "unbind of the first axis": lambda x: torch.unbind(x),
}


@pytest.mark.parametrize("form", FORMS, ids=list(FORMS))
def test_slices_give_the_parts_to_the_bit(form: str) -> None:
    module = Split(FORMS[form]).eval()
    x = normal(2, 6, 12)
    state = run(module, context(x), "capture", "slice_splits")
    exported = state.carrier_programs["forward"]
    names = [operator_name(n) for n in exported.graph.nodes if n.op == "call_function"]
    assert operator.getitem not in [n.target for n in exported.graph.nodes]
    assert names.count("select" if "unbind" in form else "slice") == 2
    assert not {"chunk", "split", "split_with_sizes", "unbind"} & set(names)
    probe = normal(2, 6, 12, seed=4)
    assert torch.equal(program.run(exported, (probe,), {}), module(probe))
    (change,) = state.history[-1].changes.values()
    assert change == "2 slices"


def test_a_graph_without_splits_is_left_as_it_is() -> None:
    state = run(nn.Linear(4, 4).eval(), context(normal(2, 4)), "capture", "slice_splits")
    assert state.history[-1].changes == {}
