"""The installed package is the checkout's: every package, every data file, one-way imports."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("exporters", "runtime_tests", "device_profiles")
SOURCES = ("edgeopt", *MAPPED)
# What each part must not import: core <- exporters <- runtime_tests <- API and CLI.
FORBIDDEN = {
    "core": ("edgeopt.exporters", "edgeopt.runtime_tests", "edgeopt.api", "edgeopt.cli"),
    "exporters": ("edgeopt.runtime_tests", "edgeopt.api", "edgeopt.cli"),
    "runtime_tests": ("edgeopt.api", "edgeopt.cli"),
    "api": ("edgeopt.cli",),
    "report": ("edgeopt.exporters", "edgeopt.runtime_tests", "edgeopt.api", "edgeopt.cli"),
}

# Floors: a room may import only rooms of the floors above it in this list.
FLOORS = (
    ("version", "errors", "progress", "numerics"),
    ("files", "registry"),
    ("userfile",),
    ("ir", "results"),
    ("quant", "limits"),
    ("contracts", "devices", "integer", "report"),
    ("pipeline", "artifacts"),
    ("analysis", "data", "device_profiles", "exporters"),
    ("models", "runtime_tests"),
    ("adapters", "app_assets"),
    ("passes",),
    ("recipes",),
    ("api",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MOST_ROOMS = 32


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed(edgeopt_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel into a folder, as an installer would, and return that."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(edgeopt_wheel) as wheel:
        wheel.extractall(target)
    return target


def _name(path: Path) -> str:
    """Return the dotted name of a folder or module of the checkout."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "edgeopt" else ("edgeopt", *parts)
    return ".".join(part for part in parts if part != "__init__")


def _modules(folder: str) -> Iterator[Path]:
    return (p for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts)


def _data_files() -> list[Path]:
    return [
        path.relative_to(ROOT)
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc") and "egg-info" not in str(path)
    ]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"{path}: relative import"
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def _part(path: Path) -> str | None:
    """Return which part of FORBIDDEN a module belongs to; None: it may import everything."""
    top, *rest = path.relative_to(ROOT).parts
    if top in ("exporters", "runtime_tests"):
        return top
    if top != "edgeopt" or rest[0] in ("cli", "__main__.py", "__init__.py"):
        return None
    return rest[0] if rest[0] in ("api", "report") else "core"


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    folders = {_name(p.parent) for name in SOURCES for p in (ROOT / name).rglob("__init__.py")}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders)
    bare = {_name(p.parent) for name in SOURCES for p in _modules(name)} - folders
    assert not bare, "folders with modules and no __init__.py"


def test_every_mapped_folder_is_mapped(project: dict[str, Any]) -> None:
    mapping = {f"edgeopt.{name}": name for name in MAPPED}
    assert project["tool"]["setuptools"]["package-dir"] == mapping


def test_imports_go_one_way() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in SOURCES
        for path in _modules(folder)
        if (part := _part(path)) is not None
        for name in sorted(_imports(path))
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN[part])
    ]
    assert not broken


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _graph() -> dict[str, set[str]]:
    """Return module -> modules of edgeopt that it imports, wherever in the file."""
    names = {_name(path): path for folder in SOURCES for path in _modules(folder)}
    return {
        name: {found for found in _imports(path) if found in names} - {name}
        for name, path in names.items()
    }


def test_every_room_has_a_floor() -> None:
    rooms = {_room(module) for module in _graph()} - {""}
    assert rooms == set(LEVEL)
    assert len(rooms - {"__main__"}) <= MOST_ROOMS


def test_imports_go_down_the_floors() -> None:
    upward = [
        f"{module} imports {found}"
        for module, imported in _graph().items()
        for found in sorted(imported)
        if module != "edgeopt" and _room(found) not in ("", _room(module))
        if LEVEL[_room(found)] >= LEVEL[_room(module)]
    ]
    assert not upward


def test_the_guide_tells_the_floors() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## The floors")[2].partition("## Where something")[0]
    told: list[list[str]] = []
    for floor, room in re.findall(r"^\| *(\d*) *\| `(\w+)` \|", table, re.MULTILINE):
        told += [[]] if floor else []
        assert not floor or int(floor) == len(told)
        told[-1].append(room)
    assert told == [list(rooms) for rooms in FLOORS]


def test_only_the_public_face_imports_upward() -> None:
    # `edgeopt.build` is handed out lazily by the package itself
    graph = _graph()
    assert {_room(found) for found in graph["edgeopt"]} == {"api", "version"}
    assert not [m for m, found in graph.items() if "edgeopt" in found and _room(m) != "__main__"]


def test_no_files_import_each_other_in_a_circle() -> None:
    order = graphlib.TopologicalSorter(_graph())
    order.prepare()  # a CycleError names the files


def test_the_mapped_folders_go_by_one_name() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in (*SOURCES, "tests")
        for path in _modules(folder)
        for name in sorted(_imports(path))
        if name.partition(".")[0] in MAPPED
    ]
    assert not broken


@pytest.mark.parametrize("name", MAPPED)
def test_a_bare_import_of_a_mapped_folder_says_its_name(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"import edgeopt.{name}, not {name}" in ran.stderr


def test_a_wheel_holds_every_module_and_data_file(installed: Path) -> None:
    assert _data_files()
    missing = []
    for path in [*_data_files(), *(p.relative_to(ROOT) for n in SOURCES for p in _modules(n))]:
        inside = path if path.parts[0] == "edgeopt" else Path("edgeopt") / path
        if not (installed / inside).is_file():
            missing.append(str(inside))
    assert not missing
    top = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"edgeopt"}, "generic top-level names leak"


def test_a_wheel_holds_the_licence_and_the_notice(installed: Path) -> None:
    (folder,) = installed.glob("edgeopt-*.dist-info/licenses")
    for name in ("LICENSE", "NOTICE"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_an_installed_copy_works_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = (
        "import edgeopt, edgeopt.exporters.base, edgeopt.runtime_tests.base\n"
        "from edgeopt.devices.profile import load_profile, profile_names\n"
        "from edgeopt.recipes.recipe import load_recipe, recipe_names\n"
        "assert profile_names() and recipe_names()\n"
        "[load_profile(n) for n in profile_names()], [load_recipe(n) for n in recipe_names()]\n"
        "print(edgeopt.__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(installed)


def test_importing_edgeopt_loads_no_torch() -> None:
    code = "import sys, edgeopt; print('torch' in sys.modules, edgeopt.__version__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[0] == "False"


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    import edgeopt

    assert project["project"]["version"] == edgeopt.__version__


def test_the_constraints_pin_every_requirement(project: dict[str, Any]) -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {requirement.name.lower(): requirement for requirement in found}
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(r for rows in extras.values() for r in rows)]
    for text in wanted:
        requirement = Requirement(text)
        (exact,) = pins[requirement.name.lower()].specifier
        assert requirement.specifier.contains(exact.version), text
