"""Merged initializers come apart where their scales differ, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeopt.exporters.onnx.rewrites.own_constants import own_constants


def merged() -> onnx.ModelProto:
    """Return `y = x * c1 * c2 * c1` with codes that are one initializer, and a zero point too."""
    constants = {
        "codes": np.uint8(255), "zero": np.uint8(0),
        "half_scale": np.float32(0.5 / 255), "three_scale": np.float32(3 / 255),
    }  # fmt: skip
    dq = "DequantizeLinear"
    nodes = [
        helper.make_node(dq, ["codes", "half_scale", "zero"], ["half"]),
        helper.make_node(dq, ["codes", "three_scale", "zero"], ["three"]),
        helper.make_node(dq, ["codes", "half_scale", "zero"], ["again"]),
        helper.make_node("Mul", ["x", "half"], ["a"]),
        helper.make_node("Mul", ["a", "three"], ["b"]),
        helper.make_node("Mul", ["b", "again"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "half_scale", "codes"], ["d"]),
        helper.make_node(dq, ["d", "half_scale", "codes"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy")
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": np.array([-0.3, -0.1, 0.2], np.float32)})[0]


def test_one_copy_for_each_scale_and_the_zero_point_keeps_one_too() -> None:
    model = ir.from_proto(merged())
    # `half` and `three` are values already, so the copies keep the codes' name
    assert own_constants(model) == ("codes", "codes_1")
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    readers = {n.output[0]: n.input[0] for n in after.graph.node if n.op_type.startswith("Deq")}
    assert readers == {"half": "codes", "three": "codes_1", "again": "codes", "y": "d"}
    stored = {i.name: int(numpy_helper.to_array(i)) for i in after.graph.initializer
              if i.data_type == TensorProto.UINT8}  # fmt: skip
    assert sorted(stored.values()) == [0, 255, 255, 255]
    np.testing.assert_array_equal(run(after), run(merged()))


def test_a_second_time_nothing_is_left_to_do() -> None:
    model = ir.from_proto(merged())
    own_constants(model)
    once = ir.to_proto(model).SerializeToString()
    assert own_constants(model) == ()
    assert ir.to_proto(model).SerializeToString() == once
