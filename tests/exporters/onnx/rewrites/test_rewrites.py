"""The ONNX rewrites act on their pattern, keep every output, and leave all else alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgeopt.exporters.onnx.rewrites.constants import array, attribute, only_reader, store
from edgeopt.exporters.onnx.rewrites.fold_pad import fold_pad
from edgeopt.exporters.onnx.rewrites.fold_weight_transpose import fold_weight_transpose
from edgeopt.exporters.onnx.rewrites.gather_codes import gather_codes
from edgeopt.exporters.onnx.rewrites.global_average_pool import global_average_pool

Arrays = dict[str, np.ndarray[Any, Any]]


def model(body: str, **initializers: np.ndarray[Any, Any]) -> ir.Model:
    """Return a model from ONNX text; `x` is the input, arrays are its initializers."""
    text = f'<ir_version: 10, opset_import: ["" : 20]> graph (float[1, 2, 5, 5] x) => {body}'
    parsed = onnx.parser.parse_model(text)
    for name, data in initializers.items():
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(parsed))


def run(graph: ir.Model, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Run a model without ONNX Runtime's own rewrites."""
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def operators(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


X = normal(1, 2, 5, 5)
WEIGHT = normal(3, 2, 3, 3)
SCALE, ZERO = np.float32(0.05), np.int8(-3)


def amounts(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


END_ROWS = amounts(0, 0, 0, 0, 0, 0, 1, 1)  # one more row and column at the end

# --- fold_pad ------------------------------------------------------------------------------------

FLOAT_PAD = """(float[1, 3, n, m] y) {
    padded = Pad(x, amounts)
    y = Conv<pads = [1, 1, 0, 0], strides = [2, 2]>(padded, w)
}"""
QUANTIZED_PAD = """(float[1, 3, n, m] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    padded = Pad(d, amounts)
    q2 = QuantizeLinear(padded, s2, z)
    d2 = DequantizeLinear(q2, s2, z)
    y = Conv<strides = [2, 2]>(d2, w)
}"""
INPUT_PAD = """(float[1, 3, n, m] y) {
    padded = Pad(x, amounts)
    q = QuantizeLinear(padded, s, z)
    d = DequantizeLinear(q, s, z)
    y = Conv<strides = [2, 2]>(d, w)
}"""
QUANTIZED = {"s": np.array(SCALE), "s2": np.array(SCALE), "z": np.array(ZERO)}


@pytest.mark.parametrize(
    ("body", "extra", "left", "pads"),
    [
        (FLOAT_PAD, {}, {"Conv": 1}, [1, 1, 1, 1]),
        (
            QUANTIZED_PAD,
            QUANTIZED,
            {"QuantizeLinear": 1, "DequantizeLinear": 1, "Conv": 1},
            [0, 0, 1, 1],
        ),
        (
            INPUT_PAD,
            QUANTIZED,
            {"QuantizeLinear": 1, "DequantizeLinear": 1, "Conv": 1},
            [0, 0, 1, 1],
        ),
    ],
    ids=["float", "between codes", "before the first codes"],
)
def test_a_border_of_zeros_becomes_pads_of_the_convolution(
    body: str, extra: Arrays, left: dict[str, int], pads: list[int]
) -> None:
    graph = model(body, amounts=END_ROWS, w=WEIGHT, **extra)
    before = run(graph, X)
    assert len(fold_pad(graph)) == 1
    after = run(graph, X)
    assert operators(graph) == left
    (conv,) = [node for node in graph.graph if node.op_type == "Conv"]
    assert list(attribute(conv, "pads", [])) == pads
    # the same products in the same order: adding zeros changes no float
    np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-6)


def test_a_folded_border_answers_with_the_codes_that_stand_for_its_own() -> None:
    graph = model(QUANTIZED_PAD, amounts=END_ROWS, w=WEIGHT, **QUANTIZED)
    ((gone, codes),) = fold_pad(graph).items()
    assert gone.op_type == "QuantizeLinear"
    assert codes is not None
    assert codes.name == "q"


REFUSED_PADS = {
    "a border that is not zero": (
        FLOAT_PAD.replace("Pad(x, amounts)", "Pad(x, amounts, one)"),
        {"one": np.array(1, np.float32)},
    ),
    "a reflected border": (FLOAT_PAD.replace("Pad(", 'Pad<mode = "reflect">('), {}),
    "channels padded": (
        FLOAT_PAD,
        {"amounts": amounts(0, 0, 0, 0, 0, 1, 0, 0), "w": normal(3, 3, 3, 3)},
    ),
    "a border cut off": (FLOAT_PAD, {"amounts": amounts(0, 0, 0, 0, 0, 0, -1, -1)}),
    "a border that others read": (
        FLOAT_PAD.replace(
            "(float[1, 3, n, m] y)", "(float[1, 3, n, m] y, float[1, 2, 6, 6] p)"
        ).replace("y = Conv", "p = Neg(padded)\n    y = Conv"),
        {},
    ),
    "a border that leaves the model": (
        FLOAT_PAD.replace(
            "(float[1, 3, n, m] y)", "(float[1, 3, n, m] y, float[1, 2, 6, 6] padded)"
        ),
        {},
    ),
    "codes of another scale behind it": (
        QUANTIZED_PAD,
        {**QUANTIZED, "s2": np.array(SCALE * 2)},
    ),
    "another reader": (
        FLOAT_PAD.replace(
            "y = Conv<pads = [1, 1, 0, 0], strides = [2, 2]>(padded, w)",
            "y = AveragePool<kernel_shape = [2, 2]>(padded)",
        ).replace("float[1, 3, n, m]", "float[1, 2, n, m]"),
        {},
    ),
}


@pytest.mark.parametrize("case", REFUSED_PADS)
def test_every_other_border_stays(case: str) -> None:
    body, extra = REFUSED_PADS[case]
    initializers = {"amounts": END_ROWS, "w": WEIGHT, **extra}
    graph = model(body, **initializers)
    before = run(graph, X)
    assert fold_pad(graph) == {}
    assert operators(graph)["Pad"] == 1
    for was, now in zip(before, run(graph, X), strict=True):
        np.testing.assert_array_equal(was, now)


# --- fold_weight_transpose -----------------------------------------------------------------------

LINEAR = """(float[1, 2, 5, 3] y) {
    d = DequantizeLinear<axis = 0>(codes, s, z)
    t = Transpose<perm = [1, 0]>(d)
    y = MatMul(x, t)
}"""
CODES = np.arange(-7, 8, dtype=np.int8).reshape(3, 5)
PER_CHANNEL = {"s": np.array([0.1, 0.2, 0.4], np.float32), "z": np.zeros(3, np.int8)}
PER_TENSOR = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}


@pytest.mark.parametrize("scales", [PER_CHANNEL, PER_TENSOR], ids=["channel", "tensor"])
def test_codes_are_stored_in_the_layout_that_the_product_reads(scales: Arrays) -> None:
    graph = model(LINEAR, codes=CODES, **scales)
    before = run(graph, X)
    assert fold_weight_transpose(graph) == {"codes": "transpose"}
    assert operators(graph) == {"DequantizeLinear": 1, "MatMul": 1}
    np.testing.assert_array_equal(array(graph.graph.initializers["codes"]), CODES.T)
    (dequantize,) = [node for node in graph.graph if node.op_type == "DequantizeLinear"]
    assert attribute(dequantize, "axis", None) == (1 if scales is PER_CHANNEL else 0)
    np.testing.assert_array_equal(run(graph, X)[0], before[0])


REFUSED_TRANSPOSES = {
    "codes that another layer reads as they are": LINEAR.replace(
        "(float[1, 2, 5, 3] y)", "(float[1, 2, 5, 3] y, float[3, 5] other)"
    ).replace("y = MatMul", "other = DequantizeLinear<axis = 0>(codes, s, z)\n    y = MatMul"),
    "a weight that is read both ways": LINEAR.replace(
        "(float[1, 2, 5, 3] y)", "(float[1, 2, 5, 3] y, float[3, 5] d)"
    ),
}


@pytest.mark.parametrize("case", REFUSED_TRANSPOSES)
def test_a_transpose_stays_where_the_codes_have_another_reader(case: str) -> None:
    graph = model(REFUSED_TRANSPOSES[case], codes=CODES, **PER_CHANNEL)
    before = run(graph, X)
    assert fold_weight_transpose(graph) == {}
    np.testing.assert_array_equal(array(graph.graph.initializers["codes"]), CODES)
    for was, now in zip(before, run(graph, X), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_float_weight_keeps_its_transpose() -> None:
    body = "(float[1, 2, 5, 3] y) { t = Transpose<perm = [1, 0]>(w)\n y = MatMul(x, t) }"
    graph = model(body, w=normal(3, 5))
    assert fold_weight_transpose(graph) == {}
    assert operators(graph) == {"Transpose": 1, "MatMul": 1}


# --- global_average_pool -------------------------------------------------------------------------

MEAN = "(float[1, 2, 1, 1] y) { m = ReduceMean<keepdims = 1>(x, axes)\n y = Relu(m) }"
LAST = "(float[1, 2, 1, 1] y) { y = ReduceMean<keepdims = 1>(x, axes) }"


@pytest.mark.parametrize("body", [MEAN, LAST], ids=["inside", "as the output"])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)], ids=str)
def test_a_mean_over_all_pixels_becomes_a_pool(body: str, axes: tuple[int, int]) -> None:
    graph = model(body, axes=amounts(*axes))
    before = run(graph, X)
    assert global_average_pool(graph) == 1
    assert operators(graph)["ReduceMean"] == 0
    assert operators(graph)["GlobalAveragePool"] == 1
    assert [value.name for value in graph.graph.outputs] == ["y"]
    # two orders of adding 25 numbers of size 1: a few ulps
    np.testing.assert_allclose(run(graph, X)[0], before[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("(float[1, 2] y) { y = ReduceMean<keepdims = 0>(x, axes) }", (2, 3)),
        ("(float[1, 2, 5, 1] y) { y = ReduceMean<keepdims = 1>(x, axes) }", (3,)),
        ("(float[1, 1, 1, 1] y) { y = ReduceMean<keepdims = 1>(x, axes) }", (1, 2, 3)),
        (
            "(float[2, 5, 1] y) { f = Squeeze(x, zero)\n y = ReduceMean<keepdims = 1>(f, axes) }",
            (2,),
        ),
    ],
    ids=["sizes dropped", "rows only", "channels too", "features of floats"],
)
def test_every_other_mean_stays(body: str, axes: tuple[int, ...]) -> None:
    graph = model(body, axes=amounts(*axes), zero=amounts(0))
    assert global_average_pool(graph) == 0
    assert operators(graph)["ReduceMean"] == 1


def test_a_mean_of_codes_over_one_axis_becomes_a_pool() -> None:
    graph = model(
        """(float[2, 5, 1] y) {
            f = Squeeze(x, zero)
            q = QuantizeLinear(f, s, z)
            d = DequantizeLinear(q, s, z)
            y = ReduceMean<keepdims = 1>(d, axes)
        }""",
        axes=amounts(2),
        zero=amounts(0),
        s=SCALE,
        z=ZERO,
    )
    before = run(graph, X)
    assert global_average_pool(graph) == 1
    np.testing.assert_allclose(run(graph, X)[0], before[0], rtol=0, atol=1e-6)


# --- gather_codes --------------------------------------------------------------------------------

ROWS = """(float[1, 2, 5, 5, 5] y) {
    d = DequantizeLinear<axis = 0>(codes, s, z)
    tokens = Cast<to = 7>(x)
    y = Gather(d, tokens)
}"""
TOKENS = np.random.default_rng(1).integers(0, 3, (1, 2, 5, 5)).astype(np.float32)


@pytest.mark.parametrize("scales", [PER_CHANNEL, PER_TENSOR], ids=["channel", "tensor"])
def test_rows_of_codes_are_picked_before_they_are_scaled(scales: Arrays) -> None:
    graph = model(ROWS, codes=CODES, **scales)
    before = run(graph, TOKENS)
    assert gather_codes(graph) == 1
    gathers = [node for node in graph.graph if node.op_type == "Gather"]
    assert {node.inputs[0].name for node in gathers} <= {"codes", "s"}
    np.testing.assert_array_equal(run(graph, TOKENS)[0], before[0])
    assert len(np.unique(before[0])) > 5


def test_the_tables_other_reader_keeps_its_dequantize() -> None:
    body = ROWS.replace("5, 5] y)", "5, 5] y, float[3, 5] other)").replace(
        "y = Gather", "other = Identity(d)\n    y = Gather"
    )
    graph = model(body, codes=CODES, **PER_CHANNEL)
    before = run(graph, TOKENS)
    assert gather_codes(graph) == 1
    assert operators(graph)["DequantizeLinear"] == 1
    for was, now in zip(before, run(graph, TOKENS), strict=True):
        np.testing.assert_array_equal(was, now)


REFUSED_TABLES: dict[str, tuple[str, Arrays]] = {
    "zero points": (ROWS, {**PER_CHANNEL, "z": np.array([0, 1, 0], np.int8)}),
    "columns": (ROWS.replace("Gather(", "Gather<axis = 1>(").replace("5, 5, 5]", "5, 5]"), {}),
    "scales of columns": (
        ROWS.replace("axis = 0", "axis = 1"),
        {"s": np.linspace(0.1, 0.5, 5, dtype=np.float32), "z": np.zeros(5, np.int8)},
    ),
    "a float table": (ROWS.replace("DequantizeLinear<axis = 0>(codes, s, z)", "Identity(w)"), {}),
}


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_every_other_gather_stays(case: str) -> None:
    body, changed = REFUSED_TABLES[case]
    if case == "columns":
        body = body.replace("float[1, 2, 5, 5] y", "float[3, 1, 2, 5, 5] y")
    graph = model(body, codes=CODES, w=normal(3, 5), **{**PER_CHANNEL, **changed})
    before = run(graph, TOKENS)
    assert gather_codes(graph) == 0
    np.testing.assert_array_equal(run(graph, TOKENS)[0], before[0])


# --- constants -----------------------------------------------------------------------------------


def test_storing_under_a_known_name_replaces_values_shape_and_type() -> None:
    graph = model(LINEAR, codes=CODES, **PER_CHANNEL).graph
    value = graph.initializers["codes"]
    assert store(graph, "codes", CODES.T.astype(np.uint8)) is value
    assert tuple(value.shape) == (5, 3)
    assert value.dtype == ir.DataType.UINT8
    np.testing.assert_array_equal(array(value), CODES.T.astype(np.uint8))


def test_storing_under_a_new_name_adds_an_initializer() -> None:
    graph = model(LINEAR, codes=CODES, **PER_CHANNEL).graph
    value = store(graph, "more", np.ones(2, np.float32))
    assert graph.initializers["more"] is value
    assert value.is_initializer()


def test_a_value_has_an_only_reader_if_one_node_and_no_output_reads_it() -> None:
    body = "(float[1, 2, 5, 5] y, float[1, 2, 5, 5] z) { y = Relu(x)\n a = Neg(y)\n z = Add(a, a) }"
    graph = model(body).graph
    relu, neg, add = graph
    assert only_reader(graph.inputs[0]) is relu
    assert only_reader(relu.outputs[0]) is None  # also leaves the model
    assert only_reader(neg.outputs[0]) is None  # read twice
    assert only_reader(add.outputs[0]) is None


def test_an_absent_attribute_has_the_default_and_an_input_no_array() -> None:
    graph = model(LINEAR, codes=CODES, **PER_CHANNEL).graph
    dequantize = next(iter(graph))
    assert attribute(dequantize, "axis", 7) == 0
    assert attribute(dequantize, "block_size", 7) == 7
    assert array(graph.inputs[0]) is None
    assert array(None) is None
