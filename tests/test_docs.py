"""The documentation's code runs, and what it says of the code is true."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeopt.pipeline.verifier.check import invariants
from edgeopt.registry.kinds import ALL

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GUIDE = DOCS / "writing_a_pass.md"
PLUGINS = DOCS / "plugins.md"
"""Its code blocks are files of a package, which `tests/plugins` installs and uses."""
SAMPLE = ROOT / "tests" / "plugins" / "edgeopt-sample"
GUIDES = sorted(
    path
    for path in DOCS.glob("*.md")
    if path != PLUGINS and "```python\n" in path.read_text("utf-8")
)


def blocks(path: Path) -> list[tuple[int, str]]:
    """Return (first line, code) of each python block."""
    text = path.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n") + 1, match.group(1))
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def own_tests(path: Path) -> list[str]:
    """Return the names of the tests that a guide holds."""
    return re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def guides() -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Execute a guide's blocks one after the other, as a reader would; once each."""
    done: dict[Path, types.ModuleType] = {}

    def execute(path: Path) -> dict[str, Any]:
        if path not in done:
            module = types.ModuleType(path.stem)
            sys.modules[module.__name__] = module  # dataclasses look there for annotations
            done[path] = module
            for line, code in blocks(path):
                # empty lines in front, so that a traceback shows the guide's own line
                source = "\n" * (line - 1) + code
                exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        return vars(done[path])

    yield execute
    for module in done.values():
        del sys.modules[module.__name__]


TESTS = [pytest.param(p, n, id=f"{p.stem}-{n}") for p in GUIDES for n in own_tests(p)]


@pytest.mark.parametrize(("guide", "name"), TESTS)
def test_the_guides_own_test_passes(
    guide: Path, name: str, guides: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    test = guides(guide)[name]
    test(tmp_path) if inspect.signature(test).parameters else test()


def test_the_guides_have_tests_for_each_of_their_passes() -> None:
    assert len(own_tests(GUIDE)) >= 7
    assert len(blocks(GUIDE)) == 4
    assert len(own_tests(DOCS / "writing_a_legalization.md")) >= 2
    assert len(own_tests(DOCS / "writing_an_exporter.md")) >= 5


def test_the_catalogue_of_passes_is_that_of_the_docstrings() -> None:
    from edgeopt.cli.catalogue import passes_markdown
    from edgeopt.passes import shipped

    told = (DOCS / "passes.md").read_text(encoding="utf-8")
    assert told == passes_markdown(shipped()), "run: edgeopt passes --markdown > docs/passes.md"
    assert told.count("\n## ") == len(shipped())


def test_the_guide_lists_every_invariant_and_no_other() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = text.partition("## The verifier")[2].partition("## A check list")[0]
    told = re.findall(r"^\| *\w* *\| `([\w-]+)` \|", table, re.MULTILINE)
    assert told == [name for names in invariants().values() for name in names]


def test_the_guide_to_plugins_shows_the_files_of_the_sample() -> None:
    shown = dict(
        re.findall(
            r"^`([\w/.-]+)`:\n\n```\w+\n(.*?)^```$",
            PLUGINS.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
    )
    files = [p for p in SAMPLE.rglob("*") if p.suffix in (".py", ".toml")]
    of_sample = {
        p.relative_to(SAMPLE).as_posix(): p.read_text(encoding="utf-8")
        for p in files
        if p.name != "__init__.py"
    }
    assert shown == of_sample


def test_the_guide_to_plugins_lists_every_group() -> None:
    told = re.findall(r"^\| `(edgeopt\.\w+)` \|", PLUGINS.read_text("utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(kind.group for kind in ALL)
    points = tomllib.loads((SAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    assert sorted(points["entry-points"]) == sorted(told)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_files_that_a_guide_names_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:edgeopt|exporters|runtime_tests|device_profiles|tests|docs)/[\w/.-]+\.\w+)`",
        path.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []
