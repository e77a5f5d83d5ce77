"""Integer kernels of the reference executor, in numpy.

Accumulators are exact: products of codes are summed in float32 or float64 matrix products only
where a bound proves that every partial sum is an integer which the type holds. Each kernel then
computes its output with the float32 steps, in their order, that ONNX Runtime's kernel of that
name takes (`ORT_MLAS`); these were found by comparing every element on random and tied inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeopt.errors import ConfigError
from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic, Elementwise, RescaleKind

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The affine grid that codes lie on: `real = scale * (code - zero_point)`.

    Attributes:
        scale: float32, `[]` or `[channels]`.
        zero_point: int32, `[]` or `[channels]`.
        dtype: Of the codes: int8 or uint8.
    """

    scale: Array
    zero_point: Array
    dtype: np.dtype[Any]

    @staticmethod
    def of(scale: Any, zero_point: Any, dtype: Any) -> Grid:
        """Make a grid from numbers or arrays of any type; one element counts as a scalar."""
        scales = np.asarray(scale, np.float32)
        zeros = np.asarray(zero_point).astype(np.int32)
        return Grid(
            scales.reshape(()) if scales.size == 1 else scales,
            zeros.reshape(()) if zeros.size == 1 else zeros,
            np.dtype(dtype),
        )

    def along(self, axis: int, ndim: int) -> Grid:
        """Return the grid shaped to broadcast along an axis of an `ndim`-dimensional tensor."""
        shape = [1] * ndim
        shape[axis] = -1
        return Grid(
            self.scale.reshape(shape) if self.scale.ndim else self.scale,
            self.zero_point.reshape(shape) if self.zero_point.ndim else self.zero_point,
            self.dtype,
        )


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel slides over the spatial dimensions.

    Attributes:
        kernel: Sizes.
        strides: Steps.
        pads: Begins, then ends, as ONNX writes them.
        dilations: Distances between taps.
        ceil: Whether a last, partly outside window counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil: bool = False

    @staticmethod
    def of(
        kernel: Sequence[int],
        strides: Sequence[int] = (),
        pads: Sequence[int] = (),
        dilations: Sequence[int] = (),
        *,
        ceil: bool = False,
    ) -> Window:
        """Make a window; what is left out is 1 (0 for pads)."""
        rank = len(kernel)
        made = Window(
            tuple(kernel),
            tuple(strides) or (1,) * rank,
            tuple(pads) or (0,) * (2 * rank),
            tuple(dilations) or (1,) * rank,
            ceil,
        )
        if not rank == len(made.strides) == len(made.dilations) == len(made.pads) // 2:
            raise ConfigError(f"window: kernel {made.kernel} and its other sizes differ in rank")
        return made

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the number of windows in each dimension."""
        sizes = []
        for i, size in enumerate(spatial):
            begin, end = self.pads[i], self.pads[i + len(self.kernel)]
            span = size + begin + end - self._reach(i)
            count = (-(-span // self.strides[i]) if self.ceil else span // self.strides[i]) + 1
            if self.ceil and (count - 1) * self.strides[i] >= size + begin:
                count -= 1  # a window must begin inside the input or its left border
            sizes.append(count)
        if min(sizes) < 1:
            raise ConfigError(f"window: kernel {self.kernel} is larger than {tuple(spatial)}")
        return tuple(sizes)

    def _reach(self, dim: int) -> int:
        return (self.kernel[dim] - 1) * self.dilations[dim] + 1

    def view(self, x: Array, fill: Any) -> Array:
        """Return `[N, C, *outputs, *kernel]` as a strided view of the padded `[N, C, *spatial]`."""
        sizes = self.output_size(x.shape[2:])
        borders = [(0, 0), (0, 0)]
        for i, size in enumerate(x.shape[2:]):
            begin = self.pads[i]
            needed = (sizes[i] - 1) * self.strides[i] + self._reach(i)
            borders.append((begin, max(needed - size - begin, 0)))
        padded = np.pad(x, borders, constant_values=fill)
        steps = padded.strides
        return np.lib.stride_tricks.as_strided(
            padded,
            (*x.shape[:2], *sizes, *self.kernel),
            (
                *steps[:2],
                *(s * t for s, t in zip(steps[2:], self.strides, strict=True)),
                *(s * d for s, d in zip(steps[2:], self.dilations, strict=True)),
            ),
            writeable=False,
        )


def accumulator_bound(
    weight: Array,
    weight_zero: Any,
    codes: tuple[int, int],
    zero_point: int,
    bias: Array | None = None,
) -> Array:
    """Return what no partial sum of a channel's accumulator can exceed.

    `max|q_x - z_x| * sum|q_w - z_w| + |bias|`, for any order of summation.

    Args:
        weight: Codes, `[out, ...]`.
        weight_zero: Zero point, scalar or `[out]`.
        codes: Smallest and largest activation code.
        zero_point: Of the activation.
        bias: int32 `[out]`, or None.

    Returns:
        int64 `[out]`.
    """
    rows = weight.reshape(weight.shape[0], -1).astype(np.int64)
    zero = np.asarray(weight_zero).astype(np.int64).reshape(-1, 1)
    widest = max(abs(codes[0] - zero_point), abs(codes[1] - zero_point))
    bound = widest * np.abs(rows - zero).sum(axis=1)
    if bias is not None:
        bound = bound + np.abs(bias.astype(np.int64))
    return np.asarray(bound)


def fits_accumulator(bound: Array, bits: int = 32) -> bool:
    """Say whether accumulators under a bound fit a signed integer of that width."""
    return bool(np.all(bound < 2 ** (bits - 1)))


def _centred(codes: Array, zero_point: Array) -> Array:
    """Return `codes - zero_point` in int16: two 8-bit types differ by at most 383."""
    return codes.astype(np.int16) - zero_point.astype(np.int16)


def _product_type(left: Array, right: Array, terms: int) -> type[np.floating[Any]]:
    """Return the narrowest float type that sums `terms` products exactly, in any order.

    Raises:
        ConfigError: If not even float64 does (a sum over 2^53).
    """
    widest = int(np.abs(left).max(initial=0)) * int(np.abs(right).max(initial=0)) * terms
    if widest < 2**24:
        return np.float32
    if widest < 2**53:
        return np.float64
    raise ConfigError(f"an accumulator of up to {widest} is not exact in float64")


def _wrapped(exact: Array, arithmetic: Arithmetic) -> Array:
    """Return sums as the accumulator holds them; the width wraps, as the machine's does."""
    wide = exact.astype(np.int64)
    return wide.astype(np.int32) if arithmetic.accumulator_bits == 32 else wide


def matmul_accumulator(
    a: Array, a_zero: Array, b: Array, b_zero: Array, arithmetic: Arithmetic = ORT_MLAS
) -> Array:
    """Return `sum_k (a - z_a)(b - z_b)` over 8-bit codes.

    Args:
        a: `[..., M, K]`.
        a_zero: int32 `[]`, or a shape that broadcasts against `a`.
        b: `[..., K, N]`.
        b_zero: int32 `[]`, or a shape that broadcasts against `b` (`[N]`).
        arithmetic: Sets the accumulator's width.

    Returns:
        int32 `[..., M, N]`.
    """
    left, right = _centred(a, a_zero), _centred(b, b_zero)
    kind = _product_type(left, right, a.shape[-1])
    return _wrapped(np.matmul(left.astype(kind), right.astype(kind)), arithmetic)


def conv_accumulator(
    x: Array,
    x_zero: Array,
    weight: Array,
    weight_zero: Array,
    window: Window,
    *,
    groups: int = 1,
    bias: Array | None = None,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the accumulators of a convolution; the border holds the zero point's code.

    Args:
        x: Codes `[N, C, *spatial]`.
        x_zero: int32 `[]`.
        weight: Codes `[O, C / groups, *kernel]`.
        weight_zero: int32 `[]` or `[O]`.
        window: How it slides.
        groups: Groups of channels.
        bias: int32 `[O]`, or None.
        arithmetic: Sets the accumulator's width.

    Returns:
        int32 `[N, O, *outputs]`.

    Raises:
        ConfigError: If channels and groups do not fit.
    """
    batch, channels = x.shape[:2]
    outputs, depth = weight.shape[:2]
    if channels != depth * groups or outputs % groups:
        raise ConfigError(
            f"convolution: {channels} channels, weight {weight.shape} and {groups} groups differ"
        )
    centred = _centred(x, x_zero)
    filters = _centred(weight, weight_zero.reshape(-1, *[1] * (weight.ndim - 1)))
    kind = _product_type(centred, filters, math.prod(weight.shape[1:]))
    patches = window.view(centred.astype(kind), 0)
    filters = filters.astype(kind)
    sizes = patches.shape[2 : x.ndim]
    if depth == 1 and outputs == groups:
        exact = _depthwise(patches, filters, len(sizes))
    else:
        exact = _grouped(patches, filters, groups, len(sizes)).reshape(batch, outputs, *sizes)
    accumulator = _wrapped(exact, arithmetic)
    if bias is None:
        return accumulator
    with np.errstate(over="ignore"):  # wraps, as the machine's addition does
        return np.asarray(accumulator + bias.reshape(1, -1, *[1] * len(sizes)))


def _depthwise(patches: Array, filters: Array, rank: int) -> Array:
    """Sum tap by tap: one channel a group makes matrix products slow."""
    total = np.zeros(patches.shape[: 2 + rank], filters.dtype)
    for tap in np.ndindex(*filters.shape[2:]):
        weights = filters[(slice(None), 0, *tap)].reshape(-1, *[1] * rank)
        total += patches[(..., *tap)] * weights
    return total


def _grouped(patches: Array, filters: Array, groups: int, rank: int) -> Array:
    """Multiply `[N, G, O/G, depth * taps]` by the unfolded `[N, G, depth * taps, places]`."""
    batch = patches.shape[0]
    places = math.prod(patches.shape[2 : 2 + rank])
    spatial, taps = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
    columns = patches.transpose(0, 1, *taps, *spatial).reshape(batch, groups, -1, places)
    rows = filters.reshape(groups, filters.shape[0] // groups, -1)
    return np.asarray(np.matmul(rows[None], columns)).reshape(batch, -1, places)


def conv(
    x: Array,
    x_grid: Grid,
    weight: Array,
    weight_grid: Grid,
    out_grid: Grid,
    window: Window,
    *,
    groups: int = 1,
    bias: Array | None = None,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the codes of a convolution (QLinearConv): factor `(s_x * s_w) / s_y`.

    Shapes as `conv_accumulator`'s; a Clip or ReLU after it is the range of `out_grid`.
    """
    accumulator = conv_accumulator(
        x,
        x_grid.zero_point,
        weight,
        weight_grid.zero_point,
        window,
        groups=groups,
        bias=bias,
        arithmetic=arithmetic,
    )
    scale = weight_grid.along(1, accumulator.ndim).scale
    factor = arithmetic.factor(x_grid.scale, scale, over=out_grid.scale)
    return arithmetic.requantize(accumulator, factor, out_grid.zero_point, out_grid.dtype)


def _gemm_accumulator(
    a: Array, a_grid: Grid, b: Array, b_grid: Grid, bias: Array | None, arithmetic: Arithmetic
) -> Array:
    accumulator = matmul_accumulator(a, a_grid.zero_point, b, b_grid.zero_point, arithmetic)
    if bias is None:
        return accumulator
    with np.errstate(over="ignore"):  # wraps, as the machine's addition does
        return np.asarray(accumulator + bias)


def gemm(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    out_grid: Grid,
    *,
    bias: Array | None = None,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the codes of `a @ b + bias` (QGemm, QLinearMatMul): factor `(s_a * s_b) / s_y`.

    Args:
        a: Codes `[..., M, K]`.
        a_grid: Per tensor.
        b: Codes `[..., K, N]`: a weight (transposed), or a second activation.
        b_grid: Per tensor, or per column.
        out_grid: Per tensor.
        bias: int32 `[N]`, or None.
        arithmetic: The runtime's.
    """
    accumulator = _gemm_accumulator(a, a_grid, b, b_grid, bias, arithmetic)
    factor = arithmetic.factor(a_grid.scale, b_grid.scale, over=out_grid.scale)
    return arithmetic.requantize(accumulator, factor, out_grid.zero_point, out_grid.dtype)


def gemm_float(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    *,
    bias: Array | None = None,
    float_bias: Array | None = None,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return `float32(acc + bias) * (s_a * s_b) + float_bias`.

    QGemm without an output scale has the int32 bias, MatMulIntegerToFloat the float one, which is
    added after the product is rounded. Shapes as `gemm`'s.
    """
    accumulator = _gemm_accumulator(a, a_grid, b, b_grid, bias, arithmetic)
    factor = (a_grid.scale * b_grid.scale).astype(np.float32)
    real = accumulator.astype(np.float32) * factor
    return np.asarray(real if float_bias is None else real + float_bias.astype(np.float32))


def add(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    out_grid: Grid,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the codes of `a + b`, with broadcasting (QLinearAdd).

    In float32, `r_a = s_a / s_y`, `r_b = s_b / s_y`, `c = z_y - fma(r_a, z_a, r_b * z_b)`:
    `clip(rne(fma(a, r_a, fma(b, r_b, c))))`. Where `a` is constant over the innermost
    dimension and `b` is not, they change places. XNNPACK's is `_shifted_add`.
    """
    if arithmetic.rescale is not RescaleKind.FLOAT32:
        return _fixed_point_add(a, a_grid, b, b_grid, out_grid, arithmetic)
    if arithmetic.elementwise is Elementwise.XNNPACK:
        return _shifted_add(a, a_grid, b, b_grid, out_grid, sign=1)
    if _is_inner_scalar(a, b):
        a, a_grid, b, b_grid = b, b_grid, a, a_grid
    ratio_a = a_grid.scale / out_grid.scale
    ratio_b = b_grid.scale / out_grid.scale
    zeros = [g.zero_point.astype(np.float32) for g in (a_grid, b_grid, out_grid)]
    constant = zeros[2] - _fused_multiply_add(ratio_a, zeros[0], ratio_b * zeros[1])
    inner = _fused_multiply_add(b.astype(np.float32), ratio_b, constant)
    return _saturate(_fused_multiply_add(a.astype(np.float32), ratio_a, inner), out_grid.dtype)


def subtract(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    out_grid: Grid,
    arithmetic: Arithmetic,
) -> Array:
    """Return the codes of `a - b`, with broadcasting.

    Raises:
        ConfigError: If the runtime has no such kernel; only XNNPACK's is known.
    """
    if arithmetic.elementwise is not Elementwise.XNNPACK:
        raise ConfigError(f"arithmetic {arithmetic.name}: has no integer subtraction")
    return _shifted_add(a, a_grid, b, b_grid, out_grid, sign=-1)


def _shifted_add(
    a: Array, a_grid: Grid, b: Array, b_grid: Grid, out_grid: Grid, *, sign: int
) -> Array:
    """Add as XNNPACK does (xnn_init_qs8_add_minmax_params): integers and one shift, ties up.

    With `r_a = s_a / s_y` and `r_b = s_b / s_y` in float32, and e the exponent of the larger one:
    `t = 20 - e`, `m = rne(r * 2^t)`, `y = ((m_a (a - z_a) + m_b (b - z_b) + 2^(t-1)) >> t) + z_y`.
    A multiplier has at most 21 bits, so each product has under 2^30 and int32 holds the sum.
    """
    ratios = [np.float32(g.scale) / np.float32(out_grid.scale) for g in (a_grid, b_grid)]
    exponent = int(np.frexp(max(ratios))[1]) - 1  # frexp's fraction is under 1
    shift = 20 - exponent
    first, second = (int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios)
    total = _centred(a, a_grid.zero_point).astype(np.int64) * first
    total = total + _centred(b, b_grid.zero_point).astype(np.int64) * (sign * second)
    rescaled = (total + (np.int64(1) << (shift - 1))) >> shift
    info = np.iinfo(out_grid.dtype)
    return np.asarray(
        np.clip(rescaled + out_grid.zero_point, info.min, info.max).astype(out_grid.dtype)
    )


def _is_inner_scalar(a: Array, b: Array) -> bool:
    """Say whether `a` has one element where `b` has many in the last dimension they differ."""
    rank = max(a.ndim, b.ndim)
    left, right = (1,) * (rank - a.ndim) + a.shape, (1,) * (rank - b.ndim) + b.shape
    for size_a, size_b in zip(reversed(left), reversed(right), strict=True):
        if size_a != 1 or size_b != 1:
            return bool(size_a == 1)
    return False


def _fixed_point_add(
    a: Array, a_grid: Grid, b: Array, b_grid: Grid, out_grid: Grid, arithmetic: Arithmetic
) -> Array:
    """Add as TFLite and TOSA do: both sides on a common grid 2^20 finer than twice the larger.

    Each side is at most 2^28 (8-bit codes shifted by 20), so int32 holds the sum.
    """
    largest = 2.0 * max(float(a_grid.scale), float(b_grid.scale))
    wide = np.zeros((), np.int32)
    total = np.zeros((), np.int64)
    for codes, grid in ((a, a_grid), (b, b_grid)):
        shifted = _centred(codes, grid.zero_point).astype(np.int64) << 20
        factor = np.asarray(np.float64(grid.scale) / largest)
        total = total + arithmetic.requantize(shifted, factor, wide, np.int32)
    back = np.asarray(largest / (2.0**20 * np.float64(out_grid.scale)))
    return arithmetic.requantize(total, back, out_grid.zero_point, out_grid.dtype)


def multiply(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    out_grid: Grid,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the codes of `a * b`, with broadcasting (QLinearMul): factor `(s_a * s_b) / s_y`.

    In MLAS the zero point is added before the rounding, so that ties go to even *codes*.
    """
    product = _centred(a, a_grid.zero_point).astype(np.int32) * _centred(b, b_grid.zero_point)
    factor = arithmetic.factor(a_grid.scale, b_grid.scale, over=out_grid.scale)
    fixed = arithmetic.rescale is not RescaleKind.FLOAT32
    if fixed or arithmetic.elementwise is Elementwise.XNNPACK:
        return arithmetic.requantize(product, factor, out_grid.zero_point, out_grid.dtype)
    real = product.astype(np.float32) * factor
    return _saturate(real + out_grid.zero_point.astype(np.float32), out_grid.dtype)


def global_average_pool(
    x: Array, x_grid: Grid, out_grid: Grid, arithmetic: Arithmetic = ORT_MLAS
) -> Array:
    """Return the codes of the mean over the spatial dimensions of `[N, C, *spatial]`.

    QLinearGlobalAveragePool: the int32 sum, with the factor `s_x / (s_y * count)`; XNNPACK's is
    `(s_x / s_y) * (1 / count)`, with the zero point added before the rounding.
    """
    axes = tuple(range(2, x.ndim))
    count = math.prod(x.shape[2:])
    total = _centred(x, x_grid.zero_point).sum(axis=axes, keepdims=True, dtype=np.int64)
    if arithmetic.elementwise is Elementwise.XNNPACK:
        share = np.float32(1) / np.float32(count)
        ratio = arithmetic.factor(arithmetic.factor(x_grid.scale, over=out_grid.scale), share)
        real = _wrapped(total, arithmetic).astype(np.float32) * ratio
        return _saturate(real + out_grid.zero_point.astype(np.float32), out_grid.dtype)
    over = arithmetic.factor(out_grid.scale, np.float32(count))
    factor = arithmetic.factor(x_grid.scale, over=over)
    accumulator = _wrapped(total, arithmetic)
    return arithmetic.requantize(accumulator, factor, out_grid.zero_point, out_grid.dtype)


def average_pool(
    x: Array,
    x_grid: Grid,
    out_grid: Grid,
    window: Window,
    *,
    count_pads: bool = False,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Return the codes of the mean over windows of `[N, C, *spatial]`.

    QLinearAveragePool sums the dequantized floats of a window in order, divides by the count and
    by `s_y`, and adds the zero point before the rounding.
    """
    rank = x.ndim - 2
    centred = _centred(x, x_grid.zero_point)
    count = _window_counts(x.shape[2:], window, count_pads=count_pads)
    if arithmetic.rescale is not RescaleKind.FLOAT32:
        taps = tuple(range(2 + rank, 2 + 2 * rank))
        total = window.view(centred, 0).sum(axis=taps, dtype=np.int64)
        factor = arithmetic.factor(x_grid.scale / count, over=out_grid.scale)
        return arithmetic.requantize(total, factor, out_grid.zero_point, out_grid.dtype)
    patches = window.view(centred.astype(np.float32) * x_grid.scale, 0)
    total = np.zeros(patches.shape[: 2 + rank], np.float32)
    for tap in np.ndindex(*window.kernel):  # the order of float sums is part of the result
        total += patches[(..., *tap)]
    real = total / count / out_grid.scale + out_grid.zero_point.astype(np.float32)
    return _saturate(real, out_grid.dtype)


def _window_counts(spatial: Sequence[int], window: Window, *, count_pads: bool) -> Array:
    """Return, as float32 `[*outputs]`, how many elements each window's mean is over."""
    rank = len(spatial)
    if count_pads:
        return np.full(window.output_size(spatial), math.prod(window.kernel), np.float32)
    ones = window.view(np.ones((1, 1, *spatial), np.float32), 0)[0, 0]
    return np.asarray(ones.sum(axis=tuple(range(rank, 2 * rank)), dtype=np.float32))


def max_pool(x: Array, window: Window) -> Array:
    """Return the largest code of each window of `[N, C, *spatial]`; borders never win."""
    patches = window.view(x, np.iinfo(x.dtype).min)
    rank = x.ndim - 2
    return np.asarray(patches.max(axis=tuple(range(2 + rank, 2 + 2 * rank))))


def quantize(x: Array, grid: Grid, arithmetic: Arithmetic = ORT_MLAS) -> Array:
    """Return the codes of floats; a per-channel grid must already broadcast (`Grid.along`)."""
    return arithmetic.quantize(x, grid.scale, grid.zero_point, grid.dtype)


def dequantize(codes: Array, grid: Grid) -> Array:
    """Return `float32(code - zero_point) * scale`; int32 codes as well."""
    if codes.dtype.itemsize == 1:
        return np.asarray(_centred(codes, grid.zero_point).astype(np.float32) * grid.scale)
    centred = codes.astype(np.int64) - grid.zero_point
    return np.asarray(centred.astype(np.float32) * grid.scale)


def requantize_codes(
    codes: Array, grid: Grid, out_grid: Grid, arithmetic: Arithmetic = ORT_MLAS
) -> Array:
    """Bring codes from one grid to another; codes that already lie on it stay as they are."""
    same = grid.scale == out_grid.scale and grid.zero_point == out_grid.zero_point
    if same and codes.dtype == out_grid.dtype:
        return codes
    if arithmetic.rescale is RescaleKind.FLOAT32:
        return quantize(dequantize(codes, grid), out_grid, arithmetic)
    factor = arithmetic.factor(grid.scale, over=out_grid.scale)
    centred = _centred(codes, grid.zero_point)
    return arithmetic.requantize(centred, factor, out_grid.zero_point, out_grid.dtype)


def concat(
    parts: Sequence[Array],
    grids: Sequence[Grid],
    out_grid: Grid,
    axis: int,
    arithmetic: Arithmetic = ORT_MLAS,
) -> Array:
    """Join codes along an axis, each brought to the output's grid (QLinearConcat)."""
    moved = [
        requantize_codes(part, grid, out_grid, arithmetic)
        for part, grid in zip(parts, grids, strict=True)
    ]
    return np.concatenate(moved, axis=axis)


def _fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """Return `a * b + c` in float32, rounded once.

    With 8-bit `a` the product has at most 32 bits and is exact in float64. The sum is exact too
    unless its terms lie more than 2^21 apart, where the smaller one hardly moves a code.
    """
    wide = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
    return np.asarray(wide.astype(np.float32))


def _saturate(real: Array, dtype: np.dtype[Any]) -> Array:
    info = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(real), info.min, info.max).astype(dtype))
