"""Sums and products of codes, element by element."""

from __future__ import annotations

import numpy as np

from edgeopt.errors import ConfigError
from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic, Elementwise, RescaleKind
from edgeopt.integer.grid import Array, Grid, centred, saturate


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
    return saturate(_fused_multiply_add(a.astype(np.float32), ratio_a, inner), out_grid.dtype)


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
    if not arithmetic.subtracts:
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
    total = centred(a, a_grid.zero_point).astype(np.int64) * first
    total = total + centred(b, b_grid.zero_point).astype(np.int64) * (sign * second)
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
        shifted = centred(codes, grid.zero_point).astype(np.int64) << 20
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
    product = centred(a, a_grid.zero_point).astype(np.int32) * centred(b, b_grid.zero_point)
    factor = arithmetic.factor(a_grid.scale, b_grid.scale, over=out_grid.scale)
    fixed = arithmetic.rescale is not RescaleKind.FLOAT32
    if fixed or arithmetic.elementwise is Elementwise.XNNPACK:
        return arithmetic.requantize(product, factor, out_grid.zero_point, out_grid.dtype)
    real = product.astype(np.float32) * factor
    return saturate(real + out_grid.zero_point.astype(np.float32), out_grid.dtype)


def _fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """Return `a * b + c` in float32, rounded once.

    With 8-bit `a` the product has at most 32 bits and is exact in float64. The sum is exact too
    unless its terms lie more than 2^21 apart, where the smaller one hardly moves a code.
    """
    wide = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
    return np.asarray(wide.astype(np.float32))
