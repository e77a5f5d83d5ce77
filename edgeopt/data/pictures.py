"""Pictures in a folder or a `.zip`, decoded one by one when they are read."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data.pixels import to_input
from edgeopt.data.samples import LabelledBatch
from edgeopt.data.signature import Signature
from edgeopt.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 64 << 20


class Store(Protocol):
    """Files by name, `/` between folders."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            DataError: If it is missing, damaged or too large.
        """
        ...


class FolderStore:
    """The visible files under a folder, sorted by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
        self.names = tuple(sorted(p.as_posix() for p in found if _visible(p.parts)))

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        file = self.path / name
        try:
            size = file.stat().st_size
            if size > MAX_FILE_BYTES:
                raise DataError(
                    f"{file}: {size >> 20} MiB, too large for a picture or a label file"
                )
            return file.read_bytes()
        except OSError as failure:
            raise DataError(f"{file}: cannot be read: {failure.strerror or failure}") from None


class ZipStore:
    """The visible files of a `.zip`, sorted by name; nothing is ever unpacked to disk.

    Raises:
        DataError: If the file is damaged, or a member is a link or leaves the archive's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as failure:
            raise DataError(f"{path}: cannot be read as .zip: {failure}") from None
        entries = {e.filename: e for e in self._archive.infolist() if not e.is_dir()}
        for name, entry in entries.items():
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
                raise DataError(f"{path}: member {name!r} leaves the archive's folder; refused")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise DataError(f"{path}: member {name!r} is a link; refused")
        self._entries = {n: e for n, e in entries.items() if _visible(PurePosixPath(n).parts)}
        self.names = tuple(sorted(self._entries))

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        entry = self._entries.get(name)
        if entry is None:
            raise DataError(f"{self.path}: no member {name!r}")
        if entry.file_size > MAX_FILE_BYTES:
            raise DataError(f"{self.path}: member {name!r} is {entry.file_size >> 20} MiB; refused")
        try:
            # The declared size bounds what is decompressed, whatever the stream goes on to hold.
            with self._archive.open(entry) as member:
                content = member.read(entry.file_size)
        except Exception as failure:  # zlib, lzma and zipfile each have errors of their own
            raise DataError(f"{self.path}: member {name!r} is damaged: {failure}") from None
        if len(content) != entry.file_size:
            raise DataError(f"{self.path}: member {name!r} is damaged: it ends early")
        return content


def _visible(parts: Sequence[str]) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


class PictureSource:
    """Pictures of a store, with their labels, as model inputs."""

    def __init__(
        self,
        signature: Signature,
        store: Store,
        names: Sequence[str],
        labels: Sequence[int] | None,
        preprocessing: Preprocessing,
    ) -> None:
        self._signature, self._store, self._names = signature, store, tuple(names)
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._preprocessing = preprocessing
        self.count = len(self._names)

    def read(self, indices: Sequence[int]) -> LabelledBatch:
        """Decode these pictures."""
        chosen = [self._names[index] for index in indices]
        rows = [self._input(name) for name in chosen]
        for name, row in zip(chosen, rows, strict=True):
            if row.shape != rows[0].shape:
                raise DataError(
                    f"{self._store.path}: {name} gives {list(row.shape)}, {chosen[0]} gives "
                    f"{list(rows[0].shape)}; add crop= or size="
                )
        where = f"{self._store.path}: {chosen[0]}"
        inputs = self._signature.fit(
            [torch.from_numpy(np.stack(rows))], where, hint="; see ?crop=, ?size= and ?channels="
        )
        labels: Tensor | None = None
        if self._labels is not None:
            labels = self._labels[torch.as_tensor(indices, dtype=torch.int64)]
        return self._signature.batch(inputs, labels)

    def _input(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        from PIL import Image, UnidentifiedImageError

        where = f"{self._store.path}: {name}"
        try:
            # Opening reads the header alone, so the size is known before memory is taken.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(self._store.read(name)), formats=FORMATS)
            with picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"{where}: {width} x {height} pixels; refused")
                return to_input(picture, self._preprocessing, where)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError(f"{where}: not a picture, or damaged") from None
        except Exception as failure:  # decoders raise OSError, SyntaxError, struct.error, ...
            raise DataError(f"{where}: cannot be decoded: {failure}") from None
