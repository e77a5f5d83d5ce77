"""Between a model's floats and a file's pixels and codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeopt.artifacts.interface import IOQuantization, IOSpec, Method, Pixels, Preprocessing
from edgeopt.artifacts.io_forms import file_inputs, model_inputs, model_outputs
from edgeopt.data.pixels import to_input

EVERY_PIXEL = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
FRACTIONS = st.floats(0.01, 1.0)


def method(spec: IOSpec) -> Method:
    return Method("forward", (spec,), (spec,))


@given(
    mean=st.tuples(FRACTIONS, FRACTIONS, FRACTIONS), std=st.tuples(FRACTIONS, FRACTIONS, FRACTIONS)
)
def test_every_8_bit_picture_comes_back_to_the_bit(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    pictures = np.concatenate([EVERY_PIXEL, 255 - EVERY_PIXEL, EVERY_PIXEL], axis=3)
    spec = IOSpec("x", "uint8", pictures.shape, pixels=Pixels(mean, std))
    floats = model_inputs(method(spec), {"x": pictures})["x"]
    assert floats.shape == (1, 3, 16, 16)
    assert floats.dtype == np.float32
    # the very floats that the preprocessing of pictures gives
    description = Preprocessing(mean=mean, std=std)
    np.testing.assert_array_equal(
        floats[0], to_input(Image.fromarray(pictures[0]), description, "test")
    )
    np.testing.assert_array_equal(file_inputs(method(spec), {"x": floats})["x"], pictures)


def test_what_is_no_pixel_value_goes_to_the_nearest_and_saturates() -> None:
    spec = IOSpec("x", "uint8", (1, 1, 4, 1), pixels=Pixels((0.5,), (0.5,)))
    values = np.array([-3.0, -1.0 + 2 / 255 * 0.4, 0.999, 7.0], np.float32).reshape(1, 1, 1, 4)
    found = file_inputs(method(spec), {"x": values})["x"]
    assert found.shape == (1, 1, 4, 1)
    assert found.reshape(-1).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8"])
def test_codes_come_back_to_the_bit(dtype: str) -> None:
    limits = np.iinfo(dtype)
    codes = np.arange(limits.min, limits.max + 1).astype(dtype)
    quantization = IOQuantization(dtype, 0.037, 17)
    spec = method(IOSpec("x", dtype, codes.shape, quantization=quantization))
    floats = model_outputs(spec, {"x": codes})["x"]
    np.testing.assert_allclose(floats, 0.037 * (codes.astype(float) - 17), rtol=1e-6)
    np.testing.assert_array_equal(file_inputs(spec, {"x": floats})["x"], codes)
    far = file_inputs(spec, {"x": np.array([-1e9, 1e9], np.float32)})["x"]
    assert far.tolist() == [limits.min, limits.max]


def test_what_a_file_takes_as_it_is_passes_through() -> None:
    spec = method(IOSpec("x", "int64", (2,)))
    tokens = np.array([3, 4])
    for convert in (file_inputs, model_inputs, model_outputs):
        assert convert(spec, {"x": tokens})["x"] is tokens
