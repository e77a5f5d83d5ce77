"""TensorRT-RTX's report: types, fusion, reasons; and that a refusal is one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import ExportError, RuntimeUnavailable
from edgeopt.exporters.onnx.macs import Product
from edgeopt.runtime_tests.tensorrt import rtx_compiler
from edgeopt.runtime_tests.tensorrt.rtx_compiler import ShapeRange, compile_report, parse_layers

needs_compiler = pytest.mark.skipif(
    rtx_compiler.unavailable() is not None, reason=str(rtx_compiler.unavailable())
)

GEMM = (
    "Name: node_fc_myl0_1, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [2,8], Strides: "
    "[8,1], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, "
    "Dimensions: [8,4], Datatype: Int8, Format: (Linear) x }, { Name: s, Dimensions: [4], "
    "Datatype: Half, Format: (Linear) x }], Outputs: [ { Name: y, Dimensions: [2,4], Datatype: "
    "Half, Format: (Linear) x }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: fc]"
    "[ONNX Layer: fc_dq][ONNX Layer: fc]"
)
ATTENTION = (
    "Name: _gemm_mha_v2_myl0_8, LayerType: kgen, Inputs: [ { Name: q, Datatype: Half, Format: x }],"
    " Constants: [], Outputs: [ { Name: o, Datatype: Half, Format: x }], TacticName: t, StreamId: "
    "0, Metadata: [ONNX Layer: softmax]"
)


def product_file(
    path: Path,
    *,
    zero_point: int = 0,
    quantized: bool = True,
    batch: int | str = 2,
    float_type: int = TensorProto.FLOAT16,
) -> Path:
    """Write x [batch, 64] -> MatMul [64, 32] named `net.fc` -> Relu, quantized or not."""
    dtype = np.float16 if float_type == TensorProto.FLOAT16 else np.float32
    weight = np.random.default_rng(0).integers(-127, 128, (64, 32))

    def constant(name: str, value: object, kind: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, kind), name)

    nodes = [helper.make_node("Cast", ["x"], ["h"], "cast", to=float_type)]
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["codes"], "q"),
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["a"], "dq"),
            helper.make_node(
                "DequantizeLinear", ["net.fc.weight", "ws", "wz"], ["w"], "w_dq", axis=1
            ),
        ]
    nodes += [
        helper.make_node(
            "MatMul", ["a", "w"] if quantized else ["h", "net.fc.weight"], ["p"], "fc"
        ),
        helper.make_node("Relu", ["p"], ["r"], "relu"),
        helper.make_node("Cast", ["r"], ["y"], "uncast", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32])],
        [
            constant("net.fc.weight", weight, np.int8 if quantized else dtype),
            *([
                constant("s", 0.02, dtype),
                constant("z", zero_point, np.int8),
                constant("ws", np.full(32, 0.01), dtype),
                constant("wz", np.zeros(32), np.int8),
            ] if quantized else []),
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_reads_types_and_nodes_of_a_layer() -> None:
    gemm, attention = parse_layers(f"Layers:\n{GEMM}\n{ATTENTION}\nBindings:\nx\n")
    assert (gemm.name, gemm.kind) == ("node_fc_myl0_1", "gemm")
    assert (gemm.inputs, gemm.constants, gemm.outputs) == (("Int8",), ("Int8", "Half"), ("Half",))
    assert gemm.nodes == ("fc", "fc_dq")
    assert attention.fused_attention
    assert not gemm.fused_attention


def test_rows_are_in_the_engines_order() -> None:
    last = GEMM.replace("fc", "last")
    layers = parse_layers(f"Layers:\n{ATTENTION}\n{GEMM}\n{last}\nBindings:\n")
    products = [
        Product("last", "MatMul", "net.last", 32, weight="w", quantized=True),
        Product("unnamed", "MatMul", "net.lost", 1, weight="w", quantized=True),
    ]
    rows, int8 = rtx_compiler._rows(layers, products, "a", "rtx")
    assert [row.site for row in rows] == ["softmax", "fc, fc_dq", "net.last", "net.lost"]
    assert int8 == 32


def test_says_how_to_get_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rtx_compiler, "PACKAGE", "there_is_no_such_package")
    assert "pip install" in str(rtx_compiler.unavailable())
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        compile_report(product_file(tmp_path / "m.onnx"))


def test_a_crash_of_the_compiler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "crashing_compiler.py"
    fake.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rtx_compiler, "PACKAGE", "crashing_compiler")
    monkeypatch.setattr(rtx_compiler, "unavailable", lambda: None)
    with pytest.raises(ExportError, match="ended with signal 6"):
        compile_report(product_file(tmp_path / "m.onnx"))


@needs_compiler
@pytest.mark.parametrize(
    "float_type", [TensorProto.FLOAT16, TensorProto.FLOAT], ids=["float16", "float32-island"]
)
def test_a_quantized_product_runs_in_int8(tmp_path: Path, float_type: int) -> None:
    path = product_file(tmp_path / "m.onnx", float_type=float_type)
    report = compile_report(path, "SM80", artifact="tiny")
    row = next(r for r in report.operators if r.macs)
    assert (row.site, row.precision, row.macs, row.reason) == ("net.fc", "int8", 2 * 64 * 32, "")
    assert row.where.endswith("SM80")
    assert (report.macs, report.int8_macs) == (4096, 1.0)
    assert report.engine_bytes > 0
    assert report.summary()["layers"] == len(report.layers)


@needs_compiler
def test_names_why_a_product_is_not_int8(tmp_path: Path) -> None:
    report = compile_report(product_file(tmp_path / "m.onnx", quantized=False))
    assert report.int8_macs == 0.0
    row = next(r for r in report.operators if r.macs)
    assert (row.precision, row.reason) == ("float16", "not quantized in the file")


@needs_compiler
def test_builds_are_deterministic(tmp_path: Path) -> None:
    path = product_file(tmp_path / "m.onnx")
    assert compile_report(path).engine_sha256 == compile_report(path).engine_sha256


@needs_compiler
def test_dynamic_inputs_take_a_profile(tmp_path: Path) -> None:
    path = product_file(tmp_path / "m.onnx", batch="batch")
    shapes = ShapeRange((1, 64), (4, 64), (8, 64))
    report = compile_report(path, profiles={"x": shapes})
    assert report.macs == 4 * 64 * 32
    assert report.int8_macs == 1.0


@needs_compiler
@pytest.mark.parametrize("capability", ["SM87", "sm80"])
def test_refuses_a_generation_that_it_cannot_compile_for(tmp_path: Path, capability: str) -> None:
    with pytest.raises(ExportError, match="SM75, SM80"):
        compile_report(product_file(tmp_path / "m.onnx"), capability)


@needs_compiler
def test_a_refusal_names_the_compilers_reason(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"refuses it: q: .*Non-zero zero point is not supported"
    ) as caught:
        compile_report(product_file(tmp_path / "m.onnx", zero_point=3))
    assert "\n" not in str(caught.value)
