"""Samples from arrays in memory, from `.npz` files and from map-style data sets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data.pixels import to_input
from edgeopt.data.samples import LabelledBatch, Samples
from edgeopt.data.signature import Signature
from edgeopt.errors import DataError, nearest
from edgeopt.ir import trees

MAX_ARRAY_BYTES = 8 << 30
INPUT_KEYS = ("x", "images")
LABEL_KEYS = ("y", "labels")


class ArraySource:
    """Inputs and labels that are in memory."""

    def __init__(
        self, signature: Signature, inputs: Sequence[Tensor], labels: Tensor | None
    ) -> None:
        self._signature, self._inputs, self._labels = signature, tuple(inputs), labels
        self.count = len(self._inputs[0])

    def read(self, indices: Sequence[int]) -> LabelledBatch:
        """Return these samples."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self._labels is None else self._labels[chosen]
        return self._signature.batch([value[chosen] for value in self._inputs], labels)


class PixelSource:
    """8-bit pictures in one array `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`."""

    def __init__(
        self,
        signature: Signature,
        pixels: np.ndarray[Any, Any],
        labels: Tensor | None,
        preprocessing: Preprocessing,
        where: str,
    ) -> None:
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
            raise DataError(
                f"{where}: uint8 {list(pixels.shape)} holds no pictures; "
                "give [N, H, W], [N, H, W, 3] or [N, 3, H, W]"
            )
        self._signature, self._pixels, self._labels = signature, pixels, labels
        self._preprocessing, self._where = preprocessing, where
        self.count = len(pixels)
        self.read([0])

    def read(self, indices: Sequence[int]) -> LabelledBatch:
        """Return these samples as model inputs."""
        rows = [
            to_input(self._pixels[index], self._preprocessing, f"{self._where}: picture {index}")
            for index in indices
        ]
        inputs = self._signature.fit(
            [torch.from_numpy(np.stack(rows))], self._where, hint="; see ?crop= and ?size="
        )
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._signature.batch(inputs, None if self._labels is None else self._labels[chosen])


class DatasetSource:
    """A map-style data set: `len(data)` samples, `data[i]` is the input or (input, label)."""

    def __init__(self, signature: Signature, data: Any, where: str) -> None:
        self._signature, self._data, self._where = signature, data, where
        self.count = len(data)

    def read(self, indices: Sequence[int]) -> LabelledBatch:
        """Read these samples, one by one, and stack them."""
        rows = [self._row(index) for index in indices]
        inputs = [torch.stack(values) for values in zip(*(r[0] for r in rows), strict=True)]
        labels = None if rows[0][1] is None else torch.stack([r[1] for r in rows])
        return self._signature.batch(inputs, labels)

    def _row(self, index: int) -> tuple[tuple[Tensor, ...], Any]:
        where = f"{self._where}: sample {index}"
        try:
            value = self._data[index]
        except Exception as failure:
            raise DataError(f"{where}: {type(failure).__name__}: {failure}") from failure
        inputs, label = split_item(value, self._signature, where)
        fitted = self._signature.fit([v[None] for v in inputs], where)
        return tuple(v[0] for v in fitted), None if label is None else to_labels(label, where)


def from_tensors(
    inputs: Sequence[Any],
    labels: Any,
    signature: Signature,
    *,
    name: str,
    preprocessing: Preprocessing | None = None,
) -> Samples:
    """Make samples of inputs `[N, ...]` in the model's order, and labels `[N, ...]` or None.

    8-bit pictures for a float input go through the preprocessing.

    Raises:
        DataError: For wrong shapes or types, no samples, or NaN.
    """
    tensors = [to_tensor(value, name) for value in inputs]
    answers = None if labels is None else to_labels(labels, name)
    if tensors and tensors[0].ndim and not len(tensors[0]):
        raise DataError(f"{name}: no samples; name data that hold at least one")
    if answers is not None and (not answers.ndim or len(answers) != len(tensors[0])):
        raise DataError(f"{name}: {len(tensors[0])} samples and labels {list(answers.shape)}")
    leaf = signature.leaves[0]
    pixels = tensors[0].dtype == torch.uint8 and leaf.dtype.is_floating_point
    if len(tensors) == len(signature.leaves) == 1 and pixels:
        if preprocessing is None:
            raise DataError(
                f"{name}: pictures as uint8, the model takes {leaf.text()}; "
                "say how they become inputs: ?mean=...&std=..."
            )
        source = PixelSource(signature, tensors[0].numpy(), answers, preprocessing, name)
        return Samples(name, source, range(source.count), preprocessing)
    fitted = signature.fit(tensors, name)
    for entry, value in zip(signature.leaves, fitted, strict=True):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{name}: {entry.name} holds NaN or Inf; remove those samples")
    return Samples(name, ArraySource(signature, fitted, answers), range(len(fitted[0])))


def from_named(
    arrays: Mapping[str, Any],
    signature: Signature,
    *,
    name: str,
    preprocessing: Preprocessing | None = None,
    x: str = "",
    y: str = "",
) -> Samples:
    """Make samples of arrays by name: the inputs' names, or `x`/`images`; `y`/`labels`.

    Args:
        x: Which array is the input, where the model has one; others are then left alone.
        y: Which array holds the labels.

    Raises:
        DataError: If an input is missing or an array is none of these.
    """
    labels = y or next((key for key in LABEL_KEYS if key in arrays), "")
    names = [leaf.name for leaf in signature.leaves]
    if not x and len(names) == 1 and names[0] not in arrays:
        names = [next((key for key in INPUT_KEYS if key in arrays), names[0])]
    wanted = [x] if x else names
    for key in [*wanted, *([labels] if labels else [])]:
        if key not in arrays:
            raise DataError(f"{name}: no array {key!r}{nearest(key, arrays)}; see ?x= and ?y=")
    unknown = sorted(set(arrays) - {*wanted, labels})
    if unknown and not x:
        raise DataError(
            f"{name}: array {unknown[0]!r} is neither input nor labels; say ?x=NAME&y=NAME"
        )
    return from_tensors(
        [arrays[key] for key in wanted],
        arrays[labels] if labels else None,
        signature,
        name=name,
        preprocessing=preprocessing,
    )


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of a `.npz`; sizes are checked before memory is taken.

    Raises:
        DataError: If the file is missing, damaged, too large, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    raise DataError(f"{path}: {entry.filename!r} is no array")
                _check_header(path, archive, entry)
            total = sum(entry.file_size for entry in archive.infolist())
            if total > MAX_ARRAY_BYTES:
                raise DataError(
                    f"{path}: {total / 2**30:.0f} GiB of arrays; more than "
                    f"{MAX_ARRAY_BYTES >> 30} GiB need FILE.py:FUNCTION, which can stream"
                )
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as failure:
        raise DataError(f"{path}: cannot be read as .npz: {failure}") from None


def _check_header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compare what an array's header claims with what the file holds."""
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = reader(member)
        if dtype.hasobject:
            raise DataError(
                f"{path}: {entry.filename!r} holds Python objects (pickle), which are never "
                "loaded; save plain numbers"
            )
        claimed = dtype.itemsize
        for size in shape:
            claimed *= size
        if claimed > entry.file_size:
            raise DataError(f"{path}: {entry.filename!r} is shorter than its header says")


def split_item(value: Any, signature: Signature, where: str) -> tuple[list[Tensor], Any]:
    """Split `x`, `(x, y)`, `(x1, x2, y)`, `((x1, x2), y)` or a mapping into inputs and label.

    Inputs may nest as the model takes them; a mapping's tensors are found by name.
    """
    if isinstance(value, LabelledBatch):
        return list(value.inputs), value.labels
    if isinstance(value, Mapping):
        label = next((value[key] for key in LABEL_KEYS if key in value), None)
        return _by_name(value, signature, where), label
    label = None
    if not isinstance(value, (tuple, list)):
        parts: Sequence[Any] = (value,)
    elif len(value) == 2 and isinstance(value[0], Mapping):
        return _by_name(value[0], signature, where), value[1]
    elif len(value) == 2 and isinstance(value[0], (tuple, list)):
        parts, label = value
    else:
        parts = value
    arrays = list(_arrays(parts))
    if label is None and len(arrays) == len(signature.leaves) + 1:
        label = arrays.pop()
    return [to_tensor(array, where) for array in arrays], label


def _by_name(value: Mapping[str, Any], signature: Signature, where: str) -> list[Tensor]:
    """Find the inputs in a mapping by name, or by the path below the one argument that nests."""
    flat = dict(value)
    for leaf in trees.flatten(dict(value)):
        flat.setdefault(leaf.label, leaf.value)
    names = [leaf.name for leaf in signature.leaves]
    if len(names) == 1 and names[0] not in flat:
        names = [next((key for key in INPUT_KEYS if key in flat), names[0])]
    if names[0] not in flat:  # `{"image": ...}` for a model that takes `batch` with an image in it
        names = [next((key for key in flat if name.endswith(f"_{key}")), name) for name in names]
    lacking = next((key for key in names if key not in flat), None)
    if lacking is not None:
        raise DataError(f"{where}: no input {lacking!r}{nearest(lacking, map(str, flat))}")
    return [to_tensor(flat[key], where) for key in names]


def _arrays(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield the arrays of nested inputs; a list of numbers is one array."""
    for part in parts:
        nested = isinstance(part, (Mapping, tuple, list)) and not all(
            isinstance(leaf.value, (bool, int, float)) for leaf in trees.flatten(part)
        )
        if nested:
            yield from (leaf.value for leaf in trees.flatten(part))
        else:
            yield part


def to_tensor(value: Any, where: str) -> Tensor:
    """Return a detached CPU tensor that shares memory where it can.

    Raises:
        DataError: If the value is not made of numbers.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: {type(value).__name__} of {array.dtype} holds no numbers")
    # torch takes native byte order, forward strides and memory that may be written.
    native = array.dtype.newbyteorder("=")
    usable = np.require(array, dtype=native, requirements=("C_CONTIGUOUS", "WRITEABLE"))
    try:
        return torch.from_numpy(usable.reshape(array.shape))
    except TypeError:
        raise DataError(f"{where}: numbers of type {array.dtype} are not supported") from None


def to_labels(value: Any, where: str) -> Tensor:
    """Return labels as int64, or float32 where they are no integers."""
    labels = to_tensor(value, f"{where}: labels")
    return labels.float() if labels.is_floating_point() else labels.long()
