"""Legalizations change how codes are written, and no real value by a single bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeopt.errors import PipelineError, PreconditionError
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.reading import quant_nodes
from tests.small_models import QUANTIZE as TO_QUANTIZED
from tests.small_models import TENSORRT, X86, Block, SmallCNN, context, go_on, normal, run, seeded

EXAMPLES = {SmallCNN: normal(4, 3, 8, 8), Block: normal(2, 4, 16)}


@pytest.fixture(scope="module", params=[SmallCNN, Block], ids=["cnn", "block"])
def affine(request: pytest.FixtureRequest) -> tuple[ModelState, Tensor]:
    """Return a model quantized by ONNX Runtime's rules."""
    x = EXAMPLES[request.param]
    return run(seeded(request.param), context(x), *TO_QUANTIZED), x


@pytest.fixture(scope="module", params=[SmallCNN, Block], ids=["cnn", "block"])
def symmetric(request: pytest.FixtureRequest) -> tuple[ModelState, Tensor]:
    """Return a model quantized by TensorRT's rules."""
    x = EXAMPLES[request.param]
    return run(seeded(request.param), context(x, rules=TENSORRT), *TO_QUANTIZED), x


def outputs(state: ModelState, x: Tensor) -> Tensor:
    return program.run(state.carrier_programs["forward"], (x,), {})


def activation_types(state: ModelState) -> set[str]:
    exported = state.carrier_programs["forward"]
    names = program.tensor_names(exported)
    return {q.codes_dtype for q in quant_nodes(exported) if q.node.args[0].name not in names}


def test_activations_become_unsigned_and_outputs_stay_to_the_bit(
    affine: tuple[ModelState, Tensor],
) -> None:
    state, x = affine
    after = go_on(state, context(x), "unsigned_activations")
    assert activation_types(state) == {"int8"}
    assert activation_types(after) == {"uint8"}
    for probe in (x, 3 * x, normal(*x.shape, seed=9)):  # also values that saturate
        assert torch.equal(outputs(after, probe), outputs(state, probe))
    record = after.history[-1]
    assert record.drift_db == float("inf")
    count = len([a for a in record.changes if "/q.out" in a])
    assert count == len(record.changes) > 3


def test_zero_points_and_bounds_move_by_128_and_weights_stay(
    affine: tuple[ModelState, Tensor],
) -> None:
    state, x = affine
    after = go_on(state, context(x), "unsigned_activations")
    before_table = program.tensors(state.carrier_programs["forward"])
    table = program.tensors(after.carrier_programs["forward"])
    for name, value in before_table.items():
        if name.endswith("_out_zero_point"):
            assert table[name].dtype == torch.uint8
            assert int(table[name]) == int(value) + 128
        else:
            assert torch.equal(table[name], value)
            assert table[name].dtype == value.dtype
    for q in quant_nodes(after.carrier_programs["forward"]):
        if q.node.target is QUANTIZE:
            assert (q.qmin, q.qmax) == (0, 255)


def test_biases_become_int32_codes_and_outputs_stay_to_the_bit(
    affine: tuple[ModelState, Tensor],
) -> None:
    state, x = affine
    after = go_on(state, context(x), "integer_bias")
    for probe in (x, 3 * x):
        assert torch.equal(outputs(after, probe), outputs(state, probe))
    exported = after.carrier_programs["forward"]
    table = program.tensors(exported)
    codes = {
        name: t for name, t in table.items() if name.endswith(".bias") and not t.is_floating_point()
    }
    linears = [
        name
        for name in program.tensors(state.carrier_programs["forward"])
        if name.endswith(".bias") and not name.startswith("norm")
    ]
    assert set(codes) == set(linears)
    for name, value in codes.items():
        assert value.dtype == torch.int32
        assert torch.equal(table[f"{name}_zero_point"], torch.zeros_like(value))
        real = value.float() * table[f"{name}_scale"]
        assert torch.equal(real, program.tensors(state.carrier_programs["forward"])[name])


@pytest.mark.parametrize(
    "order", [("unsigned_activations", "integer_bias"), ("integer_bias", "unsigned_activations")]
)
def test_both_together_keep_every_bit_in_either_order(
    order: tuple[str, str], affine: tuple[ModelState, Tensor]
) -> None:
    state, x = affine
    after = go_on(state, context(x), *order)
    assert torch.equal(outputs(after, x), outputs(state, x))
    assert len(after.contracts) == len(state.contracts)


@pytest.mark.parametrize("name", ["unsigned_activations", "integer_bias"])
def test_a_second_time_changes_nothing(name: str, affine: tuple[ModelState, Tensor]) -> None:
    state, x = affine
    once = go_on(state, context(x), name)
    twice = go_on(once, context(x), name)
    assert twice.history[-1].changes == {}
    assert str(twice.carrier_programs["forward"].graph) == str(
        once.carrier_programs["forward"].graph
    )


def test_a_symmetric_plan_is_what_tensorrt_takes_already(
    symmetric: tuple[ModelState, Tensor],
) -> None:
    state, x = symmetric
    after = go_on(state, context(x, rules=TENSORRT), "symmetric_activations")
    record = after.history[-1]
    assert record.changes == {}
    assert set(record.skipped.values()) == {"is int8 with zero point 0 already"}
    assert after.carrier_programs["forward"] is state.carrier_programs["forward"]


def test_unsigned_codes_and_integer_biases_are_undone_to_the_bit(
    symmetric: tuple[ModelState, Tensor],
) -> None:
    state, x = symmetric
    ctx = context(x, rules=TENSORRT)
    there = go_on(state, ctx, "unsigned_activations", "integer_bias")
    back = go_on(there, ctx, "symmetric_activations")
    assert torch.equal(outputs(back, x), outputs(state, x))
    was = program.tensors(state.carrier_programs["forward"])
    now = program.tensors(back.carrier_programs["forward"])
    assert set(now) == set(was)
    for name, value in was.items():
        assert torch.equal(now[name], value), name
        assert now[name].dtype == value.dtype
    assert [n for n in back.history[-1].changes if n.endswith("linear#0")]


def test_an_affine_plan_is_refused_with_the_remedy(affine: tuple[ModelState, Tensor]) -> None:
    state, x = affine
    with pytest.raises(PreconditionError, match=r"has an affine zero point; re-plan for TensorRT"):
        go_on(state, context(x), "symmetric_activations")


@pytest.mark.parametrize("name", ["unsigned_activations", "integer_bias", "symmetric_activations"])
def test_a_graph_that_is_not_quantized_is_refused(name: str) -> None:
    x = EXAMPLES[SmallCNN]
    trunk = run(seeded(SmallCNN), context(x), "capture")
    with pytest.raises(
        PipelineError, match=f"{name} needs a QUANTIZED graph, but the graph is FLOAT"
    ):
        go_on(trunk, context(x), name)


def test_a_bias_that_two_calls_share_is_written_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    x = normal(3, 4)
    state = run(seeded(Twice), context(x), *TO_QUANTIZED)
    after = go_on(state, context(x), "integer_bias")
    assert torch.equal(outputs(after, x), outputs(state, x))
    exported = after.carrier_programs["forward"]
    biases = [n for n in exported.graph.nodes if n.target is DEQUANTIZE and n.args[5] == "int32"]
    assert len(biases) == 2
    assert len({n.args[0] for n in biases}) == 1


def test_the_rules_name_legalizations_that_exist() -> None:
    from edgeopt.devices.rules import load_rules
    from edgeopt.passes import by_name

    for rules in (X86, TENSORRT):
        for name in load_rules(rules).legalize:
            assert by_name(name).name == name
