"""Plug-ins are listed without importing them, and what a build used of them is hashed."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from edgeopt.registry import plugins
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import PASSES, RECIPES
from edgeopt.registry.lookup import find
from edgeopt.registry.plugins import (
    Installed,
    Plugin,
    Standing,
    installed,
    named,
    problems,
    standing,
    used,
)
from tests.installing import install

FAILS = "raise RuntimeError('imported')"


def only(package: str) -> Installed:
    (found,) = (p for p in installed() if p.distribution.name == package)
    return found


def hash_of(package: str) -> str:
    (found,) = used(only(package).entries)
    assert found.package == package
    return found.sha256


def test_a_plugin_is_listed_with_what_it_adds_and_not_imported(site: Path) -> None:
    points = {
        "edgeopt.recipes": {"fast": "acme.files:recipe"},
        "edgeopt.passes": {"squash": "acme.passes:Squash", "clip": "acme.passes:Clip"},
        "console_scripts": {"acme": "acme:main"},
    }
    files = {"acme/__init__.py": FAILS, "acme/passes.py": FAILS, "acme/files.py": FAILS}
    install(site, "acme", points, files, version="1.2")
    install(site, "unrelated", {"console_scripts": {"edgeoptimist": "x:main"}})
    found = only("acme")
    assert str(found.distribution) == "acme 1.2"
    assert found.gives == {"passes": ("clip", "squash"), "recipes": ("fast",)}
    assert problems(found) == ()
    assert [e.name for e in plugins.entries(PASSES) if e.plugin == found.distribution] == [
        "clip",
        "squash",
    ]
    assert not [p for p in installed() if p.distribution.name == "unrelated"]
    assert not [name for name in sys.modules if name.partition(".")[0] == "acme"]


def test_of_a_package_that_is_on_the_path_twice_the_first_counts(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "acme-pack", {"edgeopt.passes": {"old": "acme:Old", "gone": "acme:Gone"}})
    first = site.parent / "first"
    monkeypatch.syspath_prepend(str(first))
    install(first, "Acme_Pack", {"edgeopt.passes": {"old": "acme:New"}}, version="2.0")
    ours = [p for p in installed() if p.distribution.name.lower().startswith("acme")]
    assert [str(p.distribution) for p in ours] == ["Acme_Pack 2.0"]
    assert [(e.name, e.place) for e in ours[0].entries] == [("old", "acme:New")]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("gone:Pass", "there is no module gone"),
        ("acme.gone:Pass", "there is no module acme.gone"),
        ("acme.one.deeper:Pass", "there is no module acme.one.deeper"),
        ("acme.one:Pass", ""),
        ("acme.sub:Pass", ""),
        (":Pass", "its entry points cannot be read: "),
    ],
)
def test_a_missing_module_shows_without_importing(site: Path, place: str, problem: str) -> None:
    files = {"acme/__init__.py": FAILS, "acme/one.py": FAILS, "acme/sub/__init__.py": FAILS}
    install(site, "acme", {"edgeopt.passes": {"clip": place}}, files)
    found = problems(only("acme"))
    assert len(found) == bool(problem)
    assert not problem or found[0].startswith(problem)


def test_damaged_entry_points_are_a_problem_of_their_package_alone(site: Path) -> None:
    install(site, "acme", "[edgeopt.passes]\nno equals sign\n")
    install(site, "zeta", {"edgeopt.passes": {"fine": "zeta:Fine"}})
    (site / "odd-1.0.dist-info").mkdir()
    (site / "odd-1.0.dist-info" / "entry_points.txt").write_bytes(b"[edgeopt.passes]\n\xff\xfe")
    assert problems(only("acme"))[0].startswith("its entry points cannot be read: ")
    assert find(PASSES, "fine").plugin == only("zeta").distribution
    assert find(PASSES, "capture").plugin is None


def test_an_unknown_group_is_a_problem(site: Path) -> None:
    points = {"edgeopt.pases": {"clip": "acme:Clip"}, "edgeopt.passes": {"cut": "acme:Cut"}}
    install(site, "acme", points, {"acme.py": ""})
    told = "group 'edgeopt.pases' is not known (did you mean 'edgeopt.passes'?)"
    assert problems(only("acme")) == (told,)
    assert only("acme").gives == {"passes": ("cut",)}


def test_a_name_that_others_have_is_a_problem_of_each(site: Path) -> None:
    install(site, "acme", {"edgeopt.passes": {"clip": "acme:Clip"}}, {"acme.py": ""})
    points = {"edgeopt.passes": {"clip": "zeta:Clip", "capture": "zeta:Capture"}}
    install(site, "zeta", points, {"zeta.py": ""})
    assert problems(only("acme")) == ("pass 'clip' is also that of zeta 1.0",)
    assert problems(only("zeta")) == (
        "pass 'capture' is also that of edgeopt itself",
        "pass 'clip' is also that of acme 1.0",
    )


def test_what_a_build_used_is_told_by_kind(site: Path) -> None:
    points = {
        "edgeopt.passes": {"clip": "acme:Clip", "cut": "acme:Cut"},
        "edgeopt.recipes": {"fast": "acme:recipe"},
    }
    install(site, "acme", points, {"acme.py": ""})
    install(site, "zeta", {"edgeopt.passes": {"other": "zeta:Other"}}, {"zeta.py": ""})
    asked = [find(RECIPES, "fast"), find(PASSES, "cut"), find(PASSES, "capture")]
    (found,) = used([*asked, find(PASSES, "cut")])
    assert (found.package, found.version) == ("acme", "1.0")
    assert found.gives == {"passes": ("cut",), "recipes": ("fast",)}
    assert used([find(PASSES, "capture")]) == ()


def test_what_a_plugin_requires_belongs_to_it(site: Path) -> None:
    needs = ("Beta_Pack>=1", "numpy", "gamma; extra == 'dev'", "delta ; python_version > '3'")
    for name, requires in (("acme", needs), ("beta-pack", ("acme", "epsilon")), ("gamma", ())):
        module = name.replace("-", "_")
        points = {"edgeopt.passes": {f"of_{module}": f"{module}:P"}}
        install(site, name, points, {f"{module}.py": ""}, requires=requires)
    for name in ("delta", "epsilon", "zeta"):
        points = {"edgeopt.passes": {f"of_{name}": f"{name}:P"}}
        install(site, name, points, {f"{name}.py": ""})
    found = used([find(PASSES, "of_acme")])
    assert [p.package for p in found] == ["acme", "beta-pack", "delta", "epsilon"]
    assert [dict(p.gives) for p in found] == [{"passes": ("of_acme",)}, {}, {}, {}]


def acme(site: Path, source: str = "VALUE = 1\n") -> None:
    files = {
        "acme/__init__.py": "",
        "acme/passes/__init__.py": source,
        "acme/files/board.toml": "name = 'board'\n",
        "acme_more.py": "x = 1\n",
    }
    points = {"edgeopt.passes": {"clip": "acme.passes:Clip", "cut": "acme_more:Cut"}}
    install(site, "acme", points, files)


def test_the_hash_is_that_of_the_files_and_not_of_the_place(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme(site)
    first = hash_of("acme")
    for left in ("__pycache__/__init__.cpython-311.pyc", ".DS_Store", "files/__pycache__/x.pyc"):
        (site / "acme" / left).parent.mkdir(exist_ok=True)
        (site / "acme" / left).write_bytes(b"left")
    assert hash_of("acme") == first
    elsewhere = site.parent / ".venv" / "other"
    monkeypatch.syspath_prepend(str(elsewhere))
    acme(elsewhere)
    assert only("acme").entries
    shutil.rmtree(site / "acme")
    assert hash_of("acme") == first


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("acme/passes/__init__.py", "VALUE = 2\n"),
        ("acme/files/board.toml", "name = 'bread'\n"),
        ("acme/new.py", ""),
        ("acme_more.py", "x = 2\n"),
    ],
)
def test_the_hash_changes_with_any_file(site: Path, path: str, content: str) -> None:
    acme(site)
    before = hash_of("acme")
    (site / path).write_text(content, encoding="utf-8")
    assert hash_of("acme") != before


def test_the_hash_changes_when_a_file_moves(site: Path) -> None:
    acme(site)
    before = hash_of("acme")
    (site / "acme" / "files" / "board.toml").rename(site / "acme" / "board.toml")
    assert hash_of("acme") != before


def test_of_a_namespace_only_the_plugins_own_part_is_hashed(site: Path) -> None:
    files = {"shared/acme/__init__.py": FAILS, "shared/acme/one.py": FAILS}
    install(site, "acme", {"edgeopt.passes": {"clip": "shared.acme.one:Clip"}}, files)
    points = {"edgeopt.passes": {"cut": "shared.zeta:Cut"}}
    install(site, "zeta", points, {"shared/zeta.py": "x = 1\n"})
    assert problems(only("acme")) == problems(only("zeta")) == ()
    first, second = hash_of("acme"), hash_of("zeta")
    assert first != second
    (site / "shared" / "zeta.py").write_text("x = 2\n", encoding="utf-8")
    assert hash_of("acme") == first
    assert hash_of("zeta") != second
    (site / "shared" / "acme" / "one.py").write_text("x = 2\n", encoding="utf-8")
    assert hash_of("acme") != first


class Finder:
    """What an editable install leaves: a finder that knows where the sources are."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._folder / "__init__.py")


def test_an_editable_install_is_hashed_where_its_sources_are(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = site.parent / "checkout" / "src"
    acme(source)
    shutil.rmtree(source / "acme-1.0.dist-info")
    points = {"edgeopt.passes": {"clip": "acme.passes:Clip"}}
    install(site, "acme", points)
    assert problems(only("acme")) == ("there is no module acme.passes",)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder("acme", source / "acme")])
    assert problems(only("acme")) == ()
    edited = hash_of("acme")
    shutil.copytree(source / "acme", site / "acme")
    assert hash_of("acme") == edited
    (source / "acme" / "new.py").write_text("", encoding="utf-8")
    assert hash_of("acme") == edited, "the copy in site comes first"
    shutil.rmtree(site / "acme")
    assert hash_of("acme") != edited


def test_a_plugin_is_held_against_what_is_here(site: Path) -> None:
    acme(site)
    (then,) = used([find(PASSES, "clip"), find(PASSES, "cut")])
    assert standing(then) == Standing(True)
    assert standing(dataclasses.replace(then, package="ACME")) == Standing(True)
    older = standing(dataclasses.replace(then, version="0.9"))
    assert older == Standing(True, "acme 0.9 made it, 1.0 is installed here")
    (site / "acme_more.py").write_text("x = 3\n", encoding="utf-8")
    edited = standing(then)
    assert edited == Standing(True, "acme 1.0: its files are not those of the build")


def test_a_plugin_that_is_not_here_is_told_with_what_it_gave() -> None:
    then = Plugin("acme", "1.0", "", {"passes": ("clip", "cut"), "recipes": ("fast",)})
    told = "acme 1.0 is not installed; it gave passes clip, cut; recipes fast"
    assert standing(then) == Standing(False, told)
    required = standing(Plugin("acme", "1.0", ""))
    assert required.message.endswith("it gave what another plug-in requires")


def test_entries_of_a_name_are_those_of_plugins(site: Path) -> None:
    acme(site)
    assert [entry.place for entry in named(PASSES, "cut")] == ["acme_more:Cut"]
    assert named(PASSES, "capture") == named(RECIPES, "some/recipe.toml") == ()


def test_entries_tell_their_module() -> None:
    assert Entry(PASSES, "clip", "acme.passes:Outer.Clip").module == "acme.passes"
