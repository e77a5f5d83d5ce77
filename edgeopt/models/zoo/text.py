"""The reference text that ships inside CPython, as bytes for a language model.

`pydoc_data.topics` is the part of the language reference that `help()` prints, about 0.45 MB of
English and Python. It differs between releases of Python, so a figure measured on it names the
version. A paragraph belongs to a split by a hash of its words: a release that rewraps, quotes or
inserts paragraphs moves no other one from the training text into the held-out text.
"""

from __future__ import annotations

import functools
import hashlib
import re

import numpy as np
import torch
from torch import Tensor

# Of 256 hash values: the rest is training text.
EVALUATION_SHARE = 26
CALIBRATION_SHARE = 12

SPLITS = ("train", "calibration", "evaluation")


def split_of(paragraph: str) -> str | None:
    """Return the split of a paragraph; None if it has no letter or digit.

    Spacing, punctuation and case do not count: they are what a new release of the
    documentation tools changes.
    """
    words = re.sub(r"[\W_]+", "", paragraph).lower()
    if not words:
        return None
    value = hashlib.sha256(words.encode()).digest()[0]
    if value < EVALUATION_SHARE:
        return "evaluation"
    return "calibration" if value < EVALUATION_SHARE + CALIBRATION_SHARE else "train"


@functools.cache
def paragraphs(split: str) -> tuple[str, ...]:
    """Return the paragraphs of a split in the order of the topics' names, each text once.

    Raises:
        ValueError: For a split other than `train`, `calibration` and `evaluation`.
    """
    if split not in SPLITS:
        raise ValueError(f"split is train, calibration or evaluation, not {split!r}")
    from pydoc_data.topics import topics

    found = (part for name in sorted(topics) for part in topics[name].split("\n\n"))
    return tuple(dict.fromkeys(part for part in found if split_of(part) == split))


@functools.cache
def load(split: str) -> Tensor:
    """Return a split as one text, uint8 [N]: UTF-8, paragraphs parted by an empty line.

    Raises:
        ValueError: For an unknown split.
    """
    text = "\n\n".join(paragraphs(split)).encode()
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def windows(split: str, length: int) -> tuple[Tensor, Tensor]:
    """Cut a split into windows that do not overlap.

    Returns:
        Tokens and labels, both int64 [windows, length]: each label is the byte after its token.

    Raises:
        ValueError: For an unknown split, or a length that the text does not fill once.
    """
    text = load(split).long()
    count = (len(text) - 1) // length if length > 0 else 0
    if not count:
        raise ValueError(f"{split} has {len(text)} bytes: no window of {length}")
    used = count * length
    return text[:used].reshape(count, length), text[1 : used + 1].reshape(count, length)


def spread(count: int, wanted: int) -> Tensor:
    """Return `wanted` indices below `count`, evenly spread; all, if there are fewer."""
    taken = min(count, wanted)
    return torch.arange(taken) * count // taken
