"""A build for several targets: each file's role, each target's drift, why a file was not timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgeopt
from edgeopt.api.building.lock import read_lock
from edgeopt.api.report import run_report
from edgeopt.results.reports import BuildReport, FileRole
from edgeopt.results.verdicts import Verdict

TARGET = """
[[{kind}]]
name = "{name}"
format = "{format}"
runtime = "{runtime}"
backend = "CPUExecutionProvider"
rules = "{rules}"
float_type = "{float_type}"
[{kind}.options]
opset = 20
[{kind}.protocol]
threads = 1
warmup = 2
samples = 12
block = 4
batch = 1
"""
HEAD = """
schema = 1
name = "pair"
title = "Two runtimes"
default_recipe = "int8"
runs_here = "a-device"
unknown = []
"""


# Under a name that the gate once had for itself.
LIMITS = """
[[limits]]
name = "size"
maximum = 100.0
source = "an old file"
"""


def _onnx(kind: str, name: str) -> str:
    return TARGET.format(
        kind=kind, name=name, format="onnx", runtime="onnxruntime", rules="onnxruntime-x86",
        float_type="float32",
    )  # fmt: skip


def _profile(folder: Path) -> Path:
    tensorrt = TARGET.format(
        kind="targets", name="first", format="tensorrt", runtime="tensorrt", rules="tensorrt",
        float_type="float16",
    )  # fmt: skip
    path = folder / "pair.toml"
    others = _onnx("targets", "second") + _onnx("stand_ins", "third")
    path.write_text(HEAD + tensorrt + others + LIMITS)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """Build a tiny model for two own targets and a stand-in."""
    folder = tmp_path_factory.mktemp("targets")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)]
    x = torch.randn(96, 16)
    result = edgeopt.build(
        torch.nn.Sequential(*layers).eval(), x[:2], profile=str(_profile(folder)),
        calibration=x[:64], evaluate=x[64:], limits=("size<=50", "peak_memory<=9"),
        out=folder / "bundle",
    )  # fmt: skip
    return folder / "bundle", result.report


def test_each_file_has_its_role(built: tuple[Path, BuildReport]) -> None:
    _, report = built
    assert [(a.name, a.target, a.role) for a in report.artifacts] == [
        ("first", "first", FileRole.TARGET),
        ("first-float16", "first", FileRole.YARDSTICK),
        ("second", "second", FileRole.TARGET),
        ("second-float32", "second", FileRole.YARDSTICK),
        ("third", "third", FileRole.STAND_IN),
        ("third-float32", "third", FileRole.YARDSTICK),
    ]


def test_every_own_target_is_ranked_once_the_verdicts_first(
    built: tuple[Path, BuildReport],
) -> None:
    _, report = built
    assert [(row.target, row.rank) for row in report.drift] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2),
    ]  # fmt: skip
    depth = {row.site: row.depth for row in report.drift if row.target == "first"}
    assert depth == {"0:linear#0": 1, "2:linear#0": 2}
    for target in ("first", "second"):
        own = [row.own_snr_db for row in report.drift if row.target == target]
        assert own == sorted(value for value in own if value is not None)


def test_only_files_without_a_latency_say_why(built: tuple[Path, BuildReport]) -> None:
    _, report = built
    timed = {result.artifact for result in report.latency}
    assert timed == {"second", "second-float32", "third", "third-float32"}
    assert set(report.unmeasured) == {"first", "first-float16"}
    assert report.unmeasured["first"] == "needs the device (Two runtimes)"


def test_the_page_is_the_same_when_written_again(built: tuple[Path, BuildReport]) -> None:
    folder, _ = built
    before = (folder / "report.html").read_bytes()
    run_report(folder)
    assert (folder / "report.html").read_bytes() == before
    for words in ("2 targets, 1 stand-in", "Along the network", 'id="sizes-2"', 'id="drift-2"'):
        assert words.encode() in before


def test_limits_under_old_names_are_judged_under_todays_with_a_note(
    built: tuple[Path, BuildReport],
) -> None:
    folder, report = built
    assert [(x.name, x.maximum, x.verdict) for x in report.limits] == [
        ("size_mb", 50.0, Verdict.PASS),
        ("peak_memory_mb", 9.0, Verdict.NOT_MEASURED),
    ]
    assert [w for w in report.warnings if "is called" in w] == [
        "limit 'size' is called 'size_mb' now",
        "limit 'peak_memory' is called 'peak_memory_mb' now",
    ]
    assert read_lock(folder / "edgeopt.lock").limits == ("size<=50", "peak_memory<=9")
