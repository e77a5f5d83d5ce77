"""Means and maxima of codes over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic, Elementwise, RescaleKind
from edgeopt.integer.grid import Array, Grid, centred, saturate, wrapped
from edgeopt.integer.window import Window


def global_average_pool(
    x: Array, x_grid: Grid, out_grid: Grid, arithmetic: Arithmetic = ORT_MLAS
) -> Array:
    """Return the codes of the mean over the spatial dimensions of `[N, C, *spatial]`.

    QLinearGlobalAveragePool: the int32 sum, with the factor `s_x / (s_y * count)`; XNNPACK's is
    `(s_x / s_y) * (1 / count)`, with the zero point added before the rounding.
    """
    axes = tuple(range(2, x.ndim))
    count = math.prod(x.shape[2:])
    total = centred(x, x_grid.zero_point).sum(axis=axes, keepdims=True, dtype=np.int64)
    if arithmetic.elementwise is Elementwise.XNNPACK:
        share = np.float32(1) / np.float32(count)
        ratio = arithmetic.factor(arithmetic.factor(x_grid.scale, over=out_grid.scale), share)
        real = wrapped(total, arithmetic).astype(np.float32) * ratio
        return saturate(real + out_grid.zero_point.astype(np.float32), out_grid.dtype)
    over = arithmetic.factor(out_grid.scale, np.float32(count))
    factor = arithmetic.factor(x_grid.scale, over=over)
    accumulator = wrapped(total, arithmetic)
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
    offsets = centred(x, x_grid.zero_point)
    count = _window_counts(x.shape[2:], window, count_pads=count_pads)
    if arithmetic.rescale is not RescaleKind.FLOAT32:
        taps = tuple(range(2 + rank, 2 + 2 * rank))
        total = window.view(offsets, 0).sum(axis=taps, dtype=np.int64)
        factor = arithmetic.factor(x_grid.scale / count, over=out_grid.scale)
        return arithmetic.requantize(total, factor, out_grid.zero_point, out_grid.dtype)
    patches = window.view(offsets.astype(np.float32) * x_grid.scale, 0)
    total = np.zeros(patches.shape[: 2 + rank], np.float32)
    for tap in np.ndindex(*window.kernel):  # the order of float sums is part of the result
        total += patches[(..., *tap)]
    real = total / count / out_grid.scale + out_grid.zero_point.astype(np.float32)
    return saturate(real, out_grid.dtype)


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
