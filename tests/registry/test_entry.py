"""A plug-in's class, function or file is loaded when it is asked for, and checked."""

from __future__ import annotations

import abc
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgeopt.errors import ConfigError, PluginError
from edgeopt.registry.entry import Distribution, Entry
from edgeopt.registry.kinds import EXPORTERS, PASSES, PROFILES
from tests.installing import install

ACME = Distribution("acme", "1.2")


class Tool(abc.ABC):
    """What the entries of these tests are."""

    name: ClassVar[str]

    @abc.abstractmethod
    def work(self) -> str:
        """Work."""


SOURCE = """
    from tests.registry.test_entry import Tool

    class Good(Tool):
        name = "good"
        def work(self):
            return "done"

    class Other(Tool):
        name = "other"
        def work(self):
            return "done"

    class Nameless(Tool):
        def work(self):
            return "done"

    class Idle(Tool):
        name = "good"

    class Stuck(Good):
        def __init__(self):
            raise ValueError("no licence\\nsecond line")

    class Outer:
        class Inner(Good):
            pass

    class Plain:
        name = "good"

    good = Good()
"""


def entry(place: str, name: str = "good") -> Entry:
    return Entry(PASSES, name, place, ACME)


@pytest.fixture
def acme(site: Path) -> Path:
    install(site, "acme", {}, {"acme_tools.py": SOURCE})
    return site


def test_a_class_is_imported_and_made(acme: Path) -> None:
    assert entry("acme_tools:Good").make(Tool, "name").work() == "done"
    assert entry("acme_tools:Outer.Inner").load_class(Tool, "name").__name__ == "Inner"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("acme_tools:Other", "calls itself 'other'; the entry point's name and Other.name must"),
        ("acme_tools:Nameless", "calls itself None; the entry point's name and Nameless.name must"),
        ("acme_tools:Plain", "is no Tool"),
        ("acme_tools:good", "is no Tool"),
        ("acme_tools:Idle", "lacks work"),
        ("acme_tools:Stuck", "cannot be made: ValueError: no licence"),
        ("acme_tools:Gone", "there is no Gone"),
        ("acme_tools:Outer.Gone", "there is no Outer.Gone"),
        ("acme_tools:", "there is no class or function named"),
        ("acme_tool:Good", "does not import: ModuleNotFoundError: No module named 'acme_tool'"),
    ],
)
def test_what_is_no_such_class_names_itself(acme: Path, place: str, problem: str) -> None:
    start = re.escape(f"pass 'good' of acme 1.2 ({place}): {problem}")
    with pytest.raises(PluginError, match=f"^{start}") as caught:
        entry(place).make(Tool, "name")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('broken\\nfor a reason')", "RuntimeError: broken"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyError", "KeyError"),
        ("def (", "SyntaxError: invalid syntax (acme_broken.py, line 1)"),
    ],
)
def test_a_module_that_does_not_import_names_itself(site: Path, body: str, told: str) -> None:
    install(site, "acme", {}, {"acme_broken.py": body})
    with pytest.raises(PluginError) as caught:
        entry("acme_broken:Good").load()
    told = f"pass 'good' of acme 1.2 (acme_broken:Good): does not import: {told}"
    assert str(caught.value) == told


def test_what_a_protocol_asks_for_is_asked_for(acme: Path) -> None:
    found = Entry(EXPORTERS, "good", "acme_tools:Plain", ACME)
    assert found.load_class(object, "name").__name__ == "Plain"
    with pytest.raises(
        PluginError, match=r"^format 'good' of acme 1\.2 \(.*: lacks load, version$"
    ):
        found.load_class(object, "name", needs=("version", "load", "name"))
    with pytest.raises(PluginError, match=r"is no class$"):
        Entry(EXPORTERS, "good", "acme_tools:good", ACME).load_class(object, "name")


def test_a_file_is_what_the_function_returns(site: Path) -> None:
    source = """
        from pathlib import Path

        def text():
            return str(Path(__file__).with_name("a.toml"))

        def path():
            return Path(text())

        def missing():
            return Path(__file__).with_name("b.toml")

        def nothing():
            return None

        def fails():
            raise OSError("no disk")
    """
    install(site, "acme", {}, {"acme_files/__init__.py": source, "acme_files/a.toml": ""})

    def file(name: str) -> Path:
        return Entry(PROFILES, "a", f"acme_files:{name}", ACME).file()

    assert file("text") == file("path") == site / "acme_files" / "a.toml"
    told = r"^profile 'a' of acme 1\.2 \(acme_files:\w+\): "
    with pytest.raises(PluginError, match=f"{told}.*b.toml is not a file$"):
        file("missing")
    with pytest.raises(PluginError, match=f"{told}names no file: TypeError: "):
        file("nothing")
    with pytest.raises(PluginError, match=f"{told}names no file: OSError: no disk$"):
        file("fails")


def test_only_what_a_plugins_code_raises_of_its_own_is_reworded() -> None:
    with (
        pytest.raises(
            PluginError, match=r"^pass 'good' of acme 1\.2 \(x:Good\): fails: KeyError: 3$"
        ),
        entry("x:Good").guarded(),
    ):
        raise KeyError(3)
    with pytest.raises(ConfigError, match=r"^on purpose$"), entry("x:Good").guarded():
        raise ConfigError("on purpose")
    with pytest.raises(KeyError), Entry(PASSES, "good", "x:Good").guarded():
        raise KeyError(3)
    with pytest.raises(KeyboardInterrupt), entry("x:Good").guarded():
        raise KeyboardInterrupt


def test_what_ships_with_edgeopt_raises_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Tool):
        name = "failing"

        def __init__(self) -> None:
            raise ValueError("a bug of ours")

        def work(self) -> str:
            return ""

    def failing(self: Entry, *_: Any, **__: Any) -> type[Any]:
        return Failing

    monkeypatch.setattr(Entry, "load_class", failing)
    with pytest.raises(ValueError, match="a bug of ours"):
        Entry(PASSES, "failing", "x:Failing").make(Tool, "name")
