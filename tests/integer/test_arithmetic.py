"""Each rounding rule against exact rational numbers, and the table of ties."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import ConfigError
from edgeopt.integer import arithmetic as rules
from edgeopt.integer.arithmetic import ORT_MLAS, Arithmetic, RescaleKind, RoundingMode

INT32 = np.iinfo(np.int32)
FIXED = [m for m in RoundingMode if m is not RoundingMode.RNE_F32]

accumulators = st.one_of(
    st.integers(-(2**20), 2**20),
    st.integers(INT32.min, INT32.max),
    st.sampled_from([0, 1, -1, 2**24 + 1, INT32.max, INT32.min, INT32.min + 1]),
)
below_one = st.one_of(
    st.floats(2.0**-31, 0.999, exclude_max=True),
    st.integers(1, 31).map(lambda bits: 2.0**-bits),
    st.integers(1, 15).map(lambda k: (2 * k + 1) * 2.0**-9),
)


def floor_half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return floor_half_up(x) if x >= 0 else -floor_half_up(-x)


def exact_double(acc: int, factor: float) -> int:
    """gemmlowp in rationals: the high multiply rounds ties up, the shift rounds ties away."""
    multiplier, exponent = (int(v) for v in rules.quantize_multiplier(np.float64(factor)))
    left, right = max(exponent, 0), max(-exponent, 0)
    shifted = max(min(acc << left, INT32.max), INT32.min)
    high = floor_half_up(Fraction(shifted * multiplier, 2**31))
    return half_away(Fraction(high, 2**right))


def exact_single(acc: int, factor: float) -> int:
    multiplier, exponent = (int(v) for v in rules.quantize_multiplier(np.float64(factor)))
    return floor_half_up(acc * multiplier * Fraction(2) ** (exponent - 31))


def exact_rndnu(acc: int, factor: float) -> int:
    return floor_half_up(acc * Fraction(float(np.float32(factor))))


def exact_tosa_single(acc: int, factor: float) -> int:
    multiplier, shift = (int(v) for v in rules.tosa_multiplier(np.float64(factor)))
    return floor_half_up(Fraction(acc * multiplier, 2**shift))


def exact_tosa_double(acc: int, factor: float) -> int:
    """With a shift over 31, the value is first rounded at bit 31, its tie by its sign."""
    multiplier, shift = (int(v) for v in rules.tosa_multiplier(np.float64(factor)))
    if shift <= 31:
        return floor_half_up(Fraction(acc * multiplier, 2**shift))
    nudge = Fraction(1, 2) if acc >= 0 else Fraction(-1, 2)
    return math.floor(
        (Fraction(acc * multiplier, 2**31) + nudge) / 2 ** (shift - 31) + Fraction(1, 2)
    )


EXACT = {
    RoundingMode.DOUBLE: exact_double,
    RoundingMode.SINGLE: exact_single,
    RoundingMode.RNDNU: exact_rndnu,
    RoundingMode.TOSA_SINGLE: exact_tosa_single,
    RoundingMode.TOSA_DOUBLE: exact_tosa_double,
}


def rescaled(mode: RoundingMode, acc: int, factor: float) -> int:
    """Requantize into a type so wide that only the rescale is left."""
    values = np.array([acc], np.int32)
    zero = np.zeros((), np.int32)
    return int(rules.requantize(values, np.array(factor), zero, np.int32, mode)[0])


@pytest.mark.parametrize("mode", FIXED, ids=lambda m: m.value)
@settings(deadline=None)
@given(acc=accumulators, factor=below_one)
def test_fixed_point_equals_the_exact_rational(mode: RoundingMode, acc: int, factor: float) -> None:
    wanted = max(min(EXACT[mode](acc, factor), INT32.max), INT32.min)
    assert rescaled(mode, acc, factor) == wanted


@settings(deadline=None)
@given(acc=accumulators, factor=st.floats(1.0, 2.0**20))
def test_factors_over_one_shift_left(acc: int, factor: float) -> None:
    for mode in (RoundingMode.DOUBLE, RoundingMode.SINGLE, RoundingMode.TOSA_SINGLE):
        # int64 holds |acc| * 2^31 <= 2^62; the results saturate at int32.
        wanted = max(min(EXACT[mode](acc, factor), INT32.max), INT32.min)
        assert rescaled(mode, acc, factor) == wanted


@settings(deadline=None)
@given(
    acc=accumulators,
    factor=st.floats(2.0**-32, 256, width=32),
    zero=st.integers(0, 255),
    signed=st.booleans(),
)
def test_float32_rescale_rounds_the_float32_product_to_even(
    acc: int, factor: float, zero: int, signed: bool
) -> None:
    dtype = np.int8 if signed else np.uint8
    info = np.iinfo(dtype)
    zero = zero + info.min
    # A product of two float32 is exact in float64, so this rounds once, as float32 does.
    product = np.float32(np.float64(np.float32(acc)) * np.float64(np.float32(factor)))
    wanted = max(min(round(Fraction(float(product))) + zero, info.max), info.min)
    got = rules.requantize(
        np.array([acc], np.int32), np.float32(factor), np.array(zero), dtype, RoundingMode.RNE_F32
    )
    assert got.dtype == dtype
    assert int(got[0]) == wanted


@settings(deadline=None)
@given(acc=accumulators, factor=below_one)
def test_tosa_and_tflite_are_the_same_arithmetic(acc: int, factor: float) -> None:
    ours, theirs = (rules.tosa_multiplier(np.float64(factor)), rules.quantize_multiplier(factor))
    if ours[0] != theirs[0]:  # the multiplier itself is rounded at a tie: even, or away
        return
    single = rescaled(RoundingMode.SINGLE, acc, factor)
    assert rescaled(RoundingMode.TOSA_SINGLE, acc, factor) == single
    double = rescaled(RoundingMode.DOUBLE, acc, factor)
    assert rescaled(RoundingMode.TOSA_DOUBLE, acc, factor) == double


# Rows: factor, accumulator, then what each rule makes of the tie.
TIES = [
    (0.5, 1, {"double": 1, "single": 1, "rne_f32": 0}),
    (0.5, -1, {"double": 0, "single": 0, "rne_f32": 0}),
    (0.5, 3, {"double": 2, "single": 2, "rne_f32": 2}),
    (0.5, -3, {"double": -1, "single": -1, "rne_f32": -2}),
    (0.25, -2, {"double": -1, "single": 0, "rne_f32": 0}),
    (0.25, -6, {"double": -2, "single": -1, "rne_f32": -2}),
]


@pytest.mark.parametrize(("factor", "acc", "wanted"), TIES, ids=lambda v: str(v))
def test_ties_go_where_the_table_says(factor: float, acc: int, wanted: dict[str, int]) -> None:
    wanted = wanted | {
        "tosa_double": wanted["double"],
        "tosa_single": wanted["single"],
        "rndnu": wanted["single"],
    }
    got = {}
    for mode in RoundingMode:
        codes = rules.requantize(
            np.array([acc], np.int32), np.array(factor), np.zeros((), np.int32), np.int8, mode
        )
        got[mode.value] = int(codes[0])
    assert got == wanted


@pytest.mark.parametrize("mode", list(RoundingMode), ids=lambda m: m.value)
def test_saturates_at_both_ends_and_adds_the_zero_point(mode: RoundingMode) -> None:
    acc = np.array([INT32.min, -1000, 0, 1000, INT32.max], np.int32)
    codes = rules.requantize(acc, np.array(0.01), np.array(120), np.uint8, mode)
    assert codes.tolist() == [0, 110, 120, 130, 255]
    codes = rules.requantize(acc, np.array(0.01), np.array(-3), np.int8, mode)
    assert codes.tolist() == [-128, -13, -3, 7, 127]


def test_per_channel_factors_broadcast() -> None:
    acc = np.full((1, 3, 2), 100, np.int32)
    factor = np.array([0.1, 0.01, 0.0], np.float32).reshape(1, 3, 1)
    codes = ORT_MLAS.requantize(acc, factor, np.array(5), np.uint8)
    assert codes[0, :, 0].tolist() == [15, 6, 5]


@pytest.mark.parametrize(
    ("mode", "factor"),
    [
        (RoundingMode.RNDNU, 1.0),
        (RoundingMode.RNDNU, 2.0**-33),
        (RoundingMode.DOUBLE, 2.0**31),
        (RoundingMode.SINGLE, float("nan")),
        (RoundingMode.DOUBLE, -0.5),
        (RoundingMode.TOSA_DOUBLE, 2.0**29),
        (RoundingMode.TOSA_SINGLE, float("inf")),
    ],
    ids=str,
)
def test_refuses_factors_that_the_rule_cannot_hold(mode: RoundingMode, factor: float) -> None:
    with pytest.raises(ConfigError, match="rescale"):
        rules.requantize(np.ones(1, np.int32), np.array(factor), np.array(0), np.int8, mode)


def test_multiplier_is_renormalized_and_tiny_factors_vanish() -> None:
    multiplier, exponent = rules.quantize_multiplier(np.array([1 - 2.0**-40, 2.0**-40, 0.0]))
    assert multiplier.tolist() == [2**30, 0, 0]
    assert exponent.tolist() == [1, 0, 0]
    _, shift = rules.tosa_multiplier(np.array([2.0**-45]))
    assert shift.tolist() == [62]


def test_combined_scale_is_rounded_at_every_float32_step() -> None:
    a, w, y = np.float32(0.1), np.float32(0.3), np.float32(0.7)
    factor = ORT_MLAS.factor(a, w, over=y)
    assert factor.dtype == np.float32
    assert factor == np.float32(np.float32(a * w) / y)
    wide = Arithmetic("tosa", RoundingMode.TOSA_DOUBLE)
    assert wide.rescale is RescaleKind.FIXED_POINT
    assert wide.factor(a, w, over=y) == float(a) * float(w) / float(y)


def test_quantizes_by_a_true_division_and_takes_infinities() -> None:
    x = np.array([np.inf, -np.inf, 0.5, 1.5, -0.5, np.nan], np.float32)
    codes = ORT_MLAS.quantize(x, np.float32(1), np.array(10), np.uint8)
    assert codes.tolist() == [255, 0, 10, 12, 10, 0]


def test_accumulators_have_32_or_64_bits() -> None:
    with pytest.raises(ConfigError, match="48"):
        Arithmetic("odd", RoundingMode.DOUBLE, accumulator_bits=48)
