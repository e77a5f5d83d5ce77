"""Where the names that ship with edgeopt are found: in folders, by reading, without importing.

The listing of a folder is the catalogue: a pass that is saved into a family's folder is there.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class SourceClass:
    """A class as its source tells it.

    Attributes:
        name: What it calls itself, by the class variable that was asked for.
        module: The module's dotted name.
        qualname: The class's own name.
        doc: Its docstring, with the indentation removed.
        values: Class variable -> its value as written.
    """

    name: str
    module: str
    qualname: str
    doc: str
    values: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes below a package that name themselves by a class variable.

    Attributes:
        package: The package.
        pattern: Which of its files, as a glob.
        attribute: The class variable with the name.
    """

    package: str
    pattern: str
    attribute: str

    def places(self) -> dict[str, str]:
        """Return name -> `module:class`."""
        return {c.name: f"{c.module}:{c.qualname}" for c in self.read()}

    def read(self) -> tuple[SourceClass, ...]:
        """Return the classes, by folder and file."""
        return _read(self)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a package's folder.

    Attributes:
        package: The package.
        pattern: Which of its files, as a glob.
        escaped: What a name has where a file's name cannot, and what the file's name has there.
    """

    package: str
    pattern: str
    escaped: tuple[str, str] = ("", "")

    def places(self) -> dict[str, str]:
        """Return name -> path."""
        name, file = self.escaped
        found = sorted(_folder(self.package).glob(self.pattern))
        return {path.stem.replace(file, name) if file else path.stem: str(path) for path in found}


@dataclasses.dataclass(frozen=True)
class Table:
    """The values of a module's table, each made by a call whose first argument is its name.

    Attributes:
        package: The module's package.
        module: Its name in there.
        call: What makes a value: `Quantity`.
        attribute: The table.
    """

    package: str
    module: str
    call: str
    attribute: str

    def places(self) -> dict[str, str]:
        """Return name -> `module:table`, in the source's order."""
        place = f"{self.package}.{self.module}:{self.attribute}"
        return dict.fromkeys(_first_arguments(self), place)


@dataclasses.dataclass(frozen=True)
class Named:
    """Names written down, each with its place."""

    table: tuple[tuple[str, str], ...]

    def places(self) -> dict[str, str]:
        """Return name -> `module:attribute`."""
        return dict(self.table)


@functools.cache
def _read(wanted: Classes) -> tuple[SourceClass, ...]:
    return tuple(
        found
        for path in sorted(_folder(wanted.package).glob(wanted.pattern))
        for found in _classes(path, wanted)
    )


@functools.cache
def _first_arguments(wanted: Table) -> tuple[str, ...]:
    source = (_folder(wanted.package) / f"{wanted.module}.py").read_text(encoding="utf-8")
    calls = (
        (node.lineno, node.args[0])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and node.args
        if isinstance(node.func, ast.Name) and node.func.id == wanted.call
    )
    named = ((line, a.value) for line, a in calls if isinstance(a, ast.Constant))
    return tuple(str(name) for _, name in sorted(named))


def _classes(path: Path, wanted: Classes) -> Iterator[SourceClass]:
    inside = path.relative_to(_folder(wanted.package)).with_suffix("")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = dict(_values(node))
        own = values.get(wanted.attribute)
        if isinstance(own, ast.Constant) and isinstance(own.value, str):
            yield SourceClass(
                own.value,
                ".".join((wanted.package, *inside.parts)),
                node.name,
                ast.get_docstring(node) or "",
                {name: ast.unparse(value) for name, value in values.items()},
            )


def _values(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            if isinstance(statement.target, ast.Name):
                yield statement.target.id, statement.value
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    return Path(next(iter(spec.submodule_search_locations)))
