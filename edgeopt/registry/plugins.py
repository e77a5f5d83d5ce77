"""Plug-ins: installed packages that add to edgeopt through entry points."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from edgeopt.registry.entry import Distribution, Entry
from edgeopt.registry.kinds import ALL, Kind


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A package that a build used.

    Attributes:
        package: Its name on the index.
        version: Its version.
        sha256: Hash of its files: paths and contents of the packages that its entries are in.
    """

    package: str
    version: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Installed:
    """A package that adds to edgeopt, and what it adds.

    Attributes:
        distribution: The package.
        entries: What it adds, by kind and name.
        problem: Why it cannot be used, as far as that shows without importing it; or empty.
    """

    distribution: Distribution
    entries: tuple[Entry, ...]
    problem: str = ""


def entries(kind: Kind) -> tuple[Entry, ...]:
    """Return what plug-ins add to a kind, by package and name."""
    return _by_group()[kind.group]


@functools.cache
def installed() -> tuple[Installed, ...]:
    """Return the packages that add to edgeopt, by name. None is imported."""
    by_package: dict[Distribution, list[Entry]] = {}
    for kind in ALL:
        for entry in _by_group()[kind.group]:
            assert entry.plugin is not None
            by_package.setdefault(entry.plugin, []).append(entry)
    return tuple(
        Installed(found, tuple(by_package[found]), _problem(by_package[found]))
        for found in sorted(by_package, key=lambda d: (d.name, d.version))
    )


@functools.cache
def _by_group() -> dict[str, tuple[Entry, ...]]:
    """Return group -> its entry points, by package and name. Read once: it looks at every package.

    The same package may be on the path twice; the first one is what Python imports.
    """
    found: dict[str, dict[tuple[str, str], Entry]] = {kind.group: {} for kind in ALL}
    nouns = {kind.group: kind.noun for kind in ALL}
    for distribution in metadata.distributions():
        for point in distribution.entry_points:
            if point.group not in found:
                continue
            name = str(distribution.metadata["Name"])
            plugin = Distribution(name, distribution.version)
            entry = Entry(nouns[point.group], point.name, point.value, plugin)
            found[point.group].setdefault((_canonical(name), point.name), entry)
    return {group: tuple(rows[key] for key in sorted(rows)) for group, rows in found.items()}


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _problem(found: Iterable[Entry]) -> str:
    for entry in found:
        module = entry.place.partition(":")[0]
        if _source(module) is None:
            return f"there is no module {module}"
    return ""


def used(found: Iterable[Entry]) -> tuple[Plugin, ...]:
    """Return the plug-ins among the entries that a build used, by name.

    A plug-in that one of them requires belongs to them.
    """
    by_name = {_canonical(p.distribution.name): p for p in installed()}
    wanted = {_canonical(e.plugin.name) for e in found if e.plugin is not None}
    open_ = list(wanted)
    while open_:
        for needed in _requirements(open_.pop()):
            if needed in by_name and needed not in wanted:
                wanted.add(needed)
                open_.append(needed)
    return tuple(
        Plugin(plugin.distribution.name, plugin.distribution.version, _digest(plugin))
        for name, plugin in sorted(by_name.items())
        if name in wanted
    )


def _requirements(package: str) -> Iterator[str]:
    for text in metadata.requires(package) or ():
        match = re.match(r"[\w.-]+", text)
        if match is not None:
            yield _canonical(match[0])


def _digest(plugin: Installed) -> str:
    """Return the SHA-256 of the files of the packages that a plug-in's entries are in."""
    roots = {root for e in plugin.entries if (root := _source(e.place.partition(":")[0]))}
    found = hashlib.sha256()
    for root in sorted(roots):
        for path in sorted(root.rglob("*")) if root.is_dir() else (root,):
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found.update(f"{path.relative_to(root.parent).as_posix()} {content}\n".encode())
    return found.hexdigest()


def _source(module: str) -> Path | None:
    """Return the regular package or file that a module belongs to, by looking, not importing.

    A namespace package is shared by several distributions, so the first regular package inside it
    counts.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing: `top` has no parent
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.has_location and spec.origin is not None:
        origin = Path(spec.origin)
        return origin.parent if origin.name == "__init__.py" else origin
    for place in spec.submodule_search_locations or ():
        folder = Path(place)
        for part in rest:
            folder = folder / part
            if (folder / "__init__.py").is_file():
                return folder
            if folder.with_suffix(".py").is_file():
                return folder.with_suffix(".py")
    return None
