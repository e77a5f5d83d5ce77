"""scikit-learn's handwritten digits as images, with a fixed held-out split.

The 1797 pictures (8 x 8, 17 grey levels) are the test part of the UCI "Optical Recognition of
Handwritten Digits" set; they ship inside scikit-learn, so any machine has them offline.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TRAIN_SAMPLES = 1197
SPLIT_SEED = 20240917


@functools.cache
def _arrays() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32))[:, None]
    return images / 8.0 - 1.0, torch.from_numpy(np.asarray(data.target, dtype=np.int64))


def load(split: str, image_size: int) -> tuple[Tensor, Tensor]:
    """Return images float32 [N, 1, S, S] in [-1, 1] and labels int64 [N].

    Args:
        split: `train` (1197 pictures) or `test` (600 held-out pictures).
        image_size: The pictures are scaled up from 8 x 8 to this size, bilinear.

    Raises:
        ValueError: For any other split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is train or test, not {split!r}")
    images, labels = _arrays()
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(images)))
    chosen = order[:TRAIN_SAMPLES] if split == "train" else order[TRAIN_SAMPLES:]
    scaled = F.interpolate(
        images[chosen], size=(image_size, image_size), mode="bilinear", align_corners=False
    )
    return scaled, labels[chosen]
