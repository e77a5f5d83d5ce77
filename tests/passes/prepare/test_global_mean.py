"""Means as the one form that XNNPACK takes: the same numbers, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.pipeline.state import ModelState
from tests.small_models import context, normal, run


class Mean(nn.Module):
    """A mean with fixed options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self.args, self.options = args, options

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(*self.args, **self.options)


def rewritten(module: nn.Module, x: Tensor) -> ModelState:
    return run(module.eval(), context(x), "capture", "global_mean")


def means(state: ModelState) -> list[Any]:
    graph = state.carrier_programs["forward"].graph
    return [n for n in graph.nodes if operator_name(n) in ("mean", "adaptive_avg_pool2d")]


FORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "tokens": (Mean(1), (2, 5, 8)),
    "tokens, kept": (Mean(1, keepdim=True), (2, 5, 8)),
    "last": (Mean(-1), (2, 5, 8)),
    "all but the batch": (Mean((1, 2)), (2, 5, 8)),
    "picture": (Mean((2, 3)), (2, 5, 4, 3)),
    "channels and rows": (Mean((1, 2)), (2, 5, 4, 3)),
    "channels": (Mean((1, 2, 3)), (2, 5, 4, 3)),
    "five dimensions": (Mean((2, 3, 4)), (2, 5, 4, 3, 2)),
    "a row": (Mean(1), (2, 5)),
    "pool": (nn.AdaptiveAvgPool2d(1), (2, 5, 4, 3)),
}


@pytest.mark.parametrize("form", FORMS, ids=list(FORMS))
def test_a_mean_is_a_global_pool_with_the_same_numbers(form: str) -> None:
    module, shape = FORMS[form]
    state = rewritten(module, normal(*shape))
    (mean,) = means(state)
    assert mean.args[1:] == ([2, 3], True)
    assert mean.args[0].meta["val"].dim() == 4
    exported = state.carrier_programs["forward"]
    for probe in (normal(*shape, seed=3), normal(7, *shape[1:], seed=4)):  # another batch too
        # float32 sums of at most 60 terms in another order
        torch.testing.assert_close(
            program.run(exported, (probe,), {}), module(probe), rtol=1e-5, atol=1e-6
        )
    assert list(state.history[-1].changes.values()) == ["written as a global average pool"]


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (Mean(), (2, 5, 8), "over everything"),
        (Mean(0), (2, 5, 8), "a dimension that it averages is dynamic"),
        (Mean(1, dtype=torch.float64), (2, 5, 8), "changes the type"),
        (Mean(1), (2, 5, 4, 3), "keeps 3 dimensions"),
        (nn.AdaptiveAvgPool2d(2), (2, 5, 4, 4), "a pool to [2, 2] is no mean"),
    ],
    ids=["everything", "batch", "type", "three kept", "larger pool"],
)
def test_other_means_stay_and_say_why(
    module: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    state = rewritten(module, normal(*shape))
    assert len(means(state)) == 1
    (words,) = state.history[-1].skipped.values()
    assert reason in words
    assert state.history[-1].changes == {}


def test_it_is_idempotent() -> None:
    x = normal(2, 5, 8)
    state = run(Mean(1).eval(), context(x), "capture", "global_mean", "global_mean")
    assert state.history[-1].changes == state.history[-1].skipped == {}
    assert len(means(state)) == 1
