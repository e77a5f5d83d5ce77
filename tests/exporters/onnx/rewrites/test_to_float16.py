"""`to_float16`: everything becomes float16, and what cannot is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import ExportError
from edgeopt.exporters.onnx.rewrites.to_float16 import to_float16

ort = pytest.importorskip("onnxruntime")


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def quantized_product(
    *, activation_scale: float = 0.02, weight_scale: float = 0.01, opset: int = 20
) -> ir.Model:
    """Return x [2, 8] -> Q/DQ -> MatMul with an int8 weight [8, 4] -> Add -> Relu -> y."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"], "q"),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["a"], "dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["b"], "w_dq", axis=1),
        helper.make_node("MatMul", ["a", "b"], ["p"], "product"),
        helper.make_node("Add", ["p", "bias"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [
            constant("s", activation_scale),
            constant("z", 0, np.int8),
            constant("w", rng.integers(-127, 128, (8, 4)), np.int8),
            constant("ws", np.full(4, weight_scale)),
            constant("wz", np.zeros(4), np.int8),
            constant("bias", rng.normal(size=4)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(model)


def graph_of(nodes: list[onnx.NodeProto], *initializers: onnx.TensorProto) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        list(initializers),
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {name: value.dtype for name, value in model.graph.initializers.items()}


def test_casts_stand_only_at_inputs_and_outputs() -> None:
    model = quantized_product()
    x = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    before = run(model, x)

    result = to_float16(model)

    assert [n.op_type for n in model.graph] == [
        "Cast", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add", "Relu",
        "Cast",
    ]  # fmt: skip
    assert (model.graph.inputs[0].name, model.graph.outputs[0].name) == ("x", "y")
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == ir.DataType.FLOAT
    kinds = types(model)
    assert {kinds[n] for n in ("s", "ws", "bias")} == {ir.DataType.FLOAT16}
    assert kinds["w"] == ir.DataType.INT8
    assert (result.tensors, result.casts, dict(result.islands)) == (3, 2, {})
    assert 0 < result.scale_change <= 2**-11
    # One code of the activation may move (0.02 * |w| up to 1.27), and sums round to 11 bits.
    np.testing.assert_allclose(run(model, x), before, atol=0.05)


def test_a_scale_below_the_normal_range_makes_its_product_an_island() -> None:
    model = quantized_product(weight_scale=1e-5)
    x = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    before = run(model, x)

    result = to_float16(model)

    assert set(result.islands) == {"w_dq", "product", "dq"}
    assert "scale ws has 1e-05" in result.islands["product"]
    kinds = types(model)
    assert kinds["ws"] == ir.DataType.FLOAT
    assert kinds["s"] == ir.DataType.FLOAT16
    assert kinds["s_float32"] == ir.DataType.FLOAT
    # Both halves of the pair multiply by the same number.
    narrow = model.graph.initializers["s"].const_value.numpy()
    wide = model.graph.initializers["s_float32"].const_value.numpy()
    assert np.float32(narrow) == wide
    assert any("stays float32" in note for note in result.notes)
    np.testing.assert_allclose(run(model, x), before, atol=5e-3)


def test_a_tiny_activation_scale_keeps_the_whole_pair_in_float32() -> None:
    model = quantized_product(activation_scale=1e-6)
    result = to_float16(model)
    assert {"q", "dq", "product"} <= set(result.islands)
    assert types(model)["s"] == ir.DataType.FLOAT
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-3.4e38, "beyond 65504"), (1e-9, "float16 changes by")],
    ids=["mask", "epsilon"],
)
def test_a_constant_that_float16_cannot_hold_is_named(value: float, words: str) -> None:
    model = graph_of([helper.make_node("Add", ["x", "c"], ["y"], "add")], constant("c", value))
    x = np.ones((1, 2, 4, 4), np.float32)
    before = run(model, x)
    result = to_float16(model)
    assert words in result.islands["add"]
    np.testing.assert_array_equal(run(model, x), before)


def test_infinity_is_no_island() -> None:
    model = graph_of([helper.make_node("Add", ["x", "c"], ["y"], "add")], constant("c", -np.inf))
    assert not to_float16(model).islands


def test_an_input_that_must_be_float32_stays_so_alone() -> None:
    model = graph_of(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize", mode="nearest")],
        constant("scales", [1.0, 1.0, 2.0, 2.0]),
    )
    result = to_float16(model)
    assert not result.islands
    assert types(model)["scales"] == ir.DataType.FLOAT
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_constant_nodes_and_cast_targets_follow() -> None:
    model = graph_of(
        [
            helper.make_node("Shape", ["x"], ["shape"], "shape"),
            helper.make_node("Cast", ["shape"], ["sizes"], "cast", to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["sizes"], ["total"], "sum"),
            helper.make_node("Constant", [], ["half"], "half", value=constant("v", 0.5)),
            helper.make_node("Mul", ["total", "half"], ["scaled"], "mul"),
            helper.make_node("Add", ["x", "scaled"], ["y"], "add"),
        ]
    )
    x = np.ones((1, 2, 4, 4), np.float32)
    before = run(model, x)
    result = to_float16(model)
    assert result.tensors == 1
    np.testing.assert_allclose(run(model, x), before, rtol=2**-10)


def test_a_second_run_changes_nothing() -> None:
    model = quantized_product()
    to_float16(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    again = to_float16(model)
    assert (again.tensors, again.casts, again.notes) == (0, 0, ())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_refuses_an_opset_without_float16_scales() -> None:
    with pytest.raises(ExportError, match="opset 19"):
        to_float16(quantized_product(opset=17))


def test_an_island_gets_a_dequantizer_of_its_own() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"], "q"),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["a"], "dq"),
        helper.make_node("DequantizeLinear", ["w1", "tiny", "z"], ["b1"], "dq1"),
        helper.make_node("DequantizeLinear", ["w2", "s2", "z"], ["b2"], "dq2"),
        helper.make_node("MatMul", ["a", "b1"], ["p1"], "small"),
        helper.make_node("MatMul", ["a", "b2"], ["p2"], "large"),
        helper.make_node("Add", ["p1", "p2"], ["y"], "add"),
    ]
    model = graph_of(
        nodes,
        constant("s", 0.02),
        constant("z", 0, np.int8),
        constant("w1", rng.integers(-127, 128, (4, 4)), np.int8),
        constant("w2", rng.integers(-127, 128, (4, 4)), np.int8),
        constant("tiny", 1e-6),
        constant("s2", 0.01),
    )
    x = rng.normal(size=(1, 2, 4, 4)).astype(np.float32)
    before = run(model, x)

    result = to_float16(model)

    assert set(result.islands) == {"dq1", "small", "dq_small"}
    by_name = {n.name: n for n in model.graph}
    assert by_name["small"].inputs[0].producer() is by_name["dq_small"]
    assert by_name["large"].inputs[0].producer() is by_name["dq"]
    np.testing.assert_allclose(run(model, x), before, atol=0.02)
