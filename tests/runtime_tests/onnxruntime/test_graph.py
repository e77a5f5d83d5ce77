"""Where the operators of a file run, read off ONNX Runtime's own optimized graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.artifacts.artifact import TensorEntry
from edgeopt.errors import BundleError
from edgeopt.runtime_tests.onnxruntime import graph as ort_graph
from edgeopt.runtime_tests.onnxruntime.graph import read_graph
from edgeopt.runtime_tests.onnxruntime.placement import Placement, placement
from edgeopt.runtime_tests.onnxruntime.runner import save_optimized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)


class File:
    """An ONNX file, written node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(
        self, operator: str, inputs: Sequence[str], output: str, site: str = "", **attributes: Any
    ) -> str:
        name = site or f"node_{output}"
        made = onnx.helper.make_node(operator, inputs, [output], name, **attributes)
        if site:
            made.metadata_props.add(key=ort_graph.SITE_KEY, value=site)
        self.nodes.append(made)
        return output

    def coded(self, value: str, zero: int = 128) -> str:
        """Put quantize and dequantize behind a value."""
        scale = self.constant(f"{value}_scale", np.float32(0.05))
        point = self.constant(f"{value}_zero", np.uint8(zero))
        codes = self.node("QuantizeLinear", [value, scale, point], f"{value}_q")
        return self.node("DequantizeLinear", [codes, scale, point], f"{value}_dq")

    def weight(self, name: str, shape: Sequence[int], *, coded: bool) -> str:
        if not coded:
            return self.constant(name, RANDOM.standard_normal(shape).astype(np.float32))
        codes = self.constant(name, RANDOM.integers(-127, 128, shape).astype(np.int8))
        scale = self.constant(f"{name}_scale", np.full(shape[0], 0.01, np.float32))
        zero = self.constant(f"{name}_zero", np.zeros(shape[0], np.int8))
        return self.node("DequantizeLinear", [codes, scale, zero], f"{name}_dq", axis=0)

    def bias(self, name: str, size: int, *, coded: bool) -> str:
        if not coded:
            return self.constant(name, np.ones(size, np.float32))
        codes = self.constant(name, np.arange(size, dtype=np.int32))
        scale = self.constant(f"{name}_scale", np.full(size, 0.0005, np.float32))
        return self.node("DequantizeLinear", [codes, scale], f"{name}_dq", axis=0)

    def save(self, path: Path, shape: Sequence[int | str], output: str) -> Path:
        make = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "file",
            [make("x", onnx.TensorProto.FLOAT, shape)],
            [make(output, onnx.TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [onnx.helper.make_opsetid("", 20)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def place(path: Path, **options: Any) -> Placement:
    optimized = path.with_suffix(".optimized.onnx")
    save_optimized(path, optimized)
    return placement("net", path, optimized, **options)


def network(path: Path, *, coded: bool, out_coded: bool = True, bias_coded: bool = True) -> Path:
    """Write conv 3 -> 16 (3x3, on 8x8), ReLU, depthwise 3x3, mean, linear 16 -> 10."""
    file = File()
    x = file.coded("x") if coded else "x"
    w = file.weight("stem.weight", (16, 3, 3, 3), coded=coded)
    b = file.bias("stem.bias", 16, coded=coded)
    pads = [1, 1, 1, 1]
    y = file.node("Conv", [x, w, b], "a", "stem:conv2d#0", kernel_shape=[3, 3], pads=pads)
    y = file.node("Relu", [y], "b", "act:relu#0")
    y = file.coded(y, zero=0) if coded and out_coded else y
    w = file.weight("dw.weight", (16, 1, 3, 3), coded=coded)
    b = file.bias("dw.bias", 16, coded=coded)
    y = file.node("Conv", [y, w, b], "c", "dw:conv2d#0", group=16, kernel_shape=[3, 3], pads=pads)
    y = file.coded(y) if coded else y
    y = file.node("GlobalAveragePool", [y], "d")
    y = file.coded(y) if coded else y
    y = file.node("Flatten", [y], "e")
    y = file.coded(y) if coded else y
    w = file.weight("head.weight", (10, 16), coded=coded)
    b = file.bias("head.bias", 10, coded=coded and bias_coded)
    y = file.node("Gemm", [y, w, b], "y", "head:linear#0", transB=1)
    return file.save(path, ("batch", 3, 8, 8), y)


STEM, DEPTHWISE, HEAD = 16 * 27 * 64, 16 * 9 * 64, 160


@pytest.mark.parametrize("coded", [False, True], ids=["float32", "int8"])
def test_counts_macs_by_site_at_batch_one(coded: bool, tmp_path: Path) -> None:
    placed = place(network(tmp_path / "net.onnx", coded=coded))
    found = {r.site: r.macs for r in placed.rows if r.macs}
    assert found == {"stem:conv2d#0": STEM, "dw:conv2d#0": DEPTHWISE, "head:linear#0": HEAD}
    assert placed.macs == STEM + DEPTHWISE + HEAD
    assert placed.int8_share == (1.0 if coded else 0.0)
    assert {r.where for r in placed.rows} == {"CPUExecutionProvider"}
    if coded:
        assert placed.float_weighted == {}
        assert placed.counts["int8"]["QLinearConv"] == 2
        assert placed.counts["int8"]["QGemm"] == 1
    else:
        assert set(placed.float_weighted.values()) == {"nothing is quantized in this file"}
        assert len(placed.float_weighted) == 3
        assert "int8" not in placed.counts


def test_channels_padded_by_a_layout_are_not_counted(tmp_path: Path) -> None:
    file = File()
    w = file.weight("stem.weight", (20, 3, 3, 3), coded=False)  # 20 is no multiple of 16
    y = file.node("Conv", ["x", w], "y", kernel_shape=[3, 3])
    placed = place(file.save(tmp_path / "net.onnx", (1, 3, 6, 6), y))
    assert [(r.site, r.macs) for r in placed.rows if r.macs] == [("stem", 20 * 27 * 16)]


def test_a_dynamic_batch_follows_the_given_inputs(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", coded=True)
    inputs = {"x": np.zeros((4, 3, 8, 8), np.float32)}
    assert place(path, inputs=inputs).macs == 4 * (STEM + DEPTHWISE + HEAD)


def test_says_why_a_convolution_stays_float(tmp_path: Path) -> None:
    placed = place(network(tmp_path / "net.onnx", coded=True, out_coded=False))
    rows = {r.site: r for r in placed.rows if r.macs}
    assert placed.float_weighted == {
        "stem:conv2d#0": "its output is not quantized, and QLinearConv writes codes only",
        "dw:conv2d#0": "its input is not quantized",
    }
    assert rows["stem:conv2d#0"].reason == placed.float_weighted["stem:conv2d#0"]
    assert rows["head:linear#0"].precision == "int8"
    assert placed.int8_share == HEAD / (STEM + DEPTHWISE + HEAD)


def test_says_why_a_linear_stays_float(tmp_path: Path) -> None:
    placed = place(network(tmp_path / "net.onnx", coded=True, bias_coded=False))
    assert placed.float_weighted == {"head:linear#0": "its bias is not on an int32 grid"}


def test_sites_fall_back_to_the_tensor_map_and_the_weights_name(tmp_path: Path) -> None:
    file = File()
    first = file.weight("blocks.0.fc.weight", (8, 8), coded=False)
    second = file.weight("val_7", (8, 8), coded=False)
    y = file.node("MatMul", ["x", first], "a")
    y = file.node("Sigmoid", [y], "s")
    y = file.node("MatMul", [y, second], "b")
    y = file.node("MatMul", [y, y], "y")
    path = file.save(tmp_path / "net.onnx", (8, 8), y)
    tensor_map = {"blocks.1.fc.weight": TensorEntry("val_7", "transpose")}
    optimized = tmp_path / "optimized.onnx"
    save_optimized(path, optimized)
    found = placement("net", path, optimized, tensor_map=tensor_map)
    rows = [r for r in found.rows if r.macs]
    assert [r.site for r in rows] == ["blocks.0.fc", "blocks.1.fc", "node_y"]
    assert [r.macs for r in rows] == [512, 512, 512]
    assert place(path).float_weighted.keys() == {"blocks.0.fc", "node_b"}


def test_products_of_two_activations_are_no_weighted_operators(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", coded=True)
    model = onnx.load(path)
    model.graph.node.append(
        onnx.helper.make_node("MatMul", ["y", "t"], ["z"], "attn:matmul#0"),
    )
    model.graph.node.insert(
        len(model.graph.node) - 1, onnx.helper.make_node("Transpose", ["y"], ["t"], "attn:t#0")
    )
    model.graph.output[0].name = "z"
    onnx.save(model, path)
    placed = place(path)
    row = next(r for r in placed.rows if r.site == "attn:matmul#0")
    assert row.macs == 10
    assert row.reason == "the plan keeps this product of two activations in float"
    assert placed.float_weighted == {}


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match="no ONNX file"):
        read_graph(path)
