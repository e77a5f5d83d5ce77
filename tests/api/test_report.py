"""`edgeopt report`: the page again, and what a device measured brought home."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgeopt.api.report import run_report
from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.artifacts.manifest import Manifest
from edgeopt.cli import main
from edgeopt.devices import machine as machines
from edgeopt.devices.machine import Hardware
from edgeopt.errors import BundleError, CheckFailed
from edgeopt.files import to_json
from edgeopt.results.measurements import Measured
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import Verdict

SHA256 = "5f" * 32
DEVICE = "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.fixture
def bundle(tmp_path: Path, fake_report: BuildReport) -> Path:
    """Return a bundle with one TensorRT artifact whose latency was not measured."""
    spec = IOSpec("image", "float32", (1, 1, 40, 40))
    artifact = Artifact(
        name="tensorrt",
        target="tensorrt",
        format="tensorrt",
        precision="int8",
        plan="tensorrt",
        files=(FileEntry("model.onnx", SHA256, 5),),
        methods=(Method("forward", (spec,), (spec,)),),
        tensor_map={},
    )
    manifest = Manifest(
        edgeopt="0.1.0",
        model="zoo:vit",
        profile="orin",
        recipe="sparse-int8",
        build_key="0",
        hashes={},
        seed=0,
        tools={},
        artifacts=(artifact,),
        files=artifact.files,
    )
    (tmp_path / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    report = to_json(fake_report).replace('"qnn"', '"tensorrt"').replace("phone-npu", "orin")
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    return tmp_path


def _measured(folder: Path, **changes: object) -> Path:
    measured = Measured(
        artifact="tensorrt",
        sha256=SHA256,
        device=DEVICE,
        runtime="TensorRT 10.3",
        clocks={"jetson_clocks": "GPU 1300 MHz"},
        power_mode="MAXN",
        samples_ms=tuple(0.8 + 0.001 * i for i in range(100)),
        golden_max_error=0.01,
        golden_ok=True,
        engine_bytes=3_610_224,
        layers=("gemm Int8",),
    )
    path = folder / "from_the_device.json"
    path.write_text(to_json(dataclasses.replace(measured, **changes)), encoding="utf-8")
    return path


def _limit(report: BuildReport, name: str) -> tuple[Verdict, float | None]:
    return next((x.verdict, x.value) for x in report.limits if x.name == name)


def test_writes_the_page_again_and_nothing_else(bundle: Path) -> None:
    before = (bundle / "report.json").read_bytes()
    outcome = run_report(bundle)
    assert outcome.path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (bundle / "report.json").read_bytes() == before


def test_a_measurement_on_the_device_is_judged(bundle: Path) -> None:
    report = run_report(bundle, attach=_measured(bundle)).report
    verdict, value = _limit(report, "latency_p50_ms")
    assert verdict is Verdict.PASS
    assert value == pytest.approx(0.8495)
    assert report.latency[0].machine.device == DEVICE
    assert not report.latency[0].stand_in
    assert report.compile[f"tensorrt on {DEVICE}"]["power mode"] == "MAXN"
    assert _limit(report, "speedup") == (Verdict.NOT_MEASURED, None)  # no pair was timed there
    assert report.verdict is Verdict.NOT_MEASURED


def test_what_was_attached_stays_in_the_bundle(bundle: Path) -> None:
    run_report(bundle, attach=_measured(bundle))
    again = run_report(bundle).report
    assert _limit(again, "latency_p50_ms")[0] is Verdict.PASS
    assert DEVICE in (bundle / "report.html").read_text(encoding="utf-8")
    assert (bundle / "measured-tensorrt.json").is_file()


def test_a_second_measurement_takes_the_place_of_the_first(bundle: Path) -> None:
    run_report(bundle, attach=_measured(bundle))
    slow = tuple(2.0 + 0.001 * i for i in range(100))
    report = run_report(bundle, attach=_measured(bundle, samples_ms=slow)).report
    assert _limit(report, "latency_p50_ms")[0] is Verdict.FAIL
    assert report.verdict is Verdict.FAIL
    assert sum(x.machine.device == DEVICE for x in report.latency) == 1


def test_another_device_is_shown_and_never_judged(bundle: Path) -> None:
    report = run_report(bundle, attach=_measured(bundle, device="NVIDIA A100")).report
    assert _limit(report, "latency_p50_ms") == (Verdict.NOT_MEASURED, None)
    assert report.latency[0].stand_in
    assert any("NVIDIA A100" in warning for warning in report.warnings)


@pytest.mark.parametrize("here", [True, False])
def test_a_name_that_tells_nothing_is_the_devices_where_it_is_this_machines(
    here: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle / "report.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"orin"', '"a100"'), encoding="utf-8")
    found = Hardware(gpu="GRID board 7" if here else "GRID board 8", capability="sm80")
    monkeypatch.setattr(machines, "hardware", lambda: found)
    report = run_report(bundle, attach=_measured(bundle, device="GRID board 7")).report
    assert report.latency[0].stand_in is not here
    assert _limit(report, "latency_p50_ms")[0] is (Verdict.PASS if here else Verdict.NOT_MEASURED)
    assert any("which is not NVIDIA A100" in w for w in report.warnings) is not here


def test_wrong_answers_on_the_device_are_not_attached(bundle: Path) -> None:
    before = (bundle / "report.json").read_bytes()
    path = _measured(bundle, golden_ok=False, golden_max_error=7.5)
    with pytest.raises(CheckFailed, match=r"golden vectors did not come out.*7\.5"):
        run_report(bundle, attach=path)
    assert (bundle / "report.json").read_bytes() == before


def test_a_measurement_of_another_file_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="another model"):
        run_report(bundle, attach=_measured(bundle, sha256="00" * 32))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"bundle": 3}'])
def test_a_damaged_report_is_one_error(bundle: Path, content: str) -> None:
    (bundle / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"report\.json"):
        run_report(bundle)


@pytest.mark.parametrize(("slow", "code"), [(False, 0), (True, 1)])
def test_the_command_exits_1_on_a_missed_limit(
    bundle: Path, slow: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tuple((2.0 if slow else 0.5) + 0.001 * i for i in range(50))
    path = _measured(bundle, samples_ms=samples)
    assert main(["report", str(bundle), "--attach", str(path), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["latency"][0]["machine"]["device"] == DEVICE
    assert main(["report", str(bundle)]) == 0
    assert "report.html" in capsys.readouterr().out
