"""Selections and squeezes as slices and views: the same tensors to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from tests.small_models import context, normal, run


class Pick(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * 2


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "select": (lambda x: x[:, 2], {"slice", "reshape"}),
    "select from the end": (lambda x: x[..., -1], {"slice", "reshape"}),
    "squeeze": (lambda x: x[:, :1].squeeze(1), {"slice", "reshape"}),
    "squeeze of several": (lambda x: x[:, :1, :1].squeeze((1, 2)), {"slice", "reshape"}),
    "unsqueeze": (lambda x: x.unsqueeze(1), {"reshape"}),
    "unsqueeze at the end": (lambda x: x.unsqueeze(-1), {"reshape"}),
    "class token": (lambda x: torch.cat([x[:, 0], x[:, 1]], 1), {"slice", "reshape", "cat"}),
}


@pytest.mark.parametrize("form", FORMS, ids=list(FORMS))
def test_slices_and_views_give_the_same_to_the_bit(form: str) -> None:
    function, wanted = FORMS[form]
    x = normal(2, 6, 5)
    state = run(Pick(function).eval(), context(x), "capture", "slices_and_views")
    exported = state.carrier_programs["forward"]
    names = {operator_name(n) for n in exported.graph.nodes if n.op == "call_function"}
    assert names == wanted | {"mul"}
    for probe in (x, normal(5, 6, 5, seed=8)):  # another batch too
        assert torch.equal(program.run(exported, (probe,), {}), function(probe) * 2)
    assert state.history[-1].skipped == {}


def test_a_selection_of_a_sample_stays_and_says_why() -> None:
    state = run(
        Pick(lambda x: x[0] + x).eval(), context(normal(2, 6, 5)), "capture", "slices_and_views"
    )
    (words,) = state.history[-1].skipped.values()
    assert words == "the dimension that it cuts is dynamic"
    assert state.history[-1].changes == {}
