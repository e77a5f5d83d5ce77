"""What a file takes and gives: names, shapes, pixels, codes, preprocessing."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class IOQuantization:
    """Affine parameters of a quantized input or output."""

    dtype: str
    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class Pixels:
    """8-bit pixels in place of normalized floats: `float = (pixel / 255 - mean) / std`.

    Attributes:
        mean: Per channel.
        std: Per channel.
        layout: Of the pixels; the floats are NCHW.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NHWC"


@dataclasses.dataclass(frozen=True)
class IOSpec:
    """One input or output.

    Attributes:
        name: Its name in the file.
        dtype: `float32`, `int64`, ...
        shape: Sizes; a string names a dynamic dimension.
        role: `image`, `tokens`, `mask`, `position`, `cache`, `logits` or `tensor`.
        path: Where the leaf stands in the model's own arguments or outputs.
        quantization: Set where the file itself takes or gives codes.
        pixels: Set where the file takes 8-bit pixels and normalizes them itself.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: str = "tensor"
    path: str = ""
    quantization: IOQuantization | None = None
    pixels: Pixels | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry point of a file."""

    name: str
    inputs: tuple[IOSpec, ...]
    outputs: tuple[IOSpec, ...]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input, so that an app can repeat it.

    Pixels are scaled to [0, 1], then `(x - mean) / std` per channel.

    Attributes:
        resize: Short side after resizing, or 0: none.
        crop: Side of the centre crop, or 0: none.
        mean: Per channel.
        std: Per channel.
        channels: `RGB`, `BGR` or `L`.
        layout: `NCHW` or `NHWC`.
        interpolation: How pictures are resized.
    """

    resize: int = 0
    crop: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    interpolation: str = "bicubic"
