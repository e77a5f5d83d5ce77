"""What all tests share: assets, a report to show, and the rule that CI skips nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgeopt.results.reports import BuildReport

ROOT = Path(__file__).resolve().parent.parent
OFF = ("", "0", "false")
SOURCES = ("edgeopt", "exporters", "runtime_tests", "device_profiles")

# Before torch comes: workers that each start a thread for every core stand in each other's way. The
# process that starts the workers sets nothing, since they inherit what it has.
if _workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // _workers))

# What builds whole models, or runs a compiler or a simulator: 4 s or more in all, each. Paths from
# here, or single tests; `make test-fast` leaves them out.
SLOW = (
    "api/building",
    "api/test_adapter.py",
    "api/test_doctor.py",
    "api/test_gate.py",
    "api/test_report.py",
    "artifacts/test_program_interface.py",
    "cli/test_exit_codes.py",
    "end_to_end",
    "exporters/executorch/test_exporter.py",
    "exporters/onnx/test_exporter.py",
    "exporters/qnn",
    "exporters/tensorrt/test_exporter.py",
    "models/test_from_transformers.py",
    "models/test_load.py",
    "models/zoo",
    "passes/factorize/test_factorize_svd.py",
    "passes/fuse/test_fuse_real_models.py",
    "passes/quantize/test_whole_graph.py",
    "plugins",
    "report/test_html.py",
    "runtime_tests/executorch",
    "runtime_tests/qnn",
    "runtime_tests/tensorrt",
    "runtime_tests/test_accuracy.py",
    "test_packaging.py::test_a_wheel_holds_every_module_and_data_file",
    "test_packaging.py::test_a_wheel_holds_the_licence_and_the_notice",
    "test_packaging.py::test_an_installed_copy_works_from_elsewhere",
    "test_skips.py",
)

_kept: list[Any] = []  # a torch library lives as long as its object


def _define_torchvision_operators() -> None:
    """Let timm import beside a torch that its torchvision was not built for.

    torchvision registers fake kernels for two operators that its C++ part defines; where that part
    does not load (a CPU build of torch), the import fails. No test calls the operators.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    import torch

    folder = list(found.submodule_search_locations)
    for name in ("_C", "_C_stable"):  # as it is called before 0.29, and from then on
        extension = importlib.machinery.PathFinder.find_spec(name, folder)
        try:
            if extension is not None and extension.origin is not None:
                torch.ops.load_library(extension.origin)
                return
        except OSError:
            pass
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_define_torchvision_operators()


def _no_skips() -> bool:
    names = ("CI", "EDGEOPT_NO_SKIPS")
    return any(os.environ.get(name, "").lower() not in OFF for name in names)


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that repeats the skip's reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skipped where nothing may be skipped (CI, EDGEOPT_NO_SKIPS): {reason}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow."""
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        if any(place == slow or place.startswith((f"{slow}/", f"{slow}::")) for slow in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test in CI, where every runtime and asset is promised."""
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("needs_device") is not None
    if report.skipped and not expected and _no_skips():
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a skipped module in CI."""
    report = yield
    if report.skipped and _no_skips():
        _refuse(report)
    return report


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder of real models and data; skip where this machine lacks it."""
    folder = Path(os.environ.get("EDGEOPT_ASSETS") or ROOT.parent / "shared" / "assets")
    if not folder.is_dir():
        pytest.skip(f"no assets in {folder}; set EDGEOPT_ASSETS")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder that stands first in `sys.path`, for packages that only one test has.

    What was imported from it is forgotten.
    """
    from edgeopt.registry import plugins

    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    plugins.installed.cache_clear()
    yield folder
    plugins.installed.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def edgeopt_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of edgeopt from a clean copy, once for all tests that install it."""
    work = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, work / "copy" / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, work / "copy" / name)
    words = "-m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir"
    ran = subprocess.run(
        [sys.executable, *words.split(), str(work / "wheels"), str(work / "copy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (wheel,) = (work / "wheels").glob("edgeopt-*.whl")
    return wheel


@pytest.fixture(scope="session")
def fake_report() -> BuildReport:
    """Return a report with something in every section."""
    spec = importlib.util.spec_from_file_location(
        "fake_report", ROOT / "tests" / "report" / "fake_report.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report: BuildReport = module.make()
    return report
