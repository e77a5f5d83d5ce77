"""Legalizations for Qualcomm's NPU: implied activations, signed second operands."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.numerics.snr import snr_db
from edgeopt.passes.quantize.plan import PlanConfig, PlanQuantization
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.reading import quant_nodes
from tests.small_models import X86, SmallCNN, context, go_on, normal, run, seeded


class Clamped(nn.Module):
    """A linear and a clamp."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.activation = activation
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.fc(x)))


class Product(nn.Module):
    """A product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) @ self.b(x).transpose(-1, -2)


def quantized(module: nn.Module, x: Tensor, rules: str = "qnn", bits: int = 0) -> ModelState:
    plan = PlanQuantization(PlanConfig(activation_bits=bits))
    ctx = context(x, rules=rules)
    return run(module, ctx, "capture", plan, "calibrate", "quantize")


def outputs(state: ModelState, x: Tensor) -> Tensor:
    return program.run(state.carrier_programs["forward"], (x,), {})


def operators(state: ModelState) -> list[str]:
    graph = state.carrier_programs["forward"].graph
    return [operator_name(n) for n in graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("activation", "scale"),
    [(nn.ReLU(), 1.0), (nn.ReLU6(), 1.0), (nn.ReLU6(), 30.0), (nn.Hardtanh(0.0, 1.0), 9.0)],
    ids=["relu", "relu6, never full", "relu6", "hardtanh"],
)
@pytest.mark.parametrize("rules", ["qnn", X86])
def test_an_activation_that_the_codes_imply_goes_and_no_bit_changes(
    activation: nn.Module, scale: float, rules: str
) -> None:
    torch.manual_seed(0)
    module, x = Clamped(activation).eval(), scale * normal(16, 8)
    state = quantized(module, x, rules)
    after = go_on(state, context(x, rules=rules), "drop_implied_activations")
    assert not {"relu", "relu6", "hardtanh"} & set(operators(after))
    assert len(operators(after)) == len(operators(state)) - 1
    for probe in (x, 100 * x, -x):
        assert torch.equal(outputs(after, probe), outputs(state, probe))
    (change,) = after.history[-1].changes.items()
    assert change == (f"activation:{operator_name_of(state)}#0", "the codes behind it end where "
                      "it does")  # fmt: skip
    again = go_on(after, context(x, rules=rules), "drop_implied_activations")
    assert again.history[-1].changes == {}


def operator_name_of(state: ModelState) -> str:
    (found,) = {"relu", "relu6", "hardtanh"} & set(operators(state))
    return found


def test_a_clamp_inside_the_codes_stays_with_its_reason() -> None:
    class Twice(nn.Module):
        """The sum shares no range with the clamp: its codes reach below 0."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y + y.clamp(-0.1, 0.1)

    x = normal(16, 8)
    state = quantized(Twice().eval(), x)
    after = go_on(state, context(x, rules="qnn"), "drop_implied_activations")
    # Its own output range is [-0.1, 0.1], so it is implied there; the linear's codes are others.
    assert torch.equal(outputs(after, x), outputs(state, x))
    assert set(after.history[-1].changes) | set(after.history[-1].skipped) == {":clamp#0"}


def test_a_symmetric_plan_keeps_its_relu() -> None:
    x = normal(4, 3, 8, 8)
    state = quantized(seeded(SmallCNN), x, "tensorrt")
    after = go_on(state, context(x, rules="tensorrt"), "drop_implied_activations")
    assert operators(after).count("relu") == operators(state).count("relu") > 0
    assert set(after.history[-1].skipped.values()) <= {
        "the codes reach below it",
        "something that reads floats reads it",
    }


@settings(deadline=None, max_examples=60)
@given(
    scale=st.floats(2.0**-13, 1.0, width=32),
    zero=st.integers(0, 255),
    ends=st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)),
)
def test_implied_means_equal_codes_for_every_input(
    scale: float, zero: int, ends: tuple[float, float]
) -> None:
    from edgeopt.ir.dialect import quantize
    from edgeopt.passes.legalize.drop_implied_activations import _needed
    from edgeopt.quant.reading import QuantNode
    from edgeopt.quant.spec import Affine

    low, high = sorted(ends)
    affine = Affine(torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8))
    graph = torch.fx.Graph()
    from edgeopt.ir.dialect import QUANTIZE

    node = graph.call_function(QUANTIZE, ())
    reader = QuantNode(node, affine, "uint8", 0, 255)
    values = torch.linspace(-300, 300, 4001) * scale

    def codes(x: Tensor) -> Tensor:
        return quantize(x, affine.scale, affine.zero_point, None, None, "uint8", 0, 255)

    same = torch.equal(codes(values.clamp(low, high)), codes(values))
    assert (_needed([reader], (low, high)) == "") == same


def test_the_second_operand_of_a_wide_product_becomes_signed() -> None:
    torch.manual_seed(0)
    module, x = Product().eval(), normal(2, 4, 8)
    state = quantized(module, x, bits=16)
    after = go_on(state, context(x, rules="qnn"), "signed_second_operands")
    assert list(after.history[-1].changes) == [":matmul#0"]
    exported = after.carrier_programs["forward"]
    (product,) = (n for n in exported.graph.nodes if operator_name(n) == "matmul")
    found = {q.node: q for q in quant_nodes(exported)}
    first, second = (found[argument] for argument in product.args)
    assert first.codes_dtype == "uint16"
    assert (second.codes_dtype, int(second.params.zero_point)) == ("int16", 0)
    # Half a step of 16 bits: 6.02 * 16 + 1.76 dB below full scale, full scale being 10 dB above
    # the values' own power.
    assert snr_db([outputs(state, x)], [outputs(after, x)]) > 75
    # No value that the old codes express is cut off by the new ones.
    old = next(q for q in found.values() if q.node.args[0] is second.node.args[0].args[0].args[0])
    scale, zero = float(old.params.scale), int(old.params.zero_point)
    reach = 32767 * float(second.params.scale)
    assert reach * (1 + 1e-6) >= scale * max(zero, 65535 - zero)


def test_8_bit_products_and_products_by_weights_stay() -> None:
    x = normal(2, 4, 8)
    narrow = go_on(quantized(Product().eval(), x), context(x, rules="qnn"),
                   "signed_second_operands")  # fmt: skip
    assert narrow.history[-1].changes == {}
    wide = quantized(Clamped(nn.ReLU()).eval(), x, bits=16)
    wide = go_on(wide, context(x, rules="qnn"), "signed_second_operands")
    assert wide.history[-1].changes == {}
