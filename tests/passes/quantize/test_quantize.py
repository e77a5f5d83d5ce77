"""`quantize` writes the plan into the graph: codes, parameters, and biases on their grid."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.contracts.quantized import Quantized
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.numerics.snr import snr_db
from edgeopt.passes.quantize.calibrate import Calibrate, CalibrateConfig
from edgeopt.passes.quantize.plan import PlanConfig, PlanQuantization
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.operands import weighted_operands
from edgeopt.quant.ranges import (
    BIAS_CODE_LIMIT,
    affine_from_range,
    on_grid,
    raise_for_bias,
    weight_scales,
)
from edgeopt.quant.reading import quant_nodes
from edgeopt.quant.spec import Granularity, TensorSpec
from tests.small_models import QUANTIZE as TO_QUANTIZED
from tests.small_models import (
    TENSORRT,
    X86,
    Block,
    SmallCNN,
    TiedHead,
    batches,
    context,
    go_on,
    normal,
    run,
    seeded,
)

CNN_EXAMPLE = normal(4, 3, 8, 8)


def quantized(module: nn.Module, *args: Tensor, rules: str = X86, **changes: Any) -> ModelState:
    return run(module, context(*args, rules=rules, **changes), *TO_QUANTIZED)


def forward(state: ModelState) -> ExportedProgram:
    return state.carrier_programs["forward"]


def addresses(exported: ExportedProgram, target: Any) -> list[str]:
    return [s.address for n, s in edges.sites(exported.graph) if n.target is target]


@pytest.fixture(scope="module")
def cnn() -> ModelState:
    return quantized(seeded(SmallCNN), CNN_EXAMPLE)


# --- structure -----------------------------------------------------------------------------------


def test_each_value_is_quantized_once_and_each_reader_dequantizes_for_itself(
    cnn: ModelState,
) -> None:
    assert addresses(forward(cnn), QUANTIZE) == [
        "x:input/q.out#0",
        "relu:relu/q.out#0",
        "relu:relu/q.out#1",
        "expand:conv2d/q.out#0",
        ":add/q.out#0",
        "pool:max_pool2d/q.out#0",
        "gap:adaptive_avg_pool2d/q.out#0",
        ":flatten/q.out#0",
    ]
    assert sorted(addresses(forward(cnn), DEQUANTIZE)) == sorted(
        [
            *(f"{name}/dq.in{i}#0" for name in ("stem:conv2d", "depthwise:conv2d") for i in (0, 1)),
            *(f"{name}/dq.in{i}#0" for name in ("expand:conv2d", "head:linear") for i in (0, 1)),
            *(f":add/dq.in{i}#0" for i in (0, 1)),
            "pool:max_pool2d/dq.in0#0",
            "gap:adaptive_avg_pool2d/dq.in0#0",
            ":flatten/dq.in0#0",
        ]
    )


def test_weights_become_codes_under_their_own_name(cnn: ModelState) -> None:
    table = program.tensors(forward(cnn))
    float_weight = seeded(SmallCNN).stem.weight.detach()
    codes, scale = table["stem.weight"], table["stem.weight_scale"]
    assert codes.dtype == torch.int8
    assert scale.shape == (8,)
    assert torch.equal(table["stem.weight_zero_point"], torch.zeros(8, dtype=torch.int8))
    torch.testing.assert_close(
        scale, float_weight.flatten(1).abs().amax(1) / 127, rtol=1e-6, atol=0
    )
    want = torch.round(float_weight / scale.reshape(-1, 1, 1, 1)).clamp(-127, 127)
    assert torch.equal(codes, want.to(torch.int8))


def test_the_parameters_of_an_activation_are_those_of_its_range(cnn: ModelState) -> None:
    table = program.tensors(forward(cnn))
    low, high = float(CNN_EXAMPLE.min()), float(CNN_EXAMPLE.max())
    scale = np.float32((high - low) / 255)
    assert float(table["x.input_0_out_scale"]) == scale
    assert int(table["x.input_0_out_zero_point"]) == round(-128 - low / float(scale))
    # behind ReLU the range starts at 0: zero is the lowest code
    assert int(table["relu.relu_0_out_zero_point"]) == -128


def test_every_quantized_edge_is_under_contract(cnn: ModelState) -> None:
    contracts = [c for c in cnn.contracts if isinstance(c, Quantized)]
    assert {c.fqn for c in contracts if c.fqn} == {
        f"{name}.weight" for name in ("stem", "depthwise", "expand", "head")
    }
    assert len(contracts) == 12
    assert len(cnn.history[-1].changes) == 12


@pytest.mark.parametrize("rules", [X86, TENSORRT])
@pytest.mark.parametrize("kind", [SmallCNN, Block])
def test_outputs_stay_close_to_the_float_model(rules: str, kind: type[nn.Module]) -> None:
    x = CNN_EXAMPLE if kind is SmallCNN else normal(2, 4, 16)
    state = quantized(seeded(kind), x, rules=rules)
    drift = state.history[-1].drift_db
    assert drift is not None
    # Rounding a range of +-A to 255 steps d = 2 A / 255 adds noise of d^2 / 12. Normal values reach
    # A = 4 standard deviations here, so a quantizer has 10 log10(12 * 255^2 / 8^2) = 40.9 dB. At
    # most 13 of them add up their noise (weights, whose A is under 2, are better):
    # 40.9 - 10 log10(13) = 29.7 dB, if no layer amplifies it.
    assert 29.7 < drift < float("inf")


# --- the bias ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [X86, TENSORRT])
def test_biases_lie_on_their_grid_and_move_by_half_a_step_at_most(rules: str) -> None:
    state = quantized(seeded(SmallCNN), CNN_EXAMPLE, rules=rules)
    exact = dict(seeded(SmallCNN).named_parameters())
    found = 0
    for node, activation, weight, _, bias in weighted_operands(forward(state)):
        fqn = f"{edges.require_site(node).fqn}.bias"
        if bias is None:
            continue
        grid = (activation.params.scale * weight.params.scale).double()
        moved = (bias.double() - exact[fqn].double()).abs()
        # half a step, and float32 rounding of the bias itself
        assert bool((moved <= 0.5 * grid + 2.0**-24 * bias.abs()).all())
        codes = bias.double() / grid
        # float32 holds code * grid to 2^-24 of its size
        assert float((codes - codes.round()).abs().max()) <= 2.0**-22 * float(codes.abs().max())
        found += 1
    assert found == 3


def test_a_convolution_without_a_bias_gets_none(cnn: ModelState) -> None:
    (depthwise,) = [
        n for n, s in edges.sites(forward(cnn).graph) if s.address == "depthwise:conv2d#0"
    ]
    assert depthwise.args[2] is None
    assert "depthwise.bias" not in program.tensors(forward(cnn))


def test_a_bias_past_2_to_the_24_codes_raises_the_channels_scale_and_says_so() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
        module[0].bias.copy_(torch.tensor([1e-5, 30.0, -1e-5]))
    x = normal(8, 4)
    state = quantized(module, x)
    table = program.tensors(forward(state))
    natural = module[0].weight.detach().abs().amax(1) / 127
    scale = table["0.weight_scale"]
    assert torch.equal(scale[[0, 2]], natural[[0, 2]])
    assert float(scale[1]) > 10 * float(natural[1])
    assert state.history[-1].notes == (
        "0.weight: weight scale raised in 1 channels so that the bias fits 2^24",
    )
    codes = 30.0 / (float(scale[1]) * float(table["input.input_0_out_scale"]))
    assert 0.999 * BIAS_CODE_LIMIT < codes <= BIAS_CODE_LIMIT
    # 24 bits are as many as a float32 has
    assert float(table["0.bias"][1]) == pytest.approx(30.0, rel=2.0**-24)


# --- channels and values that carry nothing ------------------------------------------------------


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[0].weight[1] = 0.0
        module[0].bias[1] = 0.0134
    table = program.tensors(forward(quantized(module, normal(32, 8))))
    assert torch.equal(table["0.weight"][1], torch.zeros(8, dtype=torch.int8))
    grid = float(table["0.weight_scale"][1]) * float(table["input.input_0_out_scale"])
    # as fine a grid as the other channels have
    assert float(table["0.weight_scale"][1]) == float(table["0.weight_scale"].max())
    assert abs(float(table["0.bias"][1]) - 0.0134) <= 0.5 * grid * 1.001
    assert grid < 1e-3


def test_a_layer_of_zeros_keeps_its_bias() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[2].weight.zero_()
        module[2].bias.copy_(torch.tensor([0.0134, -0.002]))
    state = quantized(module, normal(32, 8))
    want = module(normal(32, 8)).detach()
    got = program.run(forward(state), (normal(32, 8),), {})
    scale = float(program.tensors(forward(state))["1.relu_0_out_scale"])
    # half a step of the bias grid s_x * 2^-10
    torch.testing.assert_close(got, want, rtol=0, atol=0.5 * scale * 2.0**-10 * 1.001)


def test_a_value_that_is_always_zero_stays_zero() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[0].bias.fill_(-100.0)
    state = quantized(module, normal(4, 4))
    table = program.tensors(forward(state))
    assert float(table["1.relu_0_out_scale"]) == 1.0
    got = program.run(forward(state), (normal(4, 4),), {})
    # the output is the last bias, on a grid of 1.0 * s_w
    step = float(table["2.weight_scale"].max())
    torch.testing.assert_close(got, module(normal(4, 4)).detach(), rtol=0, atol=0.5 * step * 1.001)


# --- sharing -------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer called twice, on values of different size; the first passed a clamp at 6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.clamp = nn.ReLU6()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(self.clamp(self.stem(x) * 9))) * 50)


def test_calls_of_one_module_share_input_parameters_weight_and_bias() -> None:
    state = quantized(seeded(Twice), normal(4, 4, 3, 3))
    exported = forward(state)
    rows = {
        edges.require_site(node).address: (activation, weight, bias)
        for node, activation, weight, _, bias in weighted_operands(exported)
    }
    first, second = rows["layer:conv2d#0"], rows["layer:conv2d#1"]
    assert torch.equal(first[0].params.scale, second[0].params.scale)
    assert torch.equal(first[0].params.zero_point, second[0].params.zero_point)
    assert first[1].node.args[0] is second[1].node.args[0]
    assert first[2] is second[2]
    # one range holds both: up to 50, far past the clamp at 6
    assert float(first[0].params.scale) > 6 / 255


class TiedWeight(nn.Module):
    """Two linears with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_layers_with_one_weight_have_each_their_own_bias_on_one_grid() -> None:
    module = seeded(TiedWeight)
    state = quantized(module, normal(8, 8))
    table = program.tensors(forward(state))
    assert len({name for name in table if name.endswith(".weight")}) == 1
    for name in ("a", "b"):
        moved = table[f"{name}.bias"] - getattr(module, name).bias.detach()
        assert 0 < float(moved.abs().max()) < 1e-3
    drift = state.history[-1].drift_db
    assert drift is not None
    assert drift > 30  # two layers: 40.9 - 10 log10(4), and the range is shared


def test_a_tied_embedding_gives_the_rows_of_the_heads_codes() -> None:
    module, tokens = seeded(TiedHead), torch.arange(7).reshape(1, 7).repeat(2, 1)
    state = quantized(module, tokens)
    exported = forward(state)
    table = program.tensors(exported)
    codes, scale = table["head.weight"], table["head.weight_scale"]
    assert codes.dtype == torch.int8
    assert not [t for t in table.values() if t.shape == codes.shape and t.is_floating_point()]
    (embedding,) = [n for n, s in edges.sites(exported.graph) if s.address.endswith("embedding#0")]
    (head,) = [n for n, s in edges.sites(exported.graph) if s.address == "head:linear#0"]
    rows, weight = embedding.args[0], head.args[1]
    assert rows.target is weight.target is DEQUANTIZE
    assert rows.args[:3] == weight.args[:3]  # one table, one set of scales
    real = codes.float() * scale[:, None]
    step = (real - module.embedding.weight).abs() / scale[:, None]
    assert 0 < float(step.detach().max()) <= 0.5 + 1e-5
    sites = {c.sites[0] for c in state.contracts if isinstance(c, Quantized)}
    assert {"embedding:embedding#0.in0", "head:linear#0.in1"} <= sites


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), torch.relu(self.b(x) * 4)], dim=1))


def test_each_input_of_a_concat_is_dequantized() -> None:
    exported = forward(quantized(seeded(Concat), normal(2, 4, 3, 3)))
    (cat,) = [n for n, s in edges.sites(exported.graph) if s.address == ":cat#0"]
    (inputs,) = [a for a in cat.args if isinstance(a, (list, tuple))]
    codes = [node.target is DEQUANTIZE for node in inputs]
    assert codes[0]
    assert [n for n in cat.users if n.target is QUANTIZE]


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y + y)


def test_both_operands_of_a_sum_with_itself_are_dequantized() -> None:
    exported = forward(quantized(seeded(Doubled), normal(2, 4, 3, 3)))
    (add,) = [n for n, s in edges.sites(exported.graph) if s.address == ":add#0"]
    assert [a.target for a in add.args] == [DEQUANTIZE, DEQUANTIZE]


class Attention(nn.Module):
    """A packed projection that is split, and whose parts leave the model too."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y), k


@pytest.mark.parametrize("rules", [X86, TENSORRT])
def test_a_packed_projection_is_quantized_and_its_parts_stay_float(rules: str) -> None:
    state = quantized(seeded(Attention), normal(2, 4, 8), rules=rules)
    table = program.tensors(forward(state))
    assert table["qkv.weight"].dtype == table["proj.weight"].dtype == torch.int8
    assert table["qkv.weight_scale"].shape == (24,)
    assert not [a for a in addresses(forward(state), QUANTIZE) if a.startswith("qkv:linear")]
    drift = state.history[-1].drift_db
    assert drift is not None
    assert drift > 30  # 40.9 dB a quantizer, at most six in a row


# --- options that reach here ---------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 7])
def test_narrower_codes_stay_in_their_range_and_under_contract(bits: int) -> None:
    ctx = context(CNN_EXAMPLE)
    plan = PlanQuantization(PlanConfig(weight_bits=bits))
    state = run(seeded(SmallCNN), ctx, "capture", plan, "calibrate", "quantize")
    codes = program.tensors(forward(state))["expand.weight"]
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1


def test_a_percentile_clips_the_codes() -> None:
    x = normal(64, 4)
    ctx = context(x)
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4)))
    clip = Calibrate(CalibrateConfig("percentile", 90.0))
    whole = quantized(module, x)
    clipped = run(module, ctx, "capture", "plan", clip, "quantize")
    scales = [
        float(program.tensors(forward(s))["input.input_0_out_scale"]) for s in (whole, clipped)
    ]
    low, high = np.percentile(x.numpy(), [5.0, 95.0])
    # within a bin of 2048 at each end, and the gap between two of 256 samples
    assert scales[1] * 255 == pytest.approx(high - low, abs=0.1)
    assert scales[1] < 0.8 * scales[0]


def test_the_same_inputs_give_the_same_graph_and_numbers() -> None:
    first, second = (quantized(seeded(SmallCNN), CNN_EXAMPLE) for _ in range(2))
    assert str(forward(first).graph) == str(forward(second).graph)
    for name, value in program.tensors(forward(first)).items():
        assert torch.equal(value, program.tensors(forward(second))[name])


def test_the_trunk_that_a_branch_starts_from_is_not_touched() -> None:
    ctx = context(CNN_EXAMPLE)
    trunk = run(seeded(SmallCNN), ctx, "capture")
    text, tensors = str(forward(trunk).graph), program.tensors(forward(trunk))
    copies = {name: value.clone() for name, value in tensors.items()}
    for rules in (X86, TENSORRT):
        go_on(trunk, context(CNN_EXAMPLE, rules=rules), "plan", "calibrate", "quantize")
    assert str(forward(trunk).graph) == text
    for name, value in program.tensors(forward(trunk)).items():
        assert torch.equal(value, copies[name])


def test_calibration_data_decide_the_scales_not_the_example() -> None:
    x = normal(4, 4)
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4)))
    state = quantized(module, x, calibration=batches(10 * x))
    scale = float(program.tensors(forward(state))["input.input_0_out_scale"])
    assert scale == np.float32(10 * x.max().double() - 10 * x.min().double()) / np.float32(255)


# --- the arithmetic of ranges --------------------------------------------------------------------

AFFINE, SYMMETRIC = TensorSpec(symmetric=False), TensorSpec(symmetric=True)
UNSIGNED = TensorSpec(signed=False, symmetric=True)
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=200, deadline=None)
@given(ends=st.tuples(FINITE, FINITE), spec=st.sampled_from([AFFINE, SYMMETRIC, UNSIGNED]))
def test_parameters_of_any_range_are_legal_and_hold_zero_exactly(
    ends: tuple[float, float], spec: TensorSpec
) -> None:
    low, high = min(ends), max(ends)
    found = affine_from_range(low, high, spec, None)
    scale, zero = float(found.scale), int(found.zero_point)
    assert scale >= np.finfo(np.float32).tiny
    assert spec.qmin <= zero <= spec.qmax
    if spec.symmetric:
        assert zero == (0 if spec.signed else 128)
    # both ends lie within half a step of the codes' range (and float32 rounding of the scale)
    slack = scale * (0.5 + 256 * 2.0**-23)
    assert (spec.qmax - zero) * scale >= high - slack
    assert (spec.qmin - zero) * scale <= low + slack


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-10, 0, width=32), high=st.floats(2.0**-10, 10, width=32))
def test_no_code_exceeds_the_clamp_that_a_range_stands_for(low: float, high: float) -> None:
    found = affine_from_range(low, high, AFFINE, high)
    top = np.float32(found.scale) * np.float32(AFFINE.qmax - int(found.zero_point))
    assert top <= np.float32(high)
    # and the range is not much narrower: a step less at the top, since the zero point is rounded
    assert top >= high - 1.01 * float(found.scale)


def test_a_range_past_the_clamp_ignores_it() -> None:
    # values that share the parameters pass the clamp of one of them
    scales = [affine_from_range(0.0, 50.0, AFFINE, bound).scale for bound in (None, 6.0)]
    assert torch.equal(*scales)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@settings(max_examples=50, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_weight_codes_are_legal_and_half_a_step_off_at_most(bits: int, weight: np.ndarray) -> None:
    spec = TensorSpec(bits=bits, narrow=True, granularity=Granularity.CHANNEL)
    values = torch.from_numpy(weight)
    shape = (-1, *[1] * (weight.ndim - 1))
    scale = weight_scales(values, spec).reshape(shape)
    codes = torch.round(values / scale)
    assert float(codes.abs().max()) <= spec.qmax
    error = (values.double() - codes.double() * scale.double()).abs()
    # a quotient near a tie rounds in float32: 2^-24 of at most 128 codes
    assert bool((error <= scale.double() * (0.5 + 128 * 2.0**-24)).all())


def test_scales_per_tensor_are_one_number() -> None:
    weight = normal(3, 4)
    spec = TensorSpec(narrow=True)
    assert weight_scales(weight, spec).shape == ()
    assert float(weight_scales(weight, spec)) == pytest.approx(float(weight.abs().max()) / 127)


@settings(max_examples=100, deadline=None)
@given(
    bias=hnp.arrays(np.float32, 4, elements=st.floats(-1e4, 1e4, width=32)),
    scale=hnp.arrays(np.float32, 4, elements=st.floats(2.0**-30, 1.0, width=32)),
    input_scale=st.floats(2.0**-20, 1.0, width=32),
)
def test_a_raised_scale_holds_every_bias_and_is_raised_no_further(
    bias: np.ndarray, scale: np.ndarray, input_scale: float
) -> None:
    values, before = torch.from_numpy(bias), torch.from_numpy(scale)
    after, raised = raise_for_bias(before, values, input_scale)
    codes = values.double().abs() / (after.double() * input_scale)
    assert float(codes.max()) <= BIAS_CODE_LIMIT
    for channel in range(4):
        if channel in raised:
            assert float(codes[channel]) > 0.999 * BIAS_CODE_LIMIT
        else:
            assert float(after[channel]) == float(before[channel])
    on = on_grid(values, torch.tensor(input_scale), after).double()
    grid = (torch.tensor(input_scale) * after).double()
    # half a step, and float32 rounding of the result
    assert bool(((on - values.double()).abs() <= 0.5 * grid + 2.0**-24 * values.abs()).all())


def test_quantize_nodes_read_back_what_was_written(cnn: ModelState) -> None:
    specs = {
        edges.require_site(q.node).address: (q.codes_dtype, q.qmin, q.qmax)
        for q in quant_nodes(forward(cnn))
        if q.node.target is QUANTIZE
    }
    assert specs["x:input/q.out#0"] == ("int8", -128, 127)
    assert len(specs) == 8


def test_snr_counts_noise_against_signal() -> None:
    assert snr_db([torch.ones(4)], [torch.ones(4) * 0.9]) == pytest.approx(20.0, abs=1e-5)
    assert snr_db([torch.ones(4)], [torch.ones(4)]) == float("inf")
    assert snr_db([torch.zeros(4)], [torch.ones(4)]) == float("-inf")
    infinite = torch.tensor([1.0, float("-inf"), float("nan")])
    assert snr_db([infinite], [infinite]) == float("inf")
    assert snr_db([infinite], [torch.tensor([1.0, 0.0, 0.0])]) == float("-inf")
    assert snr_db([torch.ones(1)], [torch.tensor([float("nan")])]) == float("-inf")


def test_a_state_keeps_the_plan_and_statistics_that_it_was_made_from(cnn: ModelState) -> None:
    assert cnn.plan is not None
    assert cnn.statistics is not None
    assert dataclasses.is_dataclass(cnn.plan)
    assert set(cnn.statistics.edges["forward"]) == {
        str(row.edge) for row in cnn.plan if row.role.value == "output"
    }
