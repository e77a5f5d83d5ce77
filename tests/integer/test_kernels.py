"""The executor's kernels against loops over int64, and against exact float arithmetic."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import ConfigError
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import ORT_MLAS, XNNPACK, Arithmetic, RoundingMode
from edgeopt.integer.kernels import Grid, Window

# Rounded once: with two roundings up to 0.75 LSB is right.
TFLITE = Arithmetic("tflite", RoundingMode.SINGLE)
UNIT = Grid.of(1, 0, np.int8)
dtypes = st.sampled_from([np.int8, np.uint8])
scales = st.one_of(st.integers(-9, 0).map(lambda e: 2.0**e), st.floats(2.0**-13, 0.5, width=32))
seeds = st.integers(0, 2**32 - 1)


def codes_of(random: np.random.Generator, dtype: Any, shape: Any) -> np.ndarray[Any, Any]:
    """Draw codes: random, all at one end, or all alike."""
    info = np.iinfo(dtype)
    kind = random.integers(0, 4)
    if kind == 0:
        return random.choice(np.array([info.min, info.max], dtype), shape)
    if kind == 1:
        return np.full(shape, random.choice([info.min, 0, info.max]), dtype)
    return random.integers(info.min, info.max + 1, shape).astype(dtype)


def grid_of(random: np.random.Generator, dtype: Any, scale: float) -> Grid:
    info = np.iinfo(dtype)
    zero = random.choice([info.min, info.max, 0, random.integers(info.min, info.max + 1)])
    return Grid.of(scale, zero, dtype)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, a_type=dtypes, b_type=dtypes, per_column=st.booleans())
def test_matmul_accumulates_as_int64_does(
    seed: int, a_type: Any, b_type: Any, per_column: bool
) -> None:
    random = np.random.default_rng(seed)
    rows, depth, columns = random.integers(1, 40, 3)
    lead = (2, 3) if random.random() < 0.3 else ()
    a = codes_of(random, a_type, (*lead, rows, depth))
    b = codes_of(random, b_type, (*lead, depth, columns))
    a_zero = grid_of(random, a_type, 1).zero_point
    b_zero = grid_of(random, b_type, 1).zero_point
    if per_column:
        b_zero = codes_of(random, b_type, columns).astype(np.int32)
    wanted = (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)
    got = kernels.matmul_accumulator(a, a_zero, b, b_zero)
    assert got.dtype == np.int32
    assert np.array_equal(got, wanted)


def test_long_sums_leave_float32_and_stay_exact() -> None:
    # 255 * 127 * 8192 is over 2^24 (float32 would round) and under 2^31.
    a = np.full((1, 8192), 255, np.uint8)
    b = np.full((8192, 1), -127, np.int8)
    b[0] = -126
    zero = np.zeros((), np.int32)
    got = kernels.matmul_accumulator(a, zero, b, zero)
    assert got.item() == -255 * 127 * 8192 + 255


def test_an_accumulator_beyond_32_bits_wraps_or_is_wide() -> None:
    depth = 2**17  # 128 * 128 * 2^17 = 2^31
    a, b = np.full((1, depth), -128, np.int8), np.full((depth, 1), -128, np.int8)
    zero = np.zeros((), np.int32)
    assert kernels.matmul_accumulator(a, zero, b, zero).item() == -(2**31)
    wide = Arithmetic("wide", RoundingMode.RNE_F32, accumulator_bits=64)
    assert kernels.matmul_accumulator(a, zero, b, zero, wide).item() == 2**31
    bound = kernels.accumulator_bound(b.T, 0, (-128, 127), 0)
    assert bound.tolist() == [2**31]
    assert not kernels.fits_accumulator(bound)
    assert kernels.fits_accumulator(bound - 1)


CONVOLUTIONS = [
    # groups, channels, outputs, kernel, strides, pads, dilations
    pytest.param(1, 3, 5, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), id="strided"),
    pytest.param(1, 4, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), id="pointwise"),
    pytest.param(6, 6, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), id="depthwise"),
    pytest.param(3, 3, 6, (3, 3), (2, 1), (0, 1, 1, 0), (1, 1), id="depth-multiplier"),
    pytest.param(2, 4, 6, (3, 2), (1, 2), (1, 0, 2, 1), (1, 1), id="grouped-asymmetric"),
    pytest.param(1, 2, 3, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), id="dilated"),
    pytest.param(4, 4, 4, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), id="depthwise-dilated"),
    pytest.param(1, 3, 4, (5,), (2,), (2, 1), (1,), id="one-dimension"),
    pytest.param(1, 1, 2, (2, 2, 2), (1, 1, 1), (0, 1, 0, 1, 0, 1), (1, 1, 1), id="three"),
]


def brute_convolution(
    x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], window: Window, groups: int
) -> np.ndarray[Any, Any]:
    """Convolve centred int64 codes by loops over outputs and taps."""
    sizes = window.output_size(x.shape[2:])
    depth, per_group = w.shape[1], w.shape[0] // groups
    out = np.zeros((x.shape[0], w.shape[0], *sizes), np.int64)
    for o in range(w.shape[0]):
        first = (o // per_group) * depth
        for place in itertools.product(*map(range, sizes)):
            for tap in itertools.product(*map(range, window.kernel)):
                at = tuple(
                    p * s - b + t * d
                    for p, s, b, t, d in zip(
                        place,
                        window.strides,
                        window.pads,
                        tap,
                        window.dilations,
                        strict=False,
                    )
                )
                if all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True)):
                    block = x[(slice(None), slice(first, first + depth), *at)]
                    out[(slice(None), o, *place)] += block @ w[(o, slice(None), *tap)]
    return out


@pytest.mark.parametrize(
    ("groups", "channels", "outputs", "kernel", "strides", "pads", "dilations"), CONVOLUTIONS
)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_convolution_equals_the_loops(
    groups: int,
    channels: int,
    outputs: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    per_channel: bool,
) -> None:
    random = np.random.default_rng(outputs + channels)
    window = Window.of(kernel, strides, pads, dilations)
    for dtype in (np.int8, np.uint8):
        x = codes_of(random, dtype, (2, channels, *[7, 6, 5][: len(kernel)]))
        w = codes_of(random, np.int8, (outputs, channels // groups, *kernel))
        x_zero = grid_of(random, dtype, 1).zero_point
        shape = outputs if per_channel else ()
        w_zero = random.integers(-5, 6, shape).astype(np.int32)
        bias = random.integers(-(2**20), 2**20, outputs).astype(np.int32)
        got = kernels.conv_accumulator(
            x, x_zero, w, np.asarray(w_zero), window, groups=groups, bias=bias
        )
        centred = x.astype(np.int64) - x_zero
        filters = w.astype(np.int64) - np.reshape(w_zero, (-1, *[1] * (w.ndim - 1)))
        wanted = brute_convolution(centred, filters, window, groups)
        wanted += bias.reshape(1, -1, *[1] * len(kernel))
        assert got.dtype == np.int32
        assert np.array_equal(got, wanted)
        bound = kernels.accumulator_bound(
            w, w_zero, (np.iinfo(dtype).min, np.iinfo(dtype).max), int(x_zero), bias
        )
        assert kernels.fits_accumulator(bound)
        axes = (0, *range(2, got.ndim))
        assert np.all(np.abs(got.astype(np.int64)).max(axis=axes) <= bound)


def test_convolution_refuses_channels_that_do_not_fit() -> None:
    zero = np.zeros((), np.int32)
    x, w = np.zeros((1, 4, 5, 5), np.int8), np.zeros((2, 3, 1, 1), np.int8)
    with pytest.raises(ConfigError, match="4 channels"):
        kernels.conv_accumulator(x, zero, w, zero, Window.of((1, 1)))
    with pytest.raises(ConfigError, match="larger"):
        kernels.max_pool(x, Window.of((6, 6)))
    with pytest.raises(ConfigError, match="rank"):
        Window.of((3, 3), (1,))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, s_x=scales, s_w=scales, s_y=scales, dtype=dtypes)
def test_gemm_codes_are_the_rounded_real_numbers(
    seed: int, s_x: float, s_w: float, s_y: float, dtype: Any
) -> None:
    random = np.random.default_rng(seed)
    a, b = codes_of(random, dtype, (4, 16)), codes_of(random, np.int8, (16, 3))
    a_grid, out_grid = grid_of(random, dtype, s_x), grid_of(random, dtype, s_y)
    b_grid = Grid.of(s_w, 0, np.int8)
    bias = random.integers(-1000, 1000, 3).astype(np.int32)
    got = kernels.gemm(a, a_grid, b, b_grid, out_grid, bias=bias)
    acc = (a.astype(np.int64) - a_grid.zero_point) @ b.astype(np.int64) + bias
    info = np.iinfo(dtype)
    factor = Fraction(float(np.float32(s_x) * np.float32(s_w) / np.float32(s_y)))
    for value, code in zip(acc.reshape(-1), got.reshape(-1), strict=True):
        # |acc| < 2^24 is exact in float32; the product is rounded once.
        real = float(np.float32(float(int(value) * factor)))
        wanted = round(Fraction(real)) + int(out_grid.zero_point)
        assert code == max(min(wanted, info.max), info.min)


def test_gemm_with_float_output_rounds_before_it_adds_the_float_bias() -> None:
    random = np.random.default_rng(0)
    a, b = codes_of(random, np.uint8, (8, 64)), random.integers(-127, 128, (64, 5)).astype(np.int8)
    a_grid = Grid.of(0.013, 117, np.uint8)
    b_grid = Grid.of(np.linspace(0.001, 0.02, 5), 0, np.int8)
    int_bias, bias = np.arange(5, dtype=np.int32), np.linspace(-1, 1, 5).astype(np.float32)
    acc = kernels.matmul_accumulator(a, a_grid.zero_point, b, b_grid.zero_point)
    factor = np.float32(0.013) * b_grid.scale
    plain = kernels.gemm_float(a, a_grid, b, b_grid, bias=int_bias)
    assert plain.dtype == np.float32
    assert np.array_equal(plain, (acc + int_bias).astype(np.float32) * factor)
    shifted = kernels.gemm_float(a, a_grid, b, b_grid, float_bias=bias)
    assert np.array_equal(shifted, acc.astype(np.float32) * factor + bias)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, s_a=scales, s_b=scales, s_y=scales, dtype=dtypes)
@pytest.mark.parametrize("arithmetic", [ORT_MLAS, TFLITE], ids=["float32", "fixed-point"])
def test_elementwise_kernels_are_within_half_an_lsb(
    arithmetic: Arithmetic, seed: int, s_a: float, s_b: float, s_y: float, dtype: Any
) -> None:
    random = np.random.default_rng(seed)
    a, b = codes_of(random, dtype, 200), codes_of(random, dtype, 200)
    grids = [grid_of(random, dtype, s) for s in (s_a, s_b, s_y)]
    real_a = (a.astype(np.float64) - grids[0].zero_point) * np.float64(grids[0].scale)
    real_b = (b.astype(np.float64) - grids[1].zero_point) * np.float64(grids[1].scale)
    info = np.iinfo(dtype)
    for kernel, real in ((kernels.add, real_a + real_b), (kernels.multiply, real_a * real_b)):
        got = kernel(a, grids[0], b, grids[1], grids[2], arithmetic)
        ideal = real / np.float64(grids[2].scale) + grids[2].zero_point
        ideal = np.clip(ideal, info.min, info.max)
        # Half an LSB, and float32's (or the multiplier's) own error on sums of up to 2^22 LSB.
        assert (
            np.abs(got.astype(np.float64) - ideal).max() <= 0.5 + 2e-3 + np.abs(ideal).max() * 1e-6
        )


@settings(max_examples=60, deadline=None)
@given(seed=seeds, ratio_a=st.floats(-9, 7), ratio_b=st.floats(-9, 7), s_y=scales)
def test_xnnpacks_sums_are_as_exact_as_its_multipliers(
    seed: int, ratio_a: float, ratio_b: float, s_y: float
) -> None:
    random = np.random.default_rng(seed)
    a, b = codes_of(random, np.int8, 200), codes_of(random, np.int8, 200)
    sizes = (s_y * 2.0**ratio_a, s_y * 2.0**ratio_b, s_y)
    grids = [grid_of(random, np.int8, s) for s in sizes]
    reals = [
        (codes.astype(np.float64) - grid.zero_point) * np.float64(grid.scale)
        for codes, grid in zip((a, b), grids[:2], strict=True)
    ]
    # Both multipliers are within half of 2^(e - 20), e the larger exponent; differences of codes
    # are at most 255.
    exponent = np.floor(max(ratio_a, ratio_b) + 1e-6)
    slack = 0.5 + 2 * 0.5 * 255 * 2.0 ** (exponent - 20) + 1e-4
    for kernel, real in (
        (kernels.add, reals[0] + reals[1]),
        (kernels.subtract, reals[0] - reals[1]),
    ):
        got = kernel(a, grids[0], b, grids[1], grids[2], XNNPACK)
        ideal = np.clip(real / np.float64(grids[2].scale) + grids[2].zero_point, -128, 127)
        assert got.dtype == np.int8
        assert np.abs(got - ideal).max() <= slack


def test_xnnpacks_ties_go_up_in_sums_and_to_even_elsewhere() -> None:
    half, one = Grid.of(0.5, 0, np.int8), Grid.of(1.0, 0, np.int8)
    zero = np.zeros(4, np.int8)
    codes = np.array([1, 3, -1, -3], np.int8)  # 0.5, 1.5, -0.5, -1.5
    assert kernels.add(codes, half, zero, half, one, XNNPACK).tolist() == [1, 2, 0, -1]
    assert kernels.subtract(zero, half, codes, half, one, XNNPACK).tolist() == [0, -1, 1, 2]
    ones = np.ones(4, np.int8)
    odd = Grid.of(1.0, 1, np.int8)  # the product rounds 0.5 to 0, and then adds 1
    assert kernels.multiply(codes, half, ones, one, odd, XNNPACK).tolist() == [1, 3, 1, -1]
    pairs = np.stack([codes, zero], -1).reshape(1, 4, 2, 1)  # means 0.5, 1.5, -0.5, -1.5
    means = kernels.global_average_pool(pairs, one, odd, XNNPACK).reshape(-1)
    assert means.tolist() == [2, 2, 0, 0]  # 1.5, 2.5, 0.5, -0.5 to even


def test_only_xnnpack_subtracts() -> None:
    grid, codes = Grid.of(0.1, 0, np.int8), np.zeros(2, np.int8)
    with pytest.raises(ConfigError, match="ort_mlas: has no integer subtraction"):
        kernels.subtract(codes, grid, codes, grid, grid, ORT_MLAS)


def test_add_broadcasts_and_is_symmetric_for_a_constant() -> None:
    random = np.random.default_rng(3)
    a, b = codes_of(random, np.uint8, (2, 3, 4)), codes_of(random, np.uint8, (3, 1))
    grids = [Grid.of(0.1, 3, np.uint8), Grid.of(0.07, 9, np.uint8), Grid.of(0.15, 5, np.uint8)]
    one = kernels.add(a, grids[0], b, grids[1], grids[2])
    other = kernels.add(b, grids[1], a, grids[0], grids[2])
    assert one.shape == (2, 3, 4)
    assert np.array_equal(one, other)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, s_x=scales, s_y=scales, dtype=dtypes, count_pads=st.booleans())
@pytest.mark.parametrize("arithmetic", [ORT_MLAS, TFLITE], ids=["float32", "fixed-point"])
def test_average_pools_are_within_half_an_lsb(
    arithmetic: Arithmetic, seed: int, s_x: float, s_y: float, dtype: Any, count_pads: bool
) -> None:
    random = np.random.default_rng(seed)
    x = codes_of(random, dtype, (2, 3, 6, 5))
    x_grid, y_grid = grid_of(random, dtype, s_x), grid_of(random, dtype, s_y)
    window = Window.of((3, 2), (2, 1), (1, 0, 1, 1))
    got = kernels.average_pool(
        x, x_grid, y_grid, window, count_pads=count_pads, arithmetic=arithmetic
    )
    real = (x.astype(np.float64) - x_grid.zero_point) * np.float64(x_grid.scale)
    padded = torch.nn.functional.pad(torch.from_numpy(real), (0, 1, 1, 1))
    total = torch.nn.functional.avg_pool2d(padded, (3, 2), (2, 1), divisor_override=1).numpy()
    inside = torch.nn.functional.pad(torch.ones(1, 1, 6, 5), (0, 1, 1, 1))
    count = torch.nn.functional.avg_pool2d(inside, (3, 2), (2, 1), divisor_override=1).numpy()
    means = [total / (6 if count_pads else count), real.mean(axis=(2, 3), keepdims=True)]
    info = np.iinfo(dtype)
    pooled = [got, kernels.global_average_pool(x, x_grid, y_grid, arithmetic)]
    for codes, mean in zip(pooled, means, strict=True):
        ideal = np.clip(mean / np.float64(y_grid.scale) + y_grid.zero_point, info.min, info.max)
        assert codes.shape == ideal.shape
        # Half an LSB, and float32's own error on quotients of up to 2^22 LSB.
        assert np.abs(codes - ideal).max() <= 0.5 + 2e-3


@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
def test_max_pool_equals_torch(dtype: Any, ceil: bool) -> None:
    x = np.random.default_rng(1).integers(-100, 100, (2, 3, 8, 7)).astype(np.int8).view(dtype)
    window = Window.of((3, 2), (2, 2), (1, 1, 1, 1), ceil=ceil)
    got = kernels.max_pool(x, window)
    wanted = torch.nn.functional.max_pool2d(
        torch.from_numpy(x).double(), (3, 2), (2, 2), (1, 1), ceil_mode=ceil
    )
    assert got.dtype == dtype
    assert np.array_equal(got, wanted.numpy().astype(dtype))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, scale=scales, dtype=dtypes)
def test_codes_come_back_from_their_own_floats(seed: int, scale: float, dtype: Any) -> None:
    random = np.random.default_rng(seed)
    grid = grid_of(random, dtype, scale)
    codes = codes_of(random, dtype, 300)
    real = kernels.dequantize(codes, grid)
    assert real.dtype == np.float32
    assert np.array_equal(kernels.quantize(real, grid), codes)
    assert np.array_equal(kernels.requantize_codes(codes, grid, grid), codes)


def test_per_channel_grids_follow_their_axis() -> None:
    grid = Grid.of([0.5, 0.25], [1, -2], np.int8).along(1, 3)
    codes = np.full((1, 2, 1), 4, np.int8)
    assert kernels.dequantize(codes, grid).reshape(-1).tolist() == [1.5, 1.5]
    assert kernels.quantize(np.full((1, 2, 1), 1.5, np.float32), grid).tolist() == codes.tolist()
    bias = kernels.dequantize(np.array([2**24 + 1], np.int32), Grid.of(2.0, 0, np.int32))
    assert bias.tolist() == [2.0**25]  # int32 -> float32 rounds before the product


@pytest.mark.parametrize("arithmetic", [ORT_MLAS, TFLITE], ids=["float32", "fixed-point"])
def test_concat_moves_each_part_to_the_output_grid(arithmetic: Arithmetic) -> None:
    out = Grid.of(0.5, 10, np.uint8)
    parts = [np.array([[4, 8]], np.uint8), np.array([[250, 10]], np.uint8)]
    grids = [Grid.of(0.25, 0, np.uint8), Grid.of(0.5, 10, np.uint8)]
    got = kernels.concat(parts, grids, out, 1, arithmetic)
    assert got.tolist() == [[12, 14, 250, 10]]
    wide = [Grid.of(2.0, 0, np.uint8), grids[1]]
    assert kernels.concat(parts, wide, out, 1, arithmetic).tolist() == [[26, 42, 250, 10]]
