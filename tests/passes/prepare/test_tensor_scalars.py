"""Numbers as tensors: the same results, and an operand that can be quantized."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgeopt.ir import program
from tests.small_models import context, normal, run


class Apply(nn.Module):
    """Apply a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "value", "kind"),
    [
        (lambda x: x * 0.3, 0.3, "mul"),
        (lambda x: 2 * x, 2.0, "mul"),
        (lambda x: x / 8, 0.125, "mul"),
        (lambda x: x + 1.5, 1.5, "add"),
        (lambda x: torch.add(x, 1.5, alpha=2), 3.0, "add"),
        (lambda x: x - 0.5, 0.5, "sub"),
        (lambda x: 1 - x, 1.0, "sub"),
    ],
    ids=["mul", "mul from the left", "div", "add", "add with alpha", "sub", "sub from a number"],
)
def test_a_number_becomes_a_tensor(
    function: Callable[[Tensor], Tensor], value: float, kind: str
) -> None:
    x = normal(2, 3)
    module = Apply(function).eval()
    state = run(module, context(x), "capture", "tensor_scalars")
    exported = state.carrier_programs["forward"]
    (constant,) = program.tensors(exported).values()
    assert constant.shape == ()
    assert float(constant) == pytest.approx(value)
    (call,) = (n for n in exported.graph.nodes if n.op == "call_function")
    assert str(call.target) == f"aten.{kind}.Tensor"
    assert len(call.all_input_nodes) == 2
    probe = 5 * normal(2, 3, seed=3)
    # One rounding: of the reciprocal.
    torch.testing.assert_close(
        program.run(exported, (probe,), {}), module(probe), rtol=2.0**-22, atol=0
    )
    (change,) = state.history[-1].changes.values()
    assert change.endswith("as a tensor")


def test_integer_arithmetic_stays_as_it_is() -> None:
    x = torch.arange(6).reshape(2, 3)
    state = run(Apply(lambda x: x * 2 + 1).eval(), context(x), "capture", "tensor_scalars")
    assert state.history[-1].changes == {}
    assert state.history[-1].skipped == {}


def test_a_division_that_rounds_is_skipped_with_its_reason() -> None:
    x = normal(2, 3)
    module = Apply(lambda x: torch.div(x, 2, rounding_mode="floor")).eval()
    state = run(module, context(x), "capture", "tensor_scalars")
    assert list(state.history[-1].skipped.values()) == ["rounds to floor"]
