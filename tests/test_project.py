"""What surrounds the code: licences, version ranges, CI, the documentation's site."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = """
lint:
	@echo 'Found 1 error.'; exit {lint}
test:
	@echo '=== 1 passed in 0.10s ==='; exit {test}
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


@pytest.fixture(scope="module")
def hooks() -> types.ModuleType:
    """Return docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = project["optional-dependencies"]
    rows = [r for name, extra in extras.items() if name != "docs" for r in extra]
    return [Requirement(row) for row in (*project["dependencies"], *rows)]


def _pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {r.name.lower(): Version(next(iter(r.specifier)).version) for r in found}


def _floor(requirement: Requirement) -> Version | None:
    bounds = [s.version for s in requirement.specifier if s.operator == ">="]
    return Version(bounds[0]) if bounds else None


def test_the_licence_and_the_notice_are_there_and_named(project: dict[str, Any]) -> None:
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE", "NOTICE"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_notice_names_every_bundled_weights_file_and_no_other() -> None:
    bundled = {path.name for path in (ROOT / "edgeopt").rglob("*.safetensors")}
    told = re.findall(r"[\w-]+\.safetensors", (ROOT / "NOTICE").read_text(encoding="utf-8"))
    assert bundled
    assert sorted(told) == sorted(bundled)


def test_the_oldest_constraints_are_the_lower_bounds(project: dict[str, Any]) -> None:
    pins, usual = _pins("constraints-oldest.txt"), _pins("constraints.txt")
    for requirement in _requirements(project):
        name = requirement.name.lower()
        expected = _floor(requirement) or usual[name]
        assert pins[name] == expected, f"constraints-oldest.txt: {name}=={expected}"


def test_the_newest_constraints_hold_nothing_back_below_what_is_tested() -> None:
    usual = _pins("constraints.txt")
    lines = (ROOT / "constraints-newest.txt").read_text(encoding="utf-8").splitlines()
    for requirement in [Requirement(line) for line in lines if line and line[0] != "#"]:
        assert requirement.specifier.contains(usual[requirement.name.lower()])


@pytest.mark.parametrize(
    ("lint", "test"), [(0, 0), (1, 0), (0, 1), (1, 1)], ids=["both-pass", "lint", "test", "both"]
)
def test_ci_runs_lint_and_tests_and_fails_if_either_does(
    lint: int, test: int, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(MAKEFILE.format(lint=lint, test=test), encoding="utf-8")
    ran = subprocess.run(
        ["bash", ".ci/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (ran.returncode == 0) == (lint == test == 0)
    assert "Found 1 error." in ran.stdout
    assert ran.stdout.splitlines()[-1] == "=== 1 passed in 0.10s ==="


@pytest.mark.parametrize(
    "path", [".ci/run", ".pre-commit-config.yaml", ".github/workflows/ci.yml", "CONTRIBUTING.md"]
)
def test_make_targets_that_a_file_names_exist(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"\$\{\{ matrix\.end \}\}", "oldest", text)
    flags = r"(?:--silent |--old-file \S+ )*"
    named = re.findall(rf"(?:^|[`:] ?|entry: )\bmake {flags}([a-z][a-z-]*)", text, re.MULTILINE)
    targets = re.findall(
        r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert named
    assert set(named) <= set(targets)


def test_the_site_links_pages_and_drops_links_to_what_is_no_page(hooks: types.ModuleType) -> None:
    text = "[a](docs/gate.md#limits) [b](CHANGELOG.md) [c](LICENSE) [d](https://a.example) [e](#f)"
    told = "[a](gate.md#limits) [b](changelog.md) c [d](https://a.example) [e](#f)"
    assert hooks.as_page(text) == told
    for source in hooks.PAGES.values():
        assert (ROOT / source).is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.html", '<script async src="https://cdn.example/x.js"></script>'),
        ("index.html", "<link rel=stylesheet href=//cdn.example/x.js>"),
        ("a/b.html", "<style>@import 'https://cdn.example/x.js';</style>"),
        ("a/b.css", "@font-face { src: url(https://cdn.example/x.js) }"),
    ],
    ids=["script", "link", "style", "font"],
)
def test_the_site_check_finds_what_a_browser_would_fetch(
    name: str, text: str, hooks: types.ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    ((path, place),) = hooks.fetched(tmp_path)
    assert str(path) == name
    assert place.endswith("//cdn.example/x.js")


def test_the_site_check_lets_links_and_own_files_pass(
    hooks: types.ModuleType, tmp_path: Path
) -> None:
    text = '<a href="https://a.example">a</a><script src="assets/x.js"></script>'
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    assert list(hooks.fetched(tmp_path)) == []


def test_what_is_called_slow_is_there() -> None:
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (slow,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLOW"
    )
    for entry in slow:
        file, _, test = entry.partition("::")
        place = ROOT / "tests" / file
        assert place.exists(), entry
        assert not test or f"def {test}(" in place.read_text(encoding="utf-8"), entry
