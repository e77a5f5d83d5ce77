"""Golden vectors as app code reads them: raw little-endian arrays and a JSON index.

An app feeds `inputs` and compares with `outputs`: the largest absolute difference, as a share of
the largest absolute golden output, is at most `tolerance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError
from edgeopt.files import inside, read_json, to_json, write_bytes, write_text

SCHEMA_VERSION = 1
INDEX = "index.json"
LITTLE = "little"

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class RawArray:
    """One array.

    Attributes:
        name: The input's or output's name in the model file.
        dtype: `float32`, `int64`, ...; `bool` is one byte each.
        shape: Sizes, the last one contiguous.
        file: Its bytes, beside the index.
        size_bytes: How many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class GoldenIndex:
    """The golden vectors of one model file.

    Attributes:
        model: Which.
        method: The method that gave them.
        byte_order: Always `little`.
        tolerance: Largest error allowed, as a share of the largest absolute golden output.
        inputs: In the order of the model file.
        outputs: Likewise.
        schema: Version.
    """

    model: str
    method: str
    byte_order: str
    tolerance: float
    inputs: tuple[RawArray, ...]
    outputs: tuple[RawArray, ...]
    schema: int = SCHEMA_VERSION


def write_vectors(
    folder: Path, model: str, method: str, inputs: Arrays, outputs: Arrays, tolerance: float
) -> GoldenIndex:
    """Write the arrays and their index into a folder.

    Raises:
        BundleError: If the folder cannot be written.
    """
    index = GoldenIndex(
        model=model,
        method=method,
        byte_order=LITTLE,
        tolerance=tolerance,
        inputs=tuple(_raw(name, a, f"input{i}.bin") for i, (name, a) in enumerate(inputs.items())),
        outputs=tuple(
            _raw(name, a, f"output{i}.bin") for i, (name, a) in enumerate(outputs.items())
        ),
    )
    for row, array in zip(
        (*index.inputs, *index.outputs), (*inputs.values(), *outputs.values()), strict=True
    ):
        write_bytes(folder / row.file, _bytes(array))
    write_text(folder / INDEX, to_json(index))
    return index


def _raw(name: str, array: np.ndarray[Any, Any], file: str) -> RawArray:
    return RawArray(name, str(array.dtype), tuple(array.shape), file, array.nbytes)


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="C")


def read_vectors(folder: Path) -> tuple[GoldenIndex, dict[str, Any], dict[str, Any]]:
    """Read an index and its arrays.

    Returns:
        The index, inputs by name, outputs by name.

    Raises:
        BundleError: If the index or a file is damaged.
    """
    index = read_json(folder / INDEX, GoldenIndex)
    if index.schema != SCHEMA_VERSION or index.byte_order != LITTLE:
        raise BundleError(f"{folder / INDEX}: is of another schema or byte order")
    return index, _arrays(folder, index.inputs), _arrays(folder, index.outputs)


def _arrays(folder: Path, rows: tuple[RawArray, ...]) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for row in rows:
        path = inside(folder, row.file)
        try:
            dtype = np.dtype(row.dtype)
            count = int(np.prod(row.shape, dtype=np.int64))
            data = path.read_bytes()
        except (OSError, TypeError, ValueError) as failure:
            raise BundleError(f"{path}: cannot be read: {failure}") from None
        if dtype.hasobject or count * dtype.itemsize != len(data) or len(data) != row.size_bytes:
            raise BundleError(f"{path}: is not {row.dtype} of shape {list(row.shape)}")
        flat = np.frombuffer(data, dtype.newbyteorder("<"))
        found[row.name] = flat.reshape(row.shape).astype(dtype)
    return found
