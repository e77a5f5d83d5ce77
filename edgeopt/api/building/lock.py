"""`edgeopt.lock`: everything needed to build the same bytes again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.api.building.options import BuildOptions
from edgeopt.artifacts.artifact import FileEntry
from edgeopt.errors import ConfigError
from edgeopt.files import read_json, to_plain
from edgeopt.registry.plugins import Plugin

SCHEMA_VERSION = 1


FROM_PYTHON = "given from Python"


_NOT_LOCKED = frozenset({"out", "samples", "latency", "drift", "limits", "verify", "lock"})
"""What changes no byte of an artifact; limits are kept beside."""


@dataclasses.dataclass(frozen=True)
class Lock:
    """What a build was made of.

    Attributes:
        options: The options as given, those that change bytes.
        limits: The limits given on the command line.
        hashes: Part -> SHA-256: `weights`, `structure`, `recipe`, `profile`, `rules`,
            `calibration`.
        tools: Tool -> version.
        machine: What of the machine decides bytes (`vnni`).
        files: Artifact file -> SHA-256, as built.
        build_key: Hash of everything above but the files, and without the paths of a profile or
            recipe that was given by path.
        plugins: The plug-ins that the build used.
        schema: Version.
    """

    options: Mapping[str, Any]
    limits: tuple[str, ...]
    hashes: Mapping[str, str]
    tools: Mapping[str, str]
    machine: Mapping[str, str]
    files: Mapping[str, str]
    build_key: str
    plugins: tuple[Plugin, ...] = ()
    schema: int = SCHEMA_VERSION


def locked_options(options: BuildOptions) -> dict[str, Any]:
    """Return the options that decide bytes, as plain data."""
    plain = {
        f.name: getattr(options, f.name)
        for f in dataclasses.fields(options)
        if f.name not in _NOT_LOCKED
    }
    for name in ("model", "calib", "eval", "metric"):
        if plain[name] is not None and not isinstance(plain[name], str):
            plain[name] = FROM_PYTHON
    result: dict[str, Any] = to_plain(plain)
    return result


def options_from_lock(path: Path, out: Path | None) -> BuildOptions:
    """Return the options of a lock.

    Raises:
        ConfigError: If the lock is damaged, or its model came from Python.
    """
    lock = read_lock(path)
    given = dict(lock.options)
    for name, value in given.items():
        if value == FROM_PYTHON:
            raise ConfigError(f"{path}: {name} was given from Python; build it there again")
    known = {f.name for f in dataclasses.fields(BuildOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"{path}: unknown option {unknown[0]!r}")
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
    return BuildOptions(**given, limits=tuple(lock.limits), out=out, lock=path)


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        ConfigError: If it is missing, damaged or of another schema.
    """
    lock = read_json(path, Lock, error=ConfigError)
    if lock.schema != SCHEMA_VERSION:
        raise ConfigError(f"{path}: schema {lock.schema}; this edgeopt reads {SCHEMA_VERSION}")
    return lock


def unlike_files(lock: Lock, files: Sequence[FileEntry]) -> list[str]:
    """Say which files are not the bytes that the lock names."""
    found = {entry.path: entry.sha256 for entry in files}
    names = sorted(set(lock.files) | set(found))
    unlike = [name for name in names if lock.files.get(name) != found.get(name)]
    return [f"not the bytes of the lock: {', '.join(unlike)}"] if unlike else []


def differences(
    lock: Lock, hashes: Mapping[str, str], tools: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the parts that are not what was locked, and the tools that are other versions."""
    parts = sorted(set(lock.hashes) | set(hashes))
    changed = [part for part in parts if lock.hashes.get(part) != hashes.get(part)]
    other = [
        f"{tool} is {tools.get(tool, 'missing')}, the lock says {version}"
        for tool, version in sorted(lock.tools.items())
        if tools.get(tool) != version
    ]
    return changed, other
