"""Golden vectors: inputs and expected outputs of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError
from edgeopt.files import atomic_file


def write_golden(
    folder: Path,
    method: str,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    outputs: Mapping[str, np.ndarray[Any, Any]],
) -> str:
    """Write golden vectors as `golden/<method>.npz` and return the relative path.

    Arrays are called `input:NAME` and `output:NAME`; the first dimension counts the vectors where
    it is larger than the file's batch.
    """
    path = folder / "golden" / f"{method}.npz"
    arrays: dict[str, Any] = {f"input:{name}": value for name, value in inputs.items()}
    arrays |= {f"output:{name}": value for name, value in outputs.items()}
    with atomic_file(path) as partial:
        np.savez(partial, **arrays)
    return path.relative_to(folder).as_posix()


def read_golden(
    path: Path,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Read golden inputs and outputs by name.

    Raises:
        BundleError: If the file is damaged or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except Exception as failure:  # zip, header and decompression errors are unrelated types
        raise BundleError(f"{path}: is not a file of golden vectors: {failure}") from None
    inputs = {n.removeprefix("input:"): a for n, a in arrays.items() if n.startswith("input:")}
    outputs = {n.removeprefix("output:"): a for n, a in arrays.items() if n.startswith("output:")}
    if not inputs or not outputs:
        raise BundleError(f"{path}: holds no golden inputs and outputs")
    return inputs, outputs
