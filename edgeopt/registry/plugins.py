"""Plug-ins: installed packages that add to edgeopt through entry points."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from edgeopt.errors import nearest
from edgeopt.registry.entry import Distribution, Entry
from edgeopt.registry.kinds import ALL, Kind


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A package that a build used.

    Attributes:
        package: Its name on the index.
        version: Its version.
        sha256: Hash of its files: names and contents of the packages that its entries are in.
        gives: What the build used of it: kinds in the plural (`passes`) -> names. Empty where it is
            here because another one requires it.
    """

    package: str
    version: str
    sha256: str
    gives: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def gave(self) -> str:
        """What the build used of it, in words."""
        return in_words(self.gives) or "what another plug-in requires"


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a plug-in of a build stands on this machine.

    Attributes:
        installed: Whether it is here.
        message: What is not as it was then, or empty.
    """

    installed: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Installed:
    """A package that adds to edgeopt, and what it adds.

    Attributes:
        distribution: The package.
        entries: What it adds, by kind and name.
        problem: What of its entry points cannot be read, or empty.
    """

    distribution: Distribution
    entries: tuple[Entry, ...]
    problem: str = ""

    @property
    def gives(self) -> dict[str, tuple[str, ...]]:
        """What it adds: kinds in the plural -> names."""
        return _by_kind(self.entries)


def entries(kind: Kind) -> tuple[Entry, ...]:
    """Return what plug-ins add to a kind, by package and name."""
    return tuple(e for plugin in installed() for e in plugin.entries if e.kind == kind)


@functools.cache
def installed() -> tuple[Installed, ...]:
    """Return the packages that add to edgeopt, by name. None is imported.

    Read once, since it looks at every package. One may be on the path twice; the first is what
    Python imports.
    """
    found: dict[str, Installed] = {}
    for distribution in metadata.distributions():
        plugin = _read(distribution)
        if plugin is not None:
            found.setdefault(_canonical(plugin.distribution.name), plugin)
    return tuple(found[name] for name in sorted(found))


def named(kind: Kind, name: str) -> tuple[Entry, ...]:
    """Return the plug-ins' entries of a name: none where it ships with edgeopt, or is a path."""
    return tuple(entry for entry in entries(kind) if entry.name == name)


def problems(plugin: Installed) -> tuple[str, ...]:
    """Return why a plug-in, or a part of it, cannot be used, as far as shows without importing it.

    What is found: entry points that cannot be read, modules that are not there, and names that
    edgeopt or another plug-in has as well.
    """
    lacking = dict.fromkeys(e.module for e in plugin.entries if not _specs(e.module))
    shared = [
        f"{e.kind.noun} {e.name!r} is also that of {owner}"
        for e in plugin.entries
        for owner in _other_owners(e)
    ]
    own = (plugin.problem,) if plugin.problem else ()
    return (*own, *(f"there is no module {module}" for module in lacking), *shared)


def used(found: Iterable[Entry]) -> tuple[Plugin, ...]:
    """Return the plug-ins among the entries that a build used, by name.

    A plug-in that one of them requires belongs to them.
    """
    by_name = {_canonical(p.distribution.name): p for p in installed()}
    of: dict[str, list[Entry]] = {}
    for entry in found:
        if entry.plugin is not None:
            of.setdefault(_canonical(entry.plugin.name), []).append(entry)
    wanted = list(of)
    for package in wanted:  # grows while it runs
        needed = (n for n in _requirements(package) if n in by_name and n not in wanted)
        wanted.extend(dict.fromkeys(needed))
    return tuple(_as_used(by_name[name], of.get(name, ())) for name in sorted(wanted))


def standing(then: Plugin) -> Standing:
    """Hold a plug-in that a build used against what is installed here."""
    wanted = _canonical(then.package)
    found = next((p for p in installed() if _canonical(p.distribution.name) == wanted), None)
    if found is None:
        return Standing(False, f"{then} is not installed; it gave {then.gave}")
    if found.distribution.version != then.version:
        return Standing(True, f"{then} made it, {found.distribution.version} is installed here")
    if _digest(found) != then.sha256:
        return Standing(True, f"{then}: its files are not those of the build")
    return Standing(True)


def _as_used(plugin: Installed, of: Iterable[Entry]) -> Plugin:
    package = plugin.distribution
    return Plugin(package.name, package.version, _digest(plugin), _by_kind(of))


def _by_kind(found: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    names: dict[str, set[str]] = {}
    for entry in found:
        names.setdefault(entry.kind.plural, set()).add(entry.name)
    return {kind.plural: tuple(sorted(names[kind.plural])) for kind in ALL if kind.plural in names}


def _read(distribution: metadata.Distribution) -> Installed | None:
    """Return what a package adds, or None if it adds nothing.

    Any package on the path is looked at, so nothing that it holds may raise.
    """
    try:
        text = distribution.read_text("entry_points.txt") or ""
        if "[edgeopt." not in text:  # spares parsing every package's
            return None
        package = Distribution(str(distribution.metadata["Name"]), str(distribution.version))
    except Exception:  # its metadata are damaged, and it may have nothing to do with edgeopt
        return None
    try:
        points = {
            (p.group, p.name, f"{p.module}:{p.attr or ''}")
            for p in distribution.entry_points
            if p.group.startswith("edgeopt.")
        }
    except Exception as failure:  # as above, but this one is a plug-in
        return Installed(package, (), f"its entry points cannot be read: {failure}")
    found = [
        Entry(kind, name, place, package)
        for kind in ALL
        for group, name, place in sorted(points)
        if group == kind.group
    ]
    groups = [kind.group for kind in ALL]
    unknown = sorted({group for group, _, _ in points if group not in groups})
    problem = "; ".join(f"group {g!r} is not known{nearest(g, groups)}" for g in unknown)
    return Installed(package, tuple(found), problem)


def _other_owners(entry: Entry) -> Iterator[str]:
    if entry.name in entry.kind.builtin.places():
        yield "edgeopt itself"
    for other in entries(entry.kind):
        if other.name == entry.name and other.plugin != entry.plugin:
            yield str(other.plugin)


def in_words(gives: Mapping[str, Iterable[str]]) -> str:
    """Return kinds and names as `passes a, b; recipes c`."""
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in gives.items())


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _requirements(package: str) -> Iterator[str]:
    """Return what a package requires, less what only its extras do."""
    for text in metadata.requires(package) or ():
        name = re.match(r"[\w.-]+", text)
        if name is not None and not re.search(r";.*\bextra\b", text):
            yield _canonical(name[0])


def _digest(plugin: Installed) -> str:
    """Return the SHA-256 of the files of the packages that a plug-in's entries are in.

    It does not depend on where they are installed, nor on what Python or an editor leaves there.
    """
    roots = {root for e in plugin.entries if (root := _root(e.module)) is not None}
    lines = [line for root in roots for line in _file_lines(root)]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _file_lines(root: Path) -> Iterator[str]:
    for path in root.rglob("*") if root.is_dir() else (root,):
        inside = path.relative_to(root.parent)
        left = any(part == "__pycache__" or part.startswith(".") for part in inside.parts)
        if path.is_file() and not left:
            yield f"{inside.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def _root(module: str) -> Path | None:
    """Return the regular package or the file that a module belongs to.

    A namespace package is shared by several distributions, so the first regular one inside counts.
    """
    for spec in _specs(module):
        if spec.has_location and spec.origin is not None:
            origin = Path(spec.origin)
            return origin.parent if origin.name == "__init__.py" else origin
    return None


def _specs(module: str) -> tuple[ModuleSpec, ...]:
    """Find each part of a dotted name in turn, importing none; empty where one is not there."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing, having no parent
    except (ImportError, ValueError):
        return ()
    found = []
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return ()
        found.append(spec)
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return (*found, spec) if spec is not None else ()
