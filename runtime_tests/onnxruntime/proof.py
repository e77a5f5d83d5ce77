"""Compare ONNX Runtime's integer nodes with the reference executor, element by element.

ONNX Runtime saves the graph that it runs after its optimizations. That file is run again as it
is, with every integer node's inputs and outputs among the graph's outputs; each integer node is
then computed once more from the runtime's own inputs. So no error adds up from node to node, and
every node is judged on integers that really occur.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic
from edgeopt.integer.kernels import Grid, Window
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.differences import Comparison
from edgeopt.runtime_tests.onnxruntime.graph import (
    OrtNode,
    is_integer,
    is_move,
    read_graph,
    run_with_probes,
)
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner, save_optimized

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class _Case:
    """A node with the runtime's own values."""

    node: OrtNode
    values: Arrays
    arithmetic: Arithmetic

    def given(self, index: int) -> Array | None:
        """Return an input, or None where it is left out."""
        name = self.node.input(index)
        return np.asarray(self.values[name]) if name else None

    def value(self, index: int) -> Array:
        """Return an input that must be there."""
        return np.asarray(self.values[self.node.inputs[index]])

    def grid(self, scale: int, zero_point: int, dtype: Any) -> Grid:
        """Return a grid from the inputs that hold its scale and zero point (0 if left out)."""
        zero = self.given(zero_point)
        return Grid.of(self.value(scale), 0 if zero is None else zero, dtype)

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.node.attributes.get(name, default)

    @property
    def output(self) -> Array:
        """What the runtime computed."""
        return np.asarray(self.values[self.node.outputs[0]])


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What the executor computed, and what one LSB is worth in it (1 for codes)."""

    output: Array
    lsb: Array = dataclasses.field(default_factory=lambda: np.ones((), np.float64))


class _NoArithmeticError(Exception):
    """A form of an operator that the executor does not compute."""


def prove(
    artifact: str, model: Path, inputs: Arrays, *, arithmetic: Arithmetic = ORT_MLAS
) -> ProofResult:
    """Compare each integer node of a file, as ONNX Runtime runs it here, with the executor.

    Codes, int32 accumulators and float32 outputs of integer kernels are compared bit by bit.

    Args:
        artifact: The artifact's name, for the result.
        model: The exported file.
        inputs: Inputs by name; real samples, since random ones hardly saturate.
        arithmetic: How the executor rescales.

    Raises:
        RuntimeUnavailable: If ONNX Runtime is missing.
        BundleError: If the file cannot be loaded or run.
        DataError: If the inputs do not fit.
    """
    with tempfile.TemporaryDirectory() as work:
        optimized = Path(work) / "optimized.onnx"
        save_optimized(model, optimized)
        graph = read_graph(optimized)
        wanted = [name for n in graph.nodes for name in (*n.inputs, *n.outputs)]
        values = {**graph.constants, **run_with_probes(optimized, inputs, wanted)}
    compared = Comparison(arithmetic.name)
    unproven: dict[str, str] = {}
    islands: Counter[str] = Counter()
    for node in graph.nodes:
        if is_move(node) or node.outputs[0] not in values:
            continue
        unfused = node.operator == "DequantizeLinear" and node.inputs[0] in graph.constants
        if unfused or not is_integer(node, values):
            islands[node.operator] += values[node.outputs[0]].dtype.kind == "f"
            continue
        case = _Case(node, values, arithmetic)
        name = node.name or node.outputs[0]
        try:
            answer = _answer(case)
        except _NoArithmeticError:
            unproven[name] = node.operator
            continue
        compared.add(name, node.operator, case.output, answer.output, answer.lsb)
    runtime = OnnxRuntimeRunner().version()
    return compared.result(artifact, runtime, unproven=unproven, float_islands=+islands)


def _answer(case: _Case) -> _Answer:
    handler = _HANDLERS.get(case.node.operator)
    if handler is None:
        raise _NoArithmeticError
    return handler(case)


def _window(case: _Case, kernel: tuple[int, ...]) -> Window:
    if case.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise _NoArithmeticError
    return Window.of(
        kernel,
        case.attribute("strides", ()),
        case.attribute("pads", ()),
        case.attribute("dilations", ()),
        ceil=bool(case.attribute("ceil_mode", 0)),
    )


def _channels_first(x: Array, *, last: bool) -> Array:
    return np.moveaxis(x, -1, 1) if last else x


def _as_given(y: Array, *, last: bool) -> Array:
    return np.ascontiguousarray(np.moveaxis(y, 1, -1) if last else y)


def _qlinear_conv(case: _Case) -> _Answer:
    last = bool(case.attribute("channels_last", 0))
    x, weight = case.value(0), case.value(3)
    output = kernels.conv(
        _channels_first(x, last=last),
        case.grid(1, 2, x.dtype),
        weight,
        case.grid(4, 5, weight.dtype),
        case.grid(6, 7, case.output.dtype),
        _window(case, weight.shape[2:]),
        groups=case.attribute("group", 1),
        bias=case.given(8),
        arithmetic=case.arithmetic,
    )
    return _Answer(_as_given(output, last=last))


def _conv_integer(case: _Case) -> _Answer:
    x, weight = case.value(0), case.value(1)
    zeros = [case.given(2), case.given(3)]
    return _Answer(
        kernels.conv_accumulator(
            x,
            Grid.of(1, 0 if zeros[0] is None else zeros[0], x.dtype).zero_point,
            weight,
            Grid.of(1, 0 if zeros[1] is None else zeros[1], weight.dtype).zero_point,
            _window(case, weight.shape[2:]),
            groups=case.attribute("group", 1),
            arithmetic=case.arithmetic,
        )
    )


def _qgemm(case: _Case) -> _Answer:
    a, b = case.value(0), case.value(3)
    a = a.T if case.attribute("transA", 0) else a
    b = b.T if case.attribute("transB", 0) else b
    a_grid, b_grid = case.grid(1, 2, a.dtype), case.grid(4, 5, b.dtype)
    alpha = np.float32(case.attribute("alpha", 1.0))
    a_grid = dataclasses.replace(a_grid, scale=np.asarray(alpha * a_grid.scale))
    if case.given(7) is None:
        output = kernels.gemm_float(
            a, a_grid, b, b_grid, bias=case.given(6), arithmetic=case.arithmetic
        )
        return _Answer(output, _accumulator_lsb(a_grid, b_grid))
    out_grid = case.grid(7, 8, case.output.dtype)
    return _Answer(
        kernels.gemm(a, a_grid, b, b_grid, out_grid, bias=case.given(6), arithmetic=case.arithmetic)
    )


def _accumulator_lsb(a_grid: Grid, b_grid: Grid) -> Array:
    return np.asarray(a_grid.scale.astype(np.float64) * b_grid.scale.astype(np.float64))


def _qlinear_matmul(case: _Case) -> _Answer:
    a, b = case.value(0), case.value(3)
    return _Answer(
        kernels.gemm(
            a,
            case.grid(1, 2, a.dtype),
            b,
            case.grid(4, 5, b.dtype),
            case.grid(6, 7, case.output.dtype),
            arithmetic=case.arithmetic,
        )
    )


def _matmul_integer_to_float(case: _Case) -> _Answer:
    a, b = case.value(0), case.value(1)
    a_grid, b_grid = case.grid(2, 4, a.dtype), case.grid(3, 5, b.dtype)
    output = kernels.gemm_float(
        a, a_grid, b, b_grid, float_bias=case.given(6), arithmetic=case.arithmetic
    )
    return _Answer(output, _accumulator_lsb(a_grid, b_grid))


def _matmul_integer(case: _Case) -> _Answer:
    a, b = case.value(0), case.value(1)
    zeros = [case.given(2), case.given(3)]
    grids = [Grid.of(1, 0 if z is None else z, np.int8).zero_point for z in zeros]
    if grids[0].ndim:  # one zero point a row of `a`
        raise _NoArithmeticError
    return _Answer(kernels.matmul_accumulator(a, grids[0], b, grids[1], case.arithmetic))


def _qlinear_pair(kernel: Callable[..., Array]) -> Callable[[_Case], _Answer]:
    def handler(case: _Case) -> _Answer:
        a, b = case.value(0), case.value(3)
        return _Answer(
            kernel(
                a,
                case.grid(1, 2, a.dtype),
                b,
                case.grid(4, 5, b.dtype),
                case.grid(6, 7, case.output.dtype),
                case.arithmetic,
            )
        )

    return handler


def _global_average_pool(case: _Case) -> _Answer:
    last = bool(case.attribute("channels_last", 0))
    x = case.value(0)
    output = kernels.global_average_pool(
        _channels_first(x, last=last),
        case.grid(1, 2, x.dtype),
        case.grid(3, 4, case.output.dtype),
        case.arithmetic,
    )
    return _Answer(_as_given(output, last=last))


def _average_pool(case: _Case) -> _Answer:
    last = bool(case.attribute("channels_last", 0))
    x = case.value(0)
    output = kernels.average_pool(
        _channels_first(x, last=last),
        case.grid(1, 2, x.dtype),
        case.grid(3, 4, case.output.dtype),
        _window(case, tuple(case.attribute("kernel_shape", ()))),
        count_pads=bool(case.attribute("count_include_pad", 0)),
        arithmetic=case.arithmetic,
    )
    return _Answer(_as_given(output, last=last))


def _max_pool(case: _Case) -> _Answer:
    last = case.node.operator == "NhwcMaxPool"
    window = _window(case, tuple(case.attribute("kernel_shape", ())))
    output = kernels.max_pool(_channels_first(case.value(0), last=last), window)
    return _Answer(_as_given(output, last=last))


def _concat(case: _Case) -> _Answer:
    """Join: the output's scale and zero point come first, then (codes, scale, zero point)."""
    starts = range(2, len(case.node.inputs), 3)
    parts = [case.value(i) for i in starts]
    grids = [case.grid(i + 1, i + 2, p.dtype) for i, p in zip(starts, parts, strict=True)]
    output = kernels.concat(
        parts,
        grids,
        case.grid(0, 1, case.output.dtype),
        case.attribute("axis", 0),
        case.arithmetic,
    )
    return _Answer(output)


def _per_axis_grid(case: _Case, dtype: Any, ndim: int) -> Grid:
    if case.attribute("block_size", 0):
        raise _NoArithmeticError
    return case.grid(1, 2, dtype).along(case.attribute("axis", 1), ndim)


def _quantize(case: _Case) -> _Answer:
    x = case.value(0)
    if x.dtype != np.float32 or case.output.dtype.itemsize != 1:
        raise _NoArithmeticError
    grid = _per_axis_grid(case, case.output.dtype, x.ndim)
    return _Answer(kernels.quantize(x, grid, case.arithmetic))


def _dequantize(case: _Case) -> _Answer:
    codes = case.value(0)
    if case.output.dtype != np.float32 or codes.dtype.kind not in "iu":
        raise _NoArithmeticError
    grid = _per_axis_grid(case, codes.dtype, codes.ndim)
    return _Answer(kernels.dequantize(codes, grid), grid.scale.astype(np.float64))


_HANDLERS: Mapping[str, Callable[[_Case], _Answer]] = {
    "QLinearConv": _qlinear_conv,
    "ConvInteger": _conv_integer,
    "QGemm": _qgemm,
    "QLinearMatMul": _qlinear_matmul,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "MatMulInteger": _matmul_integer,
    "QLinearAdd": _qlinear_pair(kernels.add),
    "QLinearMul": _qlinear_pair(kernels.multiply),
    "QLinearGlobalAveragePool": _global_average_pool,
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _concat,
    "MaxPool": _max_pool,
    "NhwcMaxPool": _max_pool,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
