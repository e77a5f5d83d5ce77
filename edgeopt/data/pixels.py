"""From a picture to a model's input, exactly as `Preprocessing` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def check_preprocessing(p: Preprocessing, where: str) -> Preprocessing:
    """Return a description that can be carried out.

    Raises:
        DataError: For unknown channels or layout, a wrong number of means, or a zero `std`.
    """
    if p.channels not in ("RGB", "BGR", "L"):
        raise DataError(f"{where}: channels is RGB, BGR or L, not {p.channels!r}")
    if p.layout not in ("NCHW", "NHWC"):
        raise DataError(f"{where}: layout is NCHW or NHWC, not {p.layout!r}")
    if p.resize < 0 or p.crop < 0:
        raise DataError(f"{where}: resize and crop are pixels, or 0 for none")
    depth = 1 if p.channels == "L" else 3
    for key, values in (("mean", p.mean), ("std", p.std)):
        if len(values) not in (1, depth) or not np.isfinite(values).all():
            raise DataError(f"{where}: {key} takes 1 or {depth} numbers, not {values}")
    if min(p.std) <= 0:
        raise DataError(f"{where}: std must be over 0, not {p.std}")
    return p


def to_input(
    picture: Image.Image | np.ndarray[Any, Any], p: Preprocessing, where: str
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Resize (bicubic, short side), crop the centre, and scale.

    Args:
        picture: A picture, or 8-bit pixels `[H, W]`, `[H, W, 1]` or `[H, W, 3]` (RGB).
        p: What to do.
        where: Named first in messages.

    Returns:
        float32 `[C, H, W]`, or `[H, W, C]` for layout NHWC: `(pixel / 255 - mean) / std`.

    Raises:
        DataError: If the picture is smaller than the crop, or has over 8 bits a channel.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.mode.startswith(("I", "F")):
        # Converting these to 8 bits clips instead of scaling.
        raise DataError(f"{where}: more than 8 bits a channel; convert it to 8 bits")
    picture = picture.convert("L" if p.channels == "L" else "RGB")
    width, height = picture.size
    if p.resize and min(width, height) != p.resize:
        scale = p.resize / min(width, height)
        size = (max(p.resize, round(width * scale)), max(p.resize, round(height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        width, height = picture.size
    if p.crop:
        if min(width, height) < p.crop:
            raise DataError(
                f"{where}: {width} x {height} pixels, smaller than the crop of {p.crop}; "
                f"add resize={p.crop}"
            )
        left, top = (width - p.crop) // 2, (height - p.crop) // 2
        picture = picture.crop((left, top, left + p.crop, top + p.crop))
    values = np.asarray(picture, dtype=np.float32).reshape(picture.height, picture.width, -1)
    if p.channels == "BGR":
        values = values[..., ::-1]
    mean, std = np.asarray(p.mean, np.float32), np.asarray(p.std, np.float32)
    scaled = (values / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled if p.layout == "NHWC" else scaled.transpose(2, 0, 1))
