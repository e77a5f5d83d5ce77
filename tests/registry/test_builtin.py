"""What ships with edgeopt is read from its folders, and is what importing gives."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeopt.adapters.family import Reader
from edgeopt.contracts.contract import Contract
from edgeopt.devices.profile import load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.exporters.base import Exporter
from edgeopt.limits.quantities import QUANTITIES
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.recipes.recipe import load_recipe
from edgeopt.registry import kinds
from edgeopt.registry.builtin import Classes, Files
from edgeopt.registry.kinds import Kind
from edgeopt.registry.lookup import builtin
from edgeopt.runtime_tests.inspection import Inspector

CLASSES = [kind for kind in kinds.ALL if isinstance(kind.builtin, Classes)]
BASES: dict[Kind, type[Any]] = {
    kinds.PASSES: Pass,
    kinds.EXPORTERS: Exporter,
    kinds.INSPECTORS: Inspector,
    kinds.RUNNERS: object,
    kinds.CONTRACTS: Contract,
    kinds.ADAPTERS: Reader,
}


def imported(kind: Kind) -> dict[str, type[Any]]:
    """Import every module that the pattern covers; return its own classes that have a name."""
    where = kind.builtin
    assert isinstance(where, Classes)
    folder = Path(importlib.import_module(where.package).__path__[0])
    found = {}
    for path in sorted(folder.glob(where.pattern)):
        inside = path.relative_to(folder).with_suffix("").parts
        module = importlib.import_module(".".join((where.package, *inside)))
        for _, type_ in inspect.getmembers(module, inspect.isclass):
            name = vars(type_).get(where.attribute)
            if type_.__module__ == module.__name__ and isinstance(name, str):
                found[name] = type_
    return found


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.plural)
def test_reading_the_source_finds_what_importing_finds(kind: Kind) -> None:
    assert isinstance(kind.builtin, Classes)
    by_import, by_source = imported(kind), {c.name: c for c in kind.builtin.read()}
    assert by_source
    assert list(by_source) == [entry.name for entry in builtin(kind)]
    assert {name: (t.__module__, t.__qualname__) for name, t in by_import.items()} == {
        name: (c.module, c.qualname) for name, c in by_source.items()
    }
    for name, type_ in by_import.items():
        assert by_source[name].doc == (inspect.getdoc(type_) or "")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.plural)
def test_every_class_is_what_its_kind_is(kind: Kind) -> None:
    assert isinstance(kind.builtin, Classes)
    for entry in builtin(kind):
        found = entry.load_class(BASES[kind], kind.builtin.attribute)
        assert entry.load() is found


def test_every_subclass_of_a_base_is_found() -> None:
    def below(type_: type[Any]) -> set[type[Any]]:
        return {t for s in type_.__subclasses__() for t in (s, *below(s))}

    for kind in CLASSES:
        if BASES[kind] is object:
            continue
        ours = {t for t in below(BASES[kind]) if t.__module__.startswith("edgeopt.")}
        named = {t for t in ours if not inspect.isabstract(t)}
        assert {entry.load() for entry in builtin(kind)} >= named


@pytest.mark.parametrize(
    ("kind", "name_of"),
    [
        (kinds.PROFILES, lambda name: load_profile(name).name),
        (kinds.RULES, lambda name: load_rules(name).name),
        (kinds.RECIPES, lambda name: load_recipe(name).name),
    ],
    ids=lambda value: getattr(value, "plural", ""),
)
def test_a_file_is_called_what_it_calls_itself(kind: Kind, name_of: Any) -> None:
    assert isinstance(kind.builtin, Files)
    found = builtin(kind)
    assert found
    assert [name_of(entry.name) for entry in found] == [entry.name for entry in found]
    assert all(entry.file().is_file() for entry in found)


def test_a_name_may_have_what_a_files_name_cannot() -> None:
    assert "vit-2:4-int8" in [entry.name for entry in builtin(kinds.RECIPES)]


def test_the_quantities_are_those_of_their_table() -> None:
    assert [entry.name for entry in builtin(kinds.QUANTITIES)] == list(QUANTITIES)
    assert all(entry.load() is QUANTITIES for entry in builtin(kinds.QUANTITIES))


def test_every_source_of_models_is_a_function() -> None:
    assert [e.name for e in builtin(kinds.MODELS)] == ["hf", "timm", "zoo"]
    assert all(callable(entry.load()) for entry in builtin(kinds.MODELS))


def test_only_classes_that_name_themselves_count(site: Path) -> None:
    package = site / "shelf"
    (package / "one").mkdir(parents=True)
    for folder in (package, package / "one"):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "one" / "a.py").write_text(
        "class Base:\n"
        "    name: str\n"
        "class Written:\n"
        '    """First.\n\n    Second.\n    """\n'
        "    name: str = 'written'\n"
        "    effect = Effect.EQUIVALENT\n"
        "class Computed:\n"
        "    name = 'com' + 'puted'\n"
        "def function():\n"
        "    class Inner:\n"
        "        name = 'inner'\n",
        encoding="utf-8",
    )
    (package / "one" / "b.py").write_text("class Other:\n    name = 'other'\n", encoding="utf-8")
    written, other = Classes("shelf", "*/*.py", "name").read()
    assert (written.name, written.module, written.qualname) == ("written", "shelf.one.a", "Written")
    assert written.doc == "First.\n\nSecond."
    assert written.values == {"name": "'written'", "effect": "Effect.EQUIVALENT"}
    assert Classes("shelf", "*/*.py", "name").places()["other"] == "shelf.one.b:Other"
    assert other.doc == ""
    assert "shelf" not in sys.modules


def test_listing_every_kind_imports_nothing_of_it() -> None:
    code = (
        "import sys\n"
        "from edgeopt.registry.kinds import ALL\n"
        "from edgeopt.registry.lookup import listed\n"
        "assert all(listed(kind) for kind in ALL)\n"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'edgeopt')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {"edgeopt", "edgeopt.version", "edgeopt.errors", "edgeopt.registry"}
    ours |= {f"edgeopt.registry.{m}" for m in ("builtin", "entry", "kinds", "lookup", "plugins")}
    assert set(ran.stdout.split()) == ours
