"""CI skips nothing but what needs hardware; elsewhere a skip is a skip with its reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent / "conftest.py"
TESTS = """
import pytest

def test_runs():
    pass

def test_lacks_a_runtime():
    pytest.skip("no runtime here")

@pytest.mark.needs_device
def test_needs_a_gpu():
    pytest.skip("no GPU here")

@pytest.mark.xfail
def test_is_known_to_fail():
    raise ValueError
"""
MODULE = 'import pytest; pytest.importorskip("no_such_package")\n'


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Return a suite of its own with this one's conftest."""
    (tmp_path / "tests").mkdir()
    shutil.copy(CONFTEST, tmp_path / "tests" / "conftest.py")
    (tmp_path / "tests" / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "tests" / "test_module.py").write_text(MODULE, encoding="utf-8")
    markers = "[pytest]\nmarkers =\n    needs_device: x\n"
    (tmp_path / "pytest.ini").write_text(markers, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"CI": "false"}, "1 passed, 3 skipped, 1 xfailed"),
        ({"CI": "true"}, "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error"),
    ],
    ids=["here", "CI"],
)
def test_a_skip_fails_in_ci(suite: Path, variables: dict[str, str], line: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k != "EDGEOPT_NO_SKIPS"}
    kept = {k: v for k, v in kept.items() if not k.startswith("PYTEST_")}
    words = "-m pytest -p no:cacheprovider --continue-on-collection-errors -rfE"
    ran = subprocess.run(
        [sys.executable, *words.split()],
        cwd=suite,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert line in ran.stdout
    refused = "skipped where nothing may be skipped (CI, EDGEOPT_NO_SKIPS): Skipped: no runtime"
    assert (refused in ran.stdout) == (variables["CI"] == "true")
