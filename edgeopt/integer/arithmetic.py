"""How runtimes bring a 32-bit accumulator back to 8-bit codes, to the bit.

With an accumulator `acc`, a real factor `M = s_a s_w / s_y` and an output zero point `z`:
`q = clip(round(acc * M) + z)`. Runtimes differ in how `M` is held and in where ties go.
Clamping to integers before or after the rounding is the same number, so it is no choice here.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeopt.errors import ConfigError

Array = np.ndarray[Any, Any]


class RescaleKind(enum.Enum):
    """How the real factor `M` is held."""

    FLOAT32 = "float32"
    FIXED_POINT = "fixed point"


class RoundingMode(enum.Enum):
    """How `acc * M` becomes an integer.

    Attributes:
        RNE_F32: float32 factor and product, ties to even (MLAS, XNNPACK's fp32 kernels).
        DOUBLE: 31-bit multiplier, then a shift, each rounded (TFLite, gemmlowp).
        SINGLE: 31-bit multiplier and shift, rounded once, ties up (TFLite's other build).
        RNDNU: 24-bit multiplier and shift, rounded once, ties up (XNNPACK on older Arm).
        TOSA_SINGLE: RESCALE of the TOSA specification.
        TOSA_DOUBLE: The same with `double_round`.
    """

    RNE_F32 = "rne_f32"
    DOUBLE = "double"
    SINGLE = "single"
    RNDNU = "rndnu"
    TOSA_SINGLE = "tosa_single"
    TOSA_DOUBLE = "tosa_double"


class Elementwise(enum.Enum):
    """How a runtime with float32 rescales computes what has no accumulator of products.

    Attributes:
        MLAS: quantize divides by the scale; add is two float32 multiply-adds; a product adds its
            zero point before it rounds, a mean after; a mean over n has the factor
            `s_x / (s_y * n)`.
        XNNPACK: quantize multiplies by `1 / s`; add works in integers, with multipliers of 21 bits
            and a shift, ties up; a product adds its zero point after it rounds, a mean before; a
            mean over n has the factor `(s_x / s_y) * (1 / n)`.
    """

    MLAS = "mlas"
    XNNPACK = "xnnpack"


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The integer arithmetic of a runtime.

    Attributes:
        name: As reports call it.
        rounding: How accumulators are rescaled and rounded.
        accumulator_bits: Width of the accumulator; sums beyond it wrap.
        elementwise: How quantize, add, multiply and mean are computed where rescales are float32.
    """

    name: str
    rounding: RoundingMode
    accumulator_bits: int = 32
    elementwise: Elementwise = Elementwise.MLAS

    def __post_init__(self) -> None:
        if self.accumulator_bits not in (32, 64):
            raise ConfigError(
                f"arithmetic {self.name}: accumulators have 32 or 64 bits, "
                f"not {self.accumulator_bits}"
            )

    @property
    def rescale(self) -> RescaleKind:
        """How the factor is held."""
        if self.rounding is RoundingMode.RNE_F32:
            return RescaleKind.FLOAT32
        return RescaleKind.FIXED_POINT

    @property
    def subtracts(self) -> bool:
        """Whether the runtime has an integer subtraction; only XNNPACK's is known."""
        return self.elementwise is Elementwise.XNNPACK

    def factor(self, *scales: Array | np.float32, over: Array | np.float32 | None = None) -> Array:
        """Return the product of scales, divided by `over`.

        float32 at every step and from left to right where the runtime computes it so, else
        float64.

        Args:
            scales: Broadcastable.
            over: The output's scale, or None.
        """
        dtype = np.float32 if self.rescale is RescaleKind.FLOAT32 else np.float64
        product = np.asarray(scales[0], dtype)
        for scale in scales[1:]:
            product = np.asarray(product * np.asarray(scale, dtype))
        return product if over is None else np.asarray(product / np.asarray(over, dtype))

    def requantize(self, accumulator: Array, factor: Array, zero_point: Array, dtype: Any) -> Array:
        """Return the codes of accumulators; see `requantize`."""
        return requantize(accumulator, factor, zero_point, dtype, self.rounding)

    def quantize(self, x: Array, scale: Array, zero_point: Array, dtype: Any) -> Array:
        """Return the codes of floats: `clip(rne(x / scale) + zero_point)` in float32.

        XNNPACK multiplies by the float32 reciprocal of the scale instead.

        Args:
            x: float32.
            scale: float32, broadcastable against `x`.
            zero_point: Integer, broadcastable against `x`.
            dtype: Of the codes.
        """
        x = x.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities saturate
            if self.elementwise is Elementwise.XNNPACK:
                return _to_codes(x * (np.float32(1) / scale), zero_point, dtype)
            return _to_codes(x / scale, zero_point, dtype)


ORT_MLAS = Arithmetic("ort_mlas", RoundingMode.RNE_F32)
XNNPACK = Arithmetic("xnnpack", RoundingMode.RNE_F32, elementwise=Elementwise.XNNPACK)
"""XNNPACK's float32 rescale: x86, and 64-bit Arm for weights with one scale a channel."""


def requantize(
    accumulator: Array, factor: Array, zero_point: Array, dtype: Any, rounding: RoundingMode
) -> Array:
    """Return `clip(round(accumulator * factor) + zero_point)`.

    Args:
        accumulator: int32 of any shape.
        factor: Real and not negative, broadcastable; float32 for `RNE_F32`, else float64.
        zero_point: Integer, broadcastable.
        dtype: Of the codes: int8, uint8, int16 or uint16.
        rounding: The rule.

    Raises:
        ConfigError: If a factor is outside what the rule can hold.
    """
    if rounding is RoundingMode.RNE_F32:
        # int32 -> float32 rounds to even above 2^24, as the runtime's conversion does.
        product = accumulator.astype(np.float32) * np.asarray(factor, np.float32)
        return _to_codes(product, zero_point, dtype)
    rescaled = _FIXED_POINT[rounding](accumulator, np.asarray(factor, np.float64))
    info = np.iinfo(dtype)
    shifted = rescaled + np.asarray(zero_point, np.int64)
    return np.asarray(np.clip(shifted, info.min, info.max).astype(dtype))


def _to_codes(real: Array, zero_point: Array, dtype: Any) -> Array:
    """Return `clip(rne(real), qmin - z, qmax - z) + z`; float32 holds both bounds exactly."""
    info = np.iinfo(dtype)
    zero = np.asarray(zero_point).astype(np.float32)
    low, high = np.float32(info.min) - zero, np.float32(info.max) - zero
    # A minimum by `fmin` takes the bound where the value is not a number, as the kernels do.
    clamped = np.fmin(np.fmax(real, low), high)
    return np.asarray((np.rint(clamped) + zero).astype(dtype))


def quantize_multiplier(factor: Array) -> tuple[Array, Array]:
    """Return TFLite's `(m, e)` with `factor = m * 2^(e - 31)`, `m` in [2^30, 2^31).

    `m = round_half_away(f * 2^31)` of `factor = f * 2^e`, `f` in [0.5, 1); a factor under 2^-32
    becomes (0, 0).

    Args:
        factor: float64, not negative.

    Raises:
        ConfigError: If a factor is negative, not finite, or 2^31 and more.
    """
    factor = np.asarray(factor, np.float64)
    if not bool(np.all((factor >= 0) & (factor < 2.0**31))):
        raise ConfigError("rescale: a factor must be finite, not negative and under 2^31")
    fraction, exponent = np.frexp(factor)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carry = multiplier == 1 << 31
    multiplier = np.where(carry, multiplier >> 1, multiplier)
    exponent = np.where(carry, exponent + 1, exponent).astype(np.int64)
    vanishes = exponent < -31
    return np.where(vanishes, 0, multiplier), np.where(vanishes, 0, exponent)


def double_rounding(accumulator: Array, factor: Array) -> Array:
    """Return TFLite's default: a rounding high multiply, then a rounding shift.

    `x1 = SRDHM(acc << max(e, 0), m)`, `y = RDBP(x1, max(-e, 0))`. |ab| <= 2^62 fits int64.
    """
    multiplier, exponent = quantize_multiplier(factor)
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    info = np.iinfo(np.int32)
    # What does not fit int32 here is beyond every 8- or 16-bit range, so saturation is exact.
    shifted = np.clip(accumulator.astype(np.int64) << left, info.min, info.max)
    product = shifted * multiplier
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    # Division by 2^31 truncates toward zero; an arithmetic shift alone rounds down.
    total = product + nudge
    high = (total + np.where(total < 0, (1 << 31) - 1, 0)) >> 31
    return rounding_shift(high, right)


def rounding_shift(value: Array, bits: Array) -> Array:
    """Return `value / 2^bits` to the nearest, ties away from zero (gemmlowp's RDBP)."""
    mask = (np.int64(1) << bits) - 1
    remainder = value & mask
    threshold = (mask >> 1) + (value < 0)
    return np.asarray((value >> bits) + (remainder > threshold))


def single_rounding(accumulator: Array, factor: Array) -> Array:
    """Return `(acc * m + 2^(t-1)) >> t`, `t = 31 - e`: nearest, ties up. Fits int64 for e <= 30."""
    multiplier, exponent = quantize_multiplier(factor)
    shift = 31 - np.minimum(exponent, 30)
    return _multiply_shift(accumulator, multiplier, shift)


def rndnu(accumulator: Array, factor: Array) -> Array:
    """Return XNNPACK's `(acc * mul + 2^(shift-1)) >> shift` with the float32's own 24-bit `mul`.

    Raises:
        ConfigError: If a factor is outside [2^-32, 1).
    """
    held = np.asarray(factor, np.float32)
    if not bool(np.all((held >= 2.0**-32) & (held < 1))):
        raise ConfigError("rescale rndnu: a factor must be in [2^-32, 1)")
    bits = held.view(np.uint32).astype(np.int64)
    multiplier = (bits & 0x007FFFFF) | 0x00800000
    shift = 127 + 23 - (bits >> 23)
    return _multiply_shift(accumulator, multiplier, shift)


def tosa_multiplier(factor: Array) -> tuple[Array, Array]:
    """Return TOSA's `(m, shift)`, `factor = m / 2^shift`, 2 <= shift <= 62.

    `m = rne(f * 2^31)`; under 2^-31 the multiplier loses bits so that the shift stays legal.

    Raises:
        ConfigError: If a factor is negative, not finite, or 2^29 and more.
    """
    factor = np.asarray(factor, np.float64)
    if not bool(np.all((factor >= 0) & (factor < 2.0**29))):
        raise ConfigError("rescale tosa: a factor must be finite, not negative and under 2^29")
    fraction, exponent = np.frexp(factor)
    multiplier = np.rint(fraction * 2.0**31).astype(np.int64)
    carry = multiplier == 1 << 31
    multiplier = np.where(carry, multiplier >> 1, multiplier)
    shift = 31 - np.where(carry, exponent + 1, exponent).astype(np.int64)
    if bool(np.any(shift < 2)):
        raise ConfigError("rescale tosa: a factor must be finite, not negative and under 2^29")
    excess = np.clip(shift - 62, 0, 63)
    return multiplier >> excess, np.minimum(shift, 62)


def apply_scale_32(value: Array, multiplier: Array, shift: Array, *, double_round: bool) -> Array:
    """Return TOSA's apply_scale_32: `(value * m + r) >> shift`, in int64.

    `r = 2^(shift-1)`, and with double rounding and shift > 31 also `+- 2^30` by the value's sign.
    """
    value = value.astype(np.int64)
    offset = np.int64(1) << (shift - 1)
    if double_round:
        signed = np.where(value >= 0, 1 << 30, -(1 << 30))
        offset = offset + np.where(shift > 31, signed, 0)
    return np.asarray((value * multiplier + offset) >> shift)


def tosa_single(accumulator: Array, factor: Array) -> Array:
    """Return TOSA's RESCALE with single rounding."""
    return apply_scale_32(accumulator, *tosa_multiplier(factor), double_round=False)


def tosa_double(accumulator: Array, factor: Array) -> Array:
    """Return TOSA's RESCALE with double rounding."""
    return apply_scale_32(accumulator, *tosa_multiplier(factor), double_round=True)


def _multiply_shift(accumulator: Array, multiplier: Array, shift: Array) -> Array:
    offset = np.int64(1) << (shift - 1)
    return np.asarray((accumulator.astype(np.int64) * multiplier + offset) >> shift)


_FIXED_POINT: dict[RoundingMode, Callable[[Array, Array], Array]] = {
    RoundingMode.DOUBLE: double_rounding,
    RoundingMode.SINGLE: single_rounding,
    RoundingMode.RNDNU: rndnu,
    RoundingMode.TOSA_SINGLE: tosa_single,
    RoundingMode.TOSA_DOUBLE: tosa_double,
}
