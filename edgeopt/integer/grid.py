"""Affine grids of codes, and the way onto them and between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic, RescaleKind

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


def centred(codes: Array, zero_point: Array) -> Array:
    """Return `codes - zero_point` in int16: two 8-bit types differ by at most 383."""
    return codes.astype(np.int16) - zero_point.astype(np.int16)


def wrapped(exact: Array, arithmetic: Arithmetic) -> Array:
    """Return sums as the accumulator holds them; the width wraps, as the machine's does."""
    wide = exact.astype(np.int64)
    return wide.astype(np.int32) if arithmetic.accumulator_bits == 32 else wide


def saturate(real: Array, dtype: np.dtype[Any]) -> Array:
    """Return codes of floats: rounded, ties to even, and clipped to the type's range."""
    info = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(real), info.min, info.max).astype(dtype))


def quantize(x: Array, grid: Grid, arithmetic: Arithmetic = ORT_MLAS) -> Array:
    """Return the codes of floats; a per-channel grid must already broadcast (`Grid.along`)."""
    return arithmetic.quantize(x, grid.scale, grid.zero_point, grid.dtype)


def dequantize(codes: Array, grid: Grid) -> Array:
    """Return `float32(code - zero_point) * scale`; int32 codes as well."""
    if codes.dtype.itemsize == 1:
        return np.asarray(centred(codes, grid.zero_point).astype(np.float32) * grid.scale)
    offsets = codes.astype(np.int64) - grid.zero_point
    return np.asarray(offsets.astype(np.float32) * grid.scale)


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
    offsets = centred(codes, grid.zero_point)
    return arithmetic.requantize(offsets, factor, out_grid.zero_point, out_grid.dtype)


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
