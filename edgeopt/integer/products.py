"""Matrix products and convolutions of codes.

Accumulators are exact: products are summed in float32 or float64 matrix products only where a bound
proves that every partial sum is an integer which the type holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeopt.errors import ConfigError
from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic
from edgeopt.integer.grid import Array, Grid, centred, wrapped
from edgeopt.integer.window import Window


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
    left, right = centred(a, a_zero), centred(b, b_zero)
    kind = _product_type(left, right, a.shape[-1])
    return wrapped(np.matmul(left.astype(kind), right.astype(kind)), arithmetic)


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
    offsets = centred(x, x_zero)
    filters = centred(weight, weight_zero.reshape(-1, *[1] * (weight.ndim - 1)))
    kind = _product_type(offsets, filters, math.prod(weight.shape[1:]))
    patches = window.view(offsets.astype(kind), 0)
    filters = filters.astype(kind)
    sizes = patches.shape[2 : x.ndim]
    if depth == 1 and outputs == groups:
        exact = _depthwise(patches, filters, len(sizes))
    else:
        exact = _grouped(patches, filters, groups, len(sizes)).reshape(batch, outputs, *sizes)
    accumulator = wrapped(exact, arithmetic)
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
