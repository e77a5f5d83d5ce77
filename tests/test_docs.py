"""The documentation's code runs, and what it says of the code is true."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeopt.verify import invariants

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "writing_a_pass.md"


def blocks(path: Path) -> list[tuple[int, str]]:
    """Return (first line, code) of each python block."""
    text = path.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n") + 1, match.group(1))
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.fixture(scope="module")
def guide() -> Iterator[dict[str, Any]]:
    """Execute the guide's blocks one after the other, as a reader would."""
    module = types.ModuleType("writing_a_pass")
    sys.modules[module.__name__] = module  # dataclasses look there for names in annotations
    for line, code in blocks(GUIDE):
        # empty lines in front, so that a traceback shows the guide's own line
        source = "\n" * (line - 1) + code
        exec(compile(source, str(GUIDE), "exec", dont_inherit=True), vars(module))
    yield vars(module)
    del sys.modules[module.__name__]


TESTS = re.findall(r"^def (test_\w+)\(\):", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", TESTS)
def test_the_guides_own_test_passes(name: str, guide: dict[str, Any]) -> None:
    guide[name]()


def test_the_guide_has_tests_for_each_of_its_passes() -> None:
    assert len(TESTS) >= 7
    assert len(blocks(GUIDE)) == 4


def test_the_guide_lists_every_invariant_and_no_other() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = text.partition("## The verifier")[2].partition("## A check list")[0]
    told = re.findall(r"^\| *\w* *\| `([\w-]+)` \|", table, re.MULTILINE)
    assert told == [name for names in invariants().values() for name in names]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_files_that_a_guide_names_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:edgeopt|exporters|runtime_tests|device_profiles|tests|docs)/[\w/.]+\.\w+)`",
        path.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []
