"""Which packages import, asked in a child process."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.api.importable import LOOKED_FOR, Imports, problem


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules on the path that a child finds too: `sys.path` is handed on."""
    for name, text in (
        ("talks_a_lot", "print('hello'); print('edgeopt-import')"),
        ("lacks_a_library", "raise OSError('liblacks.so: cannot open\\nand more')"),
        ("ends_it", "import os; os._exit(3)"),
        ("aborts", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"),
    ):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_each_answer_is_one_line_and_an_abort_is_one_too(packages: None) -> None:
    names = ["json", "talks_a_lot", "aborts", "lacks_a_library", "ends_it", "not_there_at_all"]
    with Imports(names) as imports:
        assert imports.problems() == {
            "json": "",
            "talks_a_lot": "",
            "aborts": "does not import: it ends the process (signal 6)",
            "lacks_a_library": "does not import: OSError: liblacks.so: cannot open",
            "ends_it": "does not import: it ends the process (code 3)",
            "not_there_at_all": "not installed",
        }


def test_nothing_is_asked_of_nothing() -> None:
    with Imports([]) as imports:
        assert imports.problems() == {}


def test_here_it_says_the_same(packages: None) -> None:
    assert problem("json") == ""
    assert problem("not_there_at_all") == "not installed"
    assert problem("lacks_a_library") == "does not import: OSError: liblacks.so: cannot open"


def test_what_is_looked_for_is_not_imported(
    packages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOOKED_FOR, "aborts", ("json",))
    assert problem("aborts") == ""
    monkeypatch.setitem(LOOKED_FOR, "aborts", ("json", "not_there_at_all"))
    assert problem("aborts") == "needs not_there_at_all, which is not installed"
