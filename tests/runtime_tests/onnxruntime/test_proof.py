"""ONNX Runtime's integer kernels against the executor, one operator at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import BundleError
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import ORT_MLAS, RoundingMode
from edgeopt.integer.kernels import Grid
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.onnxruntime.proof import prove

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]


class Net:
    """A small graph in QDQ form, written node by node."""

    def __init__(self, seed: int, codes: Any = np.uint8) -> None:
        self.random = np.random.default_rng(seed)
        self.codes = codes
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: dict[str, Array] = {}

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, shape: Sequence[int], spread: float = 1.0) -> str:
        self.inputs[name] = (self.random.standard_normal(shape) * spread).astype(np.float32)
        return name

    def node(
        self, operator: str, inputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(operator, inputs, [name], name, domain=domain, **attributes)
        )
        return name

    def coded(self, value: str, scale: float, zero: int) -> str:
        """Put quantize and dequantize behind a value."""
        parameters = [
            self.constant(f"{value}_scale", np.float32(scale)),
            self.constant(f"{value}_zero", self.codes(zero)),
        ]
        codes = self.node("QuantizeLinear", [value, *parameters])
        return self.node("DequantizeLinear", [codes, *parameters])

    def weight(self, name: str, shape: Sequence[int], scales: Array, axis: int) -> str:
        values = self.random.integers(-127, 128, shape).astype(np.int8)
        return self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.weight", values),
                self.constant(f"{name}.scale", scales.astype(np.float32)),
                self.constant(f"{name}.zero", np.zeros(scales.shape, np.int8)),
            ],
            axis=axis,
        )

    def bias(self, name: str, scales: Array) -> str:
        values = self.random.integers(-3000, 3000, scales.shape).astype(np.int32)
        scale = self.constant(f"{name}.bias_scale", scales.astype(np.float32))
        return self.node("DequantizeLinear", [self.constant(f"{name}.bias", values), scale], axis=0)

    def prove(self, output: str, folder: Path, **options: Any) -> ProofResult:
        make = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "net",
            [make(name, onnx.TensorProto.FLOAT, v.shape) for name, v in self.inputs.items()],
            [make(output, onnx.TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
        path = folder / "net.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return prove("net", path, self.inputs, **options)


def zero_of(codes: Any, offset: int) -> int:
    """Return a zero point at the same place in either type's range."""
    return offset + int(np.iinfo(codes).min)


def weight_scales(net: Net, count: int, *, per_channel: bool, power_of_two: bool) -> Array:
    if power_of_two:
        return 2.0 ** net.random.integers(-9, -6, count if per_channel else ())
    return net.random.uniform(0.001, 0.01, count if per_channel else ())


def convolution(
    net: Net,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    *,
    groups: int = 1,
    per_channel: bool = True,
    power_of_two: bool = False,
    relu: str = "",
    **attributes: Any,
) -> str:
    spatial = [9, 8][: len(kernel)]
    in_scale = 2.0**-5 if power_of_two else 0.031
    x = net.coded(net.input("x", (2, channels, *spatial), 1.5), in_scale, zero_of(net.codes, 119))
    scales = weight_scales(net, outputs, per_channel=per_channel, power_of_two=power_of_two)
    w = net.weight("conv", (outputs, channels // groups, *kernel), scales, axis=0)
    bias = net.bias("conv", np.broadcast_to(scales * in_scale, outputs))
    y = net.node("Conv", [x, w, bias], group=groups, kernel_shape=list(kernel), **attributes)
    zero = 128
    if relu == "Relu":
        y, zero = net.node("Relu", [y]), 0
    if relu == "Clip":
        bounds = [net.constant("low", np.float32(0)), net.constant("high", np.float32(6))]
        y, zero = net.node("Clip", [y, *bounds]), 0
    fan_in = channels // groups * int(np.prod(kernel))
    spread = float(np.mean(scales)) * in_scale * 127 * 40 * fan_in**0.5
    step = 2.0 ** round(np.log2(spread / 60)) if power_of_two else spread / 60
    if relu == "Clip":
        step = 6 / 255
    return net.coded(y, step, zero_of(net.codes, zero))


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "three-by-three": dict(channels=5, outputs=7, kernel=(3, 3), pads=[1, 1, 1, 1]),
    "pointwise": dict(channels=16, outputs=24, kernel=(1, 1)),
    "per-tensor": dict(channels=4, outputs=6, kernel=(3, 3), per_channel=False),
    "depthwise": dict(channels=16, outputs=16, kernel=(3, 3), groups=16, pads=[1, 1, 1, 1]),
    "depthwise-odd": dict(channels=5, outputs=5, kernel=(5, 5), groups=5, strides=[2, 2]),
    "grouped": dict(channels=8, outputs=12, kernel=(3, 3), groups=4),
    "asymmetric-pads": dict(
        channels=3, outputs=8, kernel=(3, 3), pads=[0, 0, 1, 1], strides=[2, 2]
    ),
    "dilated": dict(channels=4, outputs=4, kernel=(3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]),
    "relu": dict(channels=4, outputs=8, kernel=(3, 3), relu="Relu"),
    "clip": dict(channels=4, outputs=8, kernel=(3, 3), relu="Clip"),
    "one-dimension": dict(channels=4, outputs=6, kernel=(3,), pads=[1, 1], strides=[2]),
}


@pytest.mark.parametrize("codes", [np.uint8, np.int8], ids=["uint8", "int8"])
@pytest.mark.parametrize("power_of_two", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_bit_exact(
    name: str, power_of_two: bool, codes: Any, tmp_path: Path
) -> None:
    net = Net(seed=len(name), codes=codes)
    result = net.prove(convolution(net, power_of_two=power_of_two, **CONVOLUTIONS[name]), tmp_path)
    assert_exact(result, "QLinearConv")
    assert result.float_islands == {}  # the activation behind it is absorbed


def assert_exact(result: ProofResult, operator: str) -> None:
    assert operator in {d.operator for d in result.details}, result
    assert result.first_difference == ""
    assert result.exact
    assert result.equal == result.elements > 0
    assert result.max_lsb == 0
    assert not result.unproven


def linear(net: Net, *, out: bool, bias: bool = True, power_of_two: bool = False) -> str:
    in_scale = 2.0**-5 if power_of_two else 0.029
    x = net.coded(net.input("x", (6, 48), 1.5), in_scale, zero_of(net.codes, 131))
    scales = weight_scales(net, 20, per_channel=True, power_of_two=power_of_two)
    w = net.weight("fc", (20, 48), scales, axis=0)
    inputs = [x, w, net.bias("fc", scales * in_scale)] if bias else [x, w]
    y = net.node("Gemm", inputs, transB=1)
    return net.coded(y, 2.0**-3 if power_of_two else 0.11, zero_of(net.codes, 128)) if out else y


def product(net: Net, *, power_of_two: bool = False) -> str:
    a_scale, b_scale = (2.0**-5, 2.0**-6) if power_of_two else (0.021, 0.017)
    a = net.coded(net.input("a", (2, 3, 7, 16)), a_scale, zero_of(net.codes, 120))
    b = net.coded(net.input("b", (2, 3, 16, 9)), b_scale, zero_of(net.codes, 133))
    y = net.node("MatMul", [a, b])
    return net.coded(y, 2.0**-4 if power_of_two else 0.07, zero_of(net.codes, 127))


def pair(net: Net, operator: str, shape: Sequence[int], *, power_of_two: bool = False) -> str:
    steps = (2.0**-5, 2.0**-4, 2.0**-4) if power_of_two else (0.023, 0.037, 0.041)
    a = net.coded(net.input("a", (2, 5, 6, 7), 2), steps[0], zero_of(net.codes, 119))
    b = net.coded(net.input("b", shape, 2), steps[1], zero_of(net.codes, 130))
    return net.coded(net.node(operator, [a, b]), steps[2], zero_of(net.codes, 121))


def pool(net: Net, operator: str, **attributes: Any) -> str:
    x = net.coded(net.input("x", (2, 5, 9, 8), 2), 0.023, zero_of(net.codes, 119))
    y = net.node(operator, [x], **attributes)
    step, zero = (0.023, 119) if operator == "MaxPool" else (0.019, 100)
    return net.coded(y, step, zero_of(net.codes, zero))


def joined(net: Net) -> str:
    a = net.coded(net.input("a", (2, 3, 5), 2), 0.023, zero_of(net.codes, 119))
    b = net.coded(net.input("b", (2, 4, 5), 2), 0.031, zero_of(net.codes, 128))
    return net.coded(net.node("Concat", [a, b], axis=1), 0.031, zero_of(net.codes, 128))


OPERATORS: dict[str, tuple[str, Callable[[Net], str]]] = {
    "gemm": ("QGemm", lambda n: linear(n, out=True)),
    "gemm-ties": ("QGemm", lambda n: linear(n, out=True, power_of_two=True)),
    "gemm-no-bias": ("QGemm", lambda n: linear(n, out=True, bias=False)),
    "gemm-float": ("QGemm", lambda n: linear(n, out=False)),
    "matmul": ("QLinearMatMul", product),
    "matmul-ties": ("QLinearMatMul", lambda n: product(n, power_of_two=True)),
    "add": ("QLinearAdd", lambda n: pair(n, "Add", (2, 5, 6, 7))),
    "add-ties": ("QLinearAdd", lambda n: pair(n, "Add", (2, 5, 6, 7), power_of_two=True)),
    "add-channel": ("QLinearAdd", lambda n: pair(n, "Add", (1, 5, 1, 1))),
    "add-row": ("QLinearAdd", lambda n: pair(n, "Add", (6, 7))),
    "mul": ("QLinearMul", lambda n: pair(n, "Mul", (2, 5, 6, 7))),
    "mul-ties": ("QLinearMul", lambda n: pair(n, "Mul", (2, 5, 6, 7), power_of_two=True)),
    "mul-channel": ("QLinearMul", lambda n: pair(n, "Mul", (2, 5, 1, 1))),
    "global-average-pool": (
        "QLinearGlobalAveragePool",
        lambda n: pool(n, "GlobalAveragePool"),
    ),
    "average-pool": (
        "QLinearAveragePool",
        lambda n: pool(n, "AveragePool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    ),
    "average-pool-pads": (
        "QLinearAveragePool",
        lambda n: pool(
            n, "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
        ),
    ),
    "max-pool": (
        "MaxPool",
        lambda n: pool(n, "MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ),
    "concat": ("QLinearConcat", joined),
}


@pytest.mark.parametrize("codes", [np.uint8, np.int8], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_bit_exact(name: str, codes: Any, tmp_path: Path) -> None:
    operator, build = OPERATORS[name]
    for seed in range(3):
        net = Net(seed, codes)
        result = net.prove(build(net), tmp_path)
        assert_exact(result, operator)


def test_a_product_with_a_float_bias_is_bit_exact(tmp_path: Path) -> None:
    for bias in (False, True):
        net = Net(seed=4)
        x = net.coded(net.input("x", (3, 10, 32)), 0.027, 125)
        codes, scale, zero = net.nodes[-1].input
        scales = net.constant("s", net.random.uniform(1e-3, 1e-2, 24).astype(np.float32))
        weight = net.constant("fc.weight", net.random.integers(-127, 128, (32, 24)).astype(np.int8))
        inputs = [codes, weight, scale, scales, zero, net.constant("z", np.zeros(24, np.int8))]
        if bias:
            inputs.append(
                net.constant("fc.bias", net.random.standard_normal(24).astype(np.float32))
            )
        del x
        y = net.node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
        result = net.prove(y, tmp_path)
        assert_exact(result, "MatMulIntegerToFloat")


def test_a_chain_in_channels_last_layout_is_bit_exact(tmp_path: Path) -> None:
    net = Net(seed=7)
    y = convolution(net, 3, 16, (3, 3), relu="Clip", pads=[1, 1, 1, 1])
    scales = net.random.uniform(0.001, 0.01, 16)
    step = 6 / 255
    w, b = net.weight("dw", (16, 1, 3, 3), scales, 0), net.bias("dw", scales * step)
    z = net.node("Conv", [y, w, b], group=16, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    z = net.coded(z, 0.04, 128)
    total = net.coded(net.node("Add", [y, z]), 0.05, 128)
    mean = net.coded(net.node("GlobalAveragePool", [total]), 0.03, 100)
    result = net.prove(mean, tmp_path)
    found = [d.operator for d in result.details]
    assert found.count("QLinearConv") == 2
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QuantizeLinear"} <= set(found)
    assert_exact(result, "QLinearConv")
    assert result.float_islands == {}
    assert result.arithmetic == "ort_mlas"
    assert result.runtime.startswith("onnxruntime ")


def test_a_wrong_arithmetic_is_found_out(tmp_path: Path) -> None:
    net = Net(seed=1)
    y = convolution(net, 1, 8, (1, 1), power_of_two=True)
    wrong = dataclasses.replace(ORT_MLAS, name="single", rounding=RoundingMode.SINGLE)
    result = net.prove(y, tmp_path, arithmetic=wrong)
    assert not result.exact
    assert result.equal < result.elements
    assert result.max_lsb == 1  # ties go up instead of to even
    node = next(d for d in result.details if d.operator == "QLinearConv")
    assert node.histogram == {"-1": node.elements - node.equal}
    assert result.first_difference.startswith(f"{node.node} (QLinearConv): ")
    assert "single gives" in result.first_difference


def test_a_float_output_differs_in_lsb_of_its_accumulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kernels.gemm_float

    def one_too_many(
        a: Array, a_grid: Grid, b: Array, b_grid: Grid, *, bias: Array, **rest: Any
    ) -> Array:
        more = bias.copy()
        more[3] += 1
        return right(a, a_grid, b, b_grid, bias=more, **rest)

    monkeypatch.setattr(kernels, "gemm_float", one_too_many)
    net = Net(seed=2)
    result = net.prove(linear(net, out=False), tmp_path)
    gemm = next(d for d in result.details if d.operator == "QGemm")
    assert (gemm.elements, gemm.equal) == (6 * 20, 6 * 19)
    assert gemm.histogram == {"-1": 6}
    # Two float32 products of 24 bits, some 10^4 LSB in size.
    assert gemm.max_lsb == pytest.approx(1, abs=0.01)
    assert result.first_difference.startswith(f"{gemm.node} (QGemm): 6 of 120 elements differ")


def test_float_operators_and_unknown_integer_ones_are_named(tmp_path: Path) -> None:
    net = Net(seed=3)
    x = net.coded(net.input("x", (2, 8), 2), 0.02, 128)
    y = net.coded(net.node("Softmax", [x], axis=-1), 1 / 256, 0)
    z = net.node("Exp", [y])
    result = net.prove(z, tmp_path)
    assert list(result.unproven.values()) == ["QLinearSoftmax"]
    assert result.float_islands == {"Exp": 1}
    assert result.exact


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with pytest.raises(BundleError, match="empty"):
        prove("net", path, {})
