"""The dialect's operators against numpy, and their fake kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, storage_dtype

Array = np.ndarray
VALUES = st.floats(-100, 100, width=32)
SCALES = st.floats(2.0**-10, 4.0, width=32)
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int4": (-8, 7)}


def numpy_quantize(x: Array, scale: Array, zero: Array, low: int, high: int) -> Array:
    """`clamp(rne(x / scale) + zero)`, in float32 until rounded."""
    rounded = np.rint((x / scale).astype(np.float32)).astype(np.float64)
    return np.clip(rounded + zero, low, high).astype(np.int64)


def quantize(
    x: Array,
    scale: Array,
    zero: Array,
    kind: str = "int8",
    axis: int | None = None,
    block: list[int] | None = None,
) -> torch.Tensor:
    tensors = [torch.from_numpy(np.asarray(a)) for a in (x, scale, zero)]
    return QUANTIZE(*tensors, axis, block, kind, *RANGES[kind])


def dequantize(
    codes: torch.Tensor,
    scale: Array,
    zero: Array,
    kind: str = "int8",
    axis: int | None = None,
    block: list[int] | None = None,
) -> torch.Tensor:
    tensors = [torch.from_numpy(np.asarray(a)) for a in (scale, zero)]
    return DEQUANTIZE(codes, *tensors, axis, block, kind, torch.float32)


@settings(max_examples=150, deadline=None)
@given(
    x=hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=VALUES),
    scale=SCALES,
    kind=st.sampled_from(sorted(RANGES)),
    data=st.data(),
)
def test_per_tensor_is_what_numpy_gives(
    x: Array, scale: float, kind: str, data: st.DataObject
) -> None:
    low, high = RANGES[kind]
    zero = data.draw(st.integers(low, high))
    step, offset = np.float32(scale), np.array(zero, np.int32)
    codes = quantize(x, np.array(step), offset, kind)
    want = numpy_quantize(x, step, offset, low, high)
    assert codes.dtype == storage_dtype(kind)
    np.testing.assert_array_equal(codes.numpy(), want)
    real = dequantize(codes, np.array(step), offset, kind)
    np.testing.assert_array_equal(real.numpy(), (want - zero).astype(np.float32) * step)


@settings(max_examples=100, deadline=None)
@given(
    x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=VALUES),
    data=st.data(),
)
def test_per_channel_is_per_tensor_on_each_channel(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    channels = x.shape[axis]
    scale = data.draw(hnp.arrays(np.float32, channels, elements=SCALES))
    zero = data.draw(hnp.arrays(np.int8, channels, elements=st.integers(-128, 127)))
    codes = quantize(x, scale, zero, axis=axis)
    real = dequantize(codes, scale, zero, axis=axis)
    for channel in range(channels):
        part = np.take(x, channel, axis)
        one = quantize(part, scale[channel], zero[channel])
        np.testing.assert_array_equal(np.take(codes.numpy(), channel, axis), one.numpy())
        back = dequantize(one, scale[channel], zero[channel])
        np.testing.assert_array_equal(np.take(real.numpy(), channel, axis), back.numpy())


@pytest.mark.parametrize("block", [[1, 4], [2, 4], [2, 1]])
def test_blocks_share_a_scale(block: list[int]) -> None:
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    shape = (4 // block[0], 8 // block[1])
    scale = np.random.default_rng(1).uniform(0.01, 0.1, size=shape).astype(np.float32)
    zero = np.random.default_rng(2).integers(-3, 3, size=shape).astype(np.int8)
    codes = quantize(x, scale, zero, "int4", block=block)
    real = dequantize(codes, scale, zero, "int4", block=block)
    for row in range(4):
        for column in range(8):
            at = (row // block[0], column // block[1])
            want = numpy_quantize(x[row, column], scale[at], zero[at], -8, 7)
            assert int(codes[row, column]) == want
            assert float(real[row, column]) == np.float32(want - zero[at]) * scale[at]


def test_ties_round_to_even() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)
    codes = quantize(x, np.float32(1.0), np.int8(0))
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2, 4]
    # the zero point is added after rounding, so an odd one moves no tie
    assert quantize(x, np.float32(1.0), np.int8(1)).tolist() == [-1, -1, 1, 1, 3, 3, 5]


def test_the_division_is_a_true_one() -> None:
    scale = np.random.default_rng(0).uniform(0.01, 1.0, size=(200, 1)).astype(np.float32)
    x = (np.arange(-128, 127, dtype=np.float32) + np.float32(0.5)) * scale  # at the ties
    zero = np.zeros(200, np.int8)
    want = np.clip(np.rint(x / scale), -128, 127)
    by_reciprocal = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
    assert (want != by_reciprocal).any()  # so that this test can fail
    np.testing.assert_array_equal(quantize(x, scale[:, 0], zero, axis=0).numpy(), want)


def test_values_beyond_the_range_saturate() -> None:
    x = np.array([-1e30, -np.inf, np.inf, 1e30], np.float32)
    assert quantize(x, np.float32(0.1), np.int8(3)).tolist() == [-128, -128, 127, 127]
    assert quantize(x, np.float32(0.1), np.uint8(3), "uint8").tolist() == [0, 0, 255, 255]


def test_the_difference_of_codes_does_not_wrap() -> None:
    codes = torch.tensor([-128, 127], dtype=torch.int8)
    real = dequantize(codes, np.float32(1.0), np.int8(127))
    assert real.tolist() == [-255.0, 0.0]
    wide = torch.tensor([0, 255], dtype=torch.uint8)
    assert dequantize(wide, np.float32(1.0), np.uint8(255), "uint8").tolist() == [-255.0, 0.0]


def test_half_precision_inputs_are_divided_in_float32() -> None:
    x = torch.tensor([1.5, 2.5], dtype=torch.float16)
    codes = QUANTIZE(x, torch.tensor(1.0), torch.tensor(0), None, None, "int8", -128, 127)
    assert codes.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "quantize",
            (torch.randn(2, 3), torch.tensor(0.1), torch.tensor(3), None, None, "uint8", 0, 255),
        ),
        (
            "quantize",
            (torch.randn(2, 3), torch.rand(3) + 1, torch.zeros(3), 1, None, "int16", -9, 9),
        ),
        (
            "dequantize",
            (
                torch.ones(2, 4, dtype=torch.int8),
                torch.rand(2, 2),
                torch.zeros(2, 2, dtype=torch.int8),
                None,
                [1, 2],
                "int4",
                torch.float32,
            ),
        ),
    ],
    ids=["quantize", "per channel", "blocks"],
)
def test_fake_kernels_agree_with_the_real_ones(name: str, arguments: tuple[object, ...]) -> None:
    operator = getattr(torch.ops.edgeopt, name).default
    # the schema, the fake kernel's shapes and types, under fixed and under dynamic shapes
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_an_unknown_type_of_codes_is_an_error() -> None:
    with pytest.raises(KeyError):
        storage_dtype("float8")
