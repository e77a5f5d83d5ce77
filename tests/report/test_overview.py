"""The overview shows each target's own figures, and says why one is missing."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgeopt.report import overview
from edgeopt.report.files import Files
from edgeopt.report.overview import Figure, TargetView
from edgeopt.results.measurements import Comparison, Machine
from edgeopt.results.reports import BuildReport, FileRole
from edgeopt.results.verdicts import Pace

LABELS = {"file": 0, "accuracy": 1, "int8": 2, "speed": 3, "proof": 4}


def figure(views: tuple[TargetView, ...], target: str, what: str) -> Figure:
    """Return one figure of one target."""
    view = next(v for v in views if v.artifact.name == target)
    return view.figures[LABELS[what]]


def test_the_verdicts_target_comes_first_and_stand_ins_last(fake_report: BuildReport) -> None:
    shuffled = dataclasses.replace(
        fake_report, artifacts=(*fake_report.artifacts[4:], *fake_report.artifacts[:4])
    )
    for report in (fake_report, shuffled):
        views = overview.targets(report)
        assert [(v.artifact.name, v.role) for v in views] == [
            ("qnn", "gives the verdict"),
            ("xnnpack", "also shipped"),
            ("onnxruntime", "stand-in"),
        ]
        assert overview.title(views) == "2 targets, 1 stand-in"


def test_a_stand_in_alone_gives_no_verdict(fake_report: BuildReport) -> None:
    report = dataclasses.replace(fake_report, artifacts=fake_report.artifacts[4:])
    (view,) = overview.targets(report)
    assert (view.artifact.name, view.role) == ("onnxruntime", "stand-in")


def test_each_file_is_held_against_its_own_yardstick(fake_report: BuildReport) -> None:
    views = overview.targets(fake_report)
    sizes = {a.name: a.size_bytes for a in fake_report.artifacts}
    for name in ("qnn", "xnnpack", "onnxruntime"):
        found = figure(views, name, "file")
        ratio = sizes[f"{name}-float32"] / sizes[name]
        assert found.note == f"{ratio:.2f} × smaller than float32"
        assert found.percent == pytest.approx(100 / ratio)
    larger = dataclasses.replace(fake_report.artifacts[0], size_bytes=2 * sizes["qnn-float32"])
    report = dataclasses.replace(fake_report, artifacts=(larger, *fake_report.artifacts[1:]))
    found = figure(overview.targets(report), "qnn", "file")
    assert (found.note, found.percent) == ("2.00 × larger than float32", 100.0)


def test_figures_are_the_targets_own(fake_report: BuildReport) -> None:
    views = overview.targets(fake_report)
    drops = {v.artifact.name: v.figures[LABELS["accuracy"]].value for v in views}
    assert drops == {"qnn": "0.33", "xnnpack": "0.67", "onnxruntime": "0.17"}
    assert figure(views, "xnnpack", "int8").value == "96.1"
    assert figure(views, "xnnpack", "int8").note == "80.0 % delegated, 9 partitions"
    assert figure(views, "qnn", "int8").note == "100 % delegated, 1 partition, 4 fused attentions"
    assert figure(views, "onnxruntime", "int8").note == ""
    assert overview.tiles(views) == views[0].figures


def test_speed_is_never_borrowed(fake_report: BuildReport) -> None:
    views = overview.targets(fake_report)
    speed = figure(views, "qnn", "speed")
    assert (speed.value, speed.note) == ("not measured", "needs the device (Snapdragon phone)")
    speed = figure(views, "onnxruntime", "speed")
    assert (speed.value, speed.unit) == ("2.38", "× faster")
    assert speed.brief == "against float32, on Example CPU 9000, not the device"
    assert figure(views, "xnnpack", "speed").value == "cannot tell"


@pytest.mark.parametrize(
    ("pace", "ratio", "words"),
    [
        (Pace.FASTER, 0.5, ("2.00", "× faster")),
        (Pace.SLOWER, 1.5, ("1.50", "× slower")),
        (Pace.SAME, 1.0, ("same speed", "")),
        (Pace.CANNOT_TELL, 0.9, ("cannot tell", "")),
    ],
    ids=lambda value: value.value if isinstance(value, Pace) else "",
)
def test_a_ratio_counts_only_where_it_can_be_told(
    fake_report: BuildReport, pace: Pace, ratio: float, words: tuple[str, str]
) -> None:
    pair = Comparison("xnnpack", "xnnpack-float32", ratio, ratio, ratio, 0.0, pace, 10)
    views = overview.targets(dataclasses.replace(fake_report, comparisons=(pair,)))
    found = figure(views, "xnnpack", "speed")
    assert (found.value, found.unit) == words


def test_a_measurement_on_the_device_comes_before_the_hosts(fake_report: BuildReport) -> None:
    host = next(r for r in fake_report.latency if r.artifact == "onnxruntime")
    phone = Machine("A phone", 8, (), "Android", 0.0, device="phone")
    device = dataclasses.replace(host, machine=phone, stand_in=False)
    report = dataclasses.replace(fake_report, latency=(*fake_report.latency, device))
    found = figure(overview.targets(report), "onnxruntime", "speed")
    assert (found.label, found.unit) == ("Latency", "ms")
    assert found.brief == "p50 on A phone"


def test_says_why_a_file_was_not_judged_or_proven(fake_report: BuildReport) -> None:
    report = dataclasses.replace(
        fake_report,
        accuracy=(),
        warnings=("no executorch file was run: ExecuTorch is not installed",),
        unmeasured={},
        limits=(),
        latency=(),
    )
    views = overview.targets(report)
    assert figure(views, "xnnpack", "accuracy").note == "ExecuTorch is not installed"
    assert figure(views, "qnn", "accuracy").note == "no evaluation data, or no runtime here"
    assert figure(views, "xnnpack", "proof").value == "not proven"
    assert "no runtime" in figure(views, "qnn", "speed").note


def test_a_proof_that_fails_shows_how_far(fake_report: BuildReport) -> None:
    views = overview.targets(fake_report)
    found = figure(views, "qnn", "proof")
    assert (found.value, found.tone, found.brief) == ("388", "fail", "at most 1 LSB")
    assert "1 more without an arithmetic" in found.note
    assert figure(views, "onnxruntime", "proof").value == "bit exact"


def test_roles_of_reports_without_them(fake_report: BuildReport) -> None:
    def bare(names: list[str]) -> Files:
        rows = {a.name: dataclasses.replace(a, role=None) for a in fake_report.artifacts}
        chosen = tuple(rows[name] for name in names)
        return Files(dataclasses.replace(fake_report, artifacts=chosen))

    files = bare(["qnn", "qnn-float32", "onnxruntime", "onnxruntime-float32"])
    assert [files.role(a) for a in files.main] == [FileRole.TARGET, FileRole.STAND_IN]
    assert [a.name for a in files.yardsticks] == ["qnn-float32", "onnxruntime-float32"]
    float_build = bare(["qnn-float32"])  # nothing was quantized: the float file is the product
    assert [float_build.role(a) for a in float_build.main] == [FileRole.TARGET]
    assert bare([]).verdict is None


def test_the_json_names_the_role(fake_report: BuildReport) -> None:
    from edgeopt.files import to_json

    rows = json.loads(to_json(fake_report))["artifacts"]
    assert [row["role"] for row in rows][:2] == ["target", "yardstick"]
