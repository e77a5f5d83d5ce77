"""The border to the disk: read TOML and JSON into typed data, write files atomically.

Types are frozen dataclasses. pydantic validates them here; unknown keys are refused with the
nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgeopt.errors import BundleError, ConfigError, EdgeOptError, nearest

T = TypeVar("T")


def parse(data: Any, type_: type[T], *, where: str, error: type[EdgeOptError] = ConfigError) -> T:
    """Validate plain data against a dataclass.

    Args:
        data: What was read.
        type_: The dataclass to make.
        where: Named first in the message: a file, or what the data are.
        error: The class to raise.

    Raises:
        EdgeOptError: As `error`, in one line: where, which key, what is wrong.
    """
    import pydantic

    unknown = _unknown_key(data, type_, ())
    if unknown is not None:
        path, known = unknown
        place = ".".join(path[:-1])
        raise error(
            f"{where}: unknown key {path[-1]!r}{f' in {place}' if place else ''}"
            f"{nearest(path[-1], known)}"
        )
    try:
        return pydantic.TypeAdapter(type_).validate_python(data)
    except pydantic.ValidationError as failure:
        first = failure.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise error(f"{where}: {place or 'value'}: {first['msg']}") from None
    except EdgeOptError as failure:  # raised by a __post_init__
        raise error(f"{where}: {failure}") from None


def _unknown_key(
    data: Any, annotation: Any, path: tuple[str, ...]
) -> tuple[tuple[str, ...], list[str]] | None:
    """Find the first key that no field takes, with the keys known at its place."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if dataclasses.is_dataclass(a) or typing.get_origin(a)]
        return _unknown_key(data, inner[0], path) if len(inner) == 1 else None
    if isinstance(data, list) and arguments:
        for index, item in enumerate(data):
            found = _unknown_key(item, arguments[0], (*path, str(index)))
            if found:
                return found
        return None
    if not isinstance(data, Mapping):
        return None
    if origin is not None and len(arguments) == 2:  # a mapping
        for key, item in data.items():
            found = _unknown_key(item, arguments[1], (*path, str(key)))
            if found:
                return found
        return None
    if not dataclasses.is_dataclass(annotation):
        return None
    hints = typing.get_type_hints(annotation)
    fields = [f.name for f in dataclasses.fields(annotation) if f.init]
    for key, item in data.items():
        if key not in fields:
            return (*path, str(key)), fields
        found = _unknown_key(item, hints[key], (*path, str(key)))
        if found:
            return found
    return None


def read_toml(path: Path, type_: type[T], *, error: type[EdgeOptError] = ConfigError) -> T:
    """Read a TOML file into a dataclass.

    Raises:
        EdgeOptError: As `error`, if the file is missing, not TOML, or does not fit.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"{path}: cannot be read: {failure}") from None
    except (ValueError, RecursionError) as failure:  # also numbers of thousands of digits
        raise error(f"{path}: not valid TOML: {failure}") from None
    return parse(data, type_, where=str(path), error=error)


def read_json(path: Path, type_: type[T], *, error: type[EdgeOptError] = BundleError) -> T:
    """Read a JSON file into a dataclass; raises as `read_toml` does."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"{path}: cannot be read: {failure}") from None
    except (ValueError, RecursionError) as failure:  # also numbers of thousands of digits
        raise error(f"{path}: not valid JSON: {failure}") from None
    return parse(data, type_, where=str(path), error=error)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, enums, paths and tuples into what JSON holds; NaN and Inf become None."""
    import enum
    import math

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """Return JSON with sorted structure left as declared, two spaces, and a final newline."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Yield a working file beside `final` that takes its place only if the block succeeds.

    A reader sees the old file or the new one, never a half.

    Raises:
        BundleError: If the folder is read-only, or the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        # the suffix stays: some writers choose the format by it
        handle, name = tempfile.mkstemp(
            dir=final.parent, prefix=f".{final.name}.", suffix=final.suffix
        )
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            os.replace(name, final)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as failure:
        raise BundleError(f"{final}: cannot be written: {failure.strerror or failure}") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole; raises as `atomic_file` does."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text whole; raises as `atomic_file` does."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def atomic_folder(
    final: Path, *, kind: str = "bundle", marker: str = "manifest.json"
) -> Iterator[Path]:
    """Yield a working folder beside `final` that takes its place only if the block succeeds.

    An older `final` is replaced whole, and stays as it was if the block fails.

    Raises:
        BundleError: If the place cannot be written, the disk is full, or `final` exists and is
            not a bundle (so that no folder of the user's is ever replaced): `marker` is the file
            that tells a folder of this `kind`.
    """
    if final.exists():
        if not final.is_dir():
            raise BundleError(f"{final}: exists and is not a folder; choose another --out")
        if any(final.iterdir()) and not (final / marker).is_file():
            raise BundleError(
                f"{final}: exists, is not empty and is not a {kind}; choose another --out"
            )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.partial-"))
    except OSError as failure:
        raise BundleError(f"{final}: cannot be written: {failure.strerror or failure}") from None
    try:
        os.chmod(work, 0o755)
        yield work
        _put(work, final)
    except OSError as failure:
        raise BundleError(
            f"{final}: cannot be written: {failure.strerror or failure}; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, final: Path) -> None:
    """Move `work` to `final`; what was there comes back if that fails."""
    if not final.exists():
        os.replace(work, final)
        return
    aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.old-"))
    old = aside / "bundle"
    try:
        os.replace(final, old)
        os.replace(work, final)
    except BaseException:
        if old.exists() and not final.exists():
            os.replace(old, final)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, refusing a name that leaves the folder.

    Raises:
        BundleError: For an absolute name, `..`, or a link that points outside.
    """
    path = folder / name
    leaves = "\0" in name or Path(name).is_absolute()
    if leaves or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder}: file name {name!r} leaves the folder")
    return path
