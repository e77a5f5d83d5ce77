"""`edgeopt gate`: real files on this machine, and bundles whose reports are made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeopt.api.formats import inspector_for
from edgeopt.api.gate import GateOptions, run_gate
from edgeopt.api.gating.facts import facts_of
from edgeopt.api.gating.opening import open_sides
from edgeopt.cli import main
from edgeopt.devices import machine as machines
from edgeopt.devices.machine import Hardware
from edgeopt.errors import BundleError, CheckFailed, ConfigError, EdgeOptError
from edgeopt.limits.quantities import QUANTITIES, Evidence, compared
from edgeopt.limits.results import GateLimit, GateResult
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.verdicts import Pace, Verdict
from edgeopt.runtime_tests.sequential import LOOKS
from tests.api.small_bundles import HERE, Small, accuracy, latency, products
from tests.installing import install

pytest.importorskip("onnxruntime")
PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.NOT_MEASURED
QUICK = GateOptions(samples=10)
ON_ORIN = Hardware("NVIDIA Jetson AGX Orin Developer Kit", "Orin", "sm87")
TENSORRT = Small(format="tensorrt", profile="orin", target="tensorrt")


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the memory from a table: a test of reports needs no processes."""
    monkeypatch.setattr(
        "edgeopt.runtime_tests.onnxruntime.memory.peak_memory",
        lambda name, _path: MemoryResult(name, 60.0, 50.0, "made up"),
    )


def rows(result: GateResult) -> Mapping[str, GateLimit]:
    return {row.name: row for row in result.limits}


def pair(tmp_path: Path, candidate: Small, baseline: Small, **options: Any) -> GateResult:
    ours, theirs = candidate.write(tmp_path / "new"), baseline.write(tmp_path / "old")
    return run_gate(ours, theirs, dataclasses.replace(QUICK, **options))


# --- measured on this machine --------------------------------------------------------------------


def test_a_bundle_against_itself_passes_with_the_noise_measured(tmp_path: Path) -> None:
    bundle = Small().write(tmp_path / "b")
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    result = run_gate(bundle, bundle, QUICK)
    assert result.verdict is PASS
    found = rows(result)
    assert set(found) == set(QUANTITIES) - {"latency_p99_ms", "speedup"}
    assert {r.verdict for r in found.values()} == {PASS, OPEN}
    missing = {name for name, r in found.items() if r.verdict is OPEN}
    assert missing == {"fused_attentions", "partitions", "delegated_share"}
    (comparison,) = result.comparisons
    assert comparison.noise > 0
    assert comparison.pairs == 10
    assert len(comparison.samples_ms["candidate"]) == 10
    timed, memory = found["latency_p50_ms"], found["peak_memory_mb"]
    assert timed.value is not None
    assert timed.low is not None
    assert timed.low <= timed.value
    assert "onnxruntime" in timed.origin
    assert "noise of this machine" in timed.origin
    assert memory.value == pytest.approx(1.0, abs=0.5)
    assert "same bytes" in timed.reason
    assert result.warnings == ("candidate and baseline are the same file, byte for byte",)
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


def test_a_much_slower_file_fails_and_a_faster_one_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = products(tmp_path / "slow.onnx", 40, 256, batch=32)
    fast = products(tmp_path / "fast.onnx", 1, 256, batch=32)
    words = ["gate", str(slow), "--baseline", str(fast), "--samples", "30", "--json"]
    junit = tmp_path / "gate.xml"
    assert main([*words, "--junit", str(junit)]) == 1
    data = json.loads(capsys.readouterr().out)
    found = {row["name"]: row for row in data["limits"]}
    timed = found["latency_p50_ms"]
    assert (timed["verdict"], timed["comparison"]) == ("fail", "slower")
    assert 1.05 < timed["low"] < timed["value"] < timed["high"]
    assert timed["candidate"] > timed["baseline"] > 0
    assert (found["macs"]["value"], found["macs"]["verdict"]) == (40.0, "fail")
    assert (found["size_mb"]["verdict"], found["float_gemms"]["value"]) == ("pass", 0.0)
    assert found["drop"]["verdict"] == "not measured"
    assert "a file does not tell its accuracy" in found["drop"]["reason"]
    assert not found["drop"]["required"]
    assert data["comparisons"][0]["candidate"] == slow.as_posix()
    assert '<testcase name="latency_p50_ms"' in junit.read_text(encoding="utf-8")

    back = run_gate(fast, slow, GateOptions(samples=30))
    assert rows(back)["latency_p50_ms"].verdict is PASS
    assert rows(back)["latency_p50_ms"].comparison is Pace.FASTER
    assert back.verdict is PASS


@pytest.mark.parametrize(
    ("interval", "looks", "verdict", "code"),
    [
        ((1.0, 0.99, 1.01), 1, PASS, 0),
        ((1.1, 1.06, 1.14), 1, FAIL, 1),
        ((1.04, 0.98, 1.1), LOOKS, OPEN, 3),
    ],
)
@pytest.mark.usefixtures("still")
def test_the_interval_decides_and_asks_for_more_samples(
    interval: tuple[float, float, float],
    looks: int,
    verdict: Verdict,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "edgeopt.runtime_tests.latency.ratio_interval", lambda *_arrays, **_more: interval
    )
    monkeypatch.setattr("edgeopt.runtime_tests.latency.machine_noise", lambda *_a, **_m: 0.01)
    one, other = products(tmp_path / "a.onnx"), products(tmp_path / "b.onnx", doc="other bytes")
    result = run_gate(one, other, GateOptions(samples=10, limits=("size_mb<=inf",)))
    timed = rows(result)["latency_p50_ms"]
    assert timed.verdict is verdict
    assert (timed.value, timed.low, timed.high) == interval
    assert result.comparisons[0].pairs == looks * 10
    words = ["--samples", "10", "--limit", "size_mb<=inf"]
    assert main(["gate", str(one), "--baseline", str(other), *words]) == code


@pytest.mark.usefixtures("still")
def test_a_tail_is_judged_where_it_is_asked_for(tmp_path: Path) -> None:
    file = products(tmp_path / "a.onnx")
    few = run_gate(file, file, GateOptions(samples=10, limits=("latency_p99_ms<=5",)))
    assert few.verdict is OPEN
    assert rows(few)["latency_p99_ms"].reason.startswith("a 99th percentile needs 500 calls")
    many = run_gate(file, file, GateOptions(samples=500, limits=("latency_p99_ms<=5",)))
    tail = rows(many)["latency_p99_ms"]
    assert many.verdict is PASS
    assert tail.value is not None
    assert tail.baseline is not None
    assert tail.baseline >= (rows(many)["latency_p50_ms"].baseline or 0)


@pytest.mark.usefixtures("still")
def test_a_stand_in_is_shown_and_never_judged(tmp_path: Path) -> None:
    stand_in = Small(profile="orin", target="onnxruntime")
    slow = dataclasses.replace(stand_in, count=400)
    result = pair(tmp_path, slow, stand_in)
    found = rows(result)
    for name in ("latency_p50_ms", "peak_memory_mb"):
        row = found[name]
        assert row.verdict is OPEN
        assert row.value is not None
        assert not row.required
        assert "this machine is not the device (NVIDIA Jetson AGX Orin" in row.reason
    assert found["latency_p50_ms"].comparison is Pace.SLOWER
    asked = run_gate(
        tmp_path / "new", tmp_path / "old", GateOptions(samples=10, limits=("latency_p50_ms<=1.5",))
    )
    assert rows(asked)["latency_p50_ms"].required
    assert result.verdict is FAIL  # by its MACs
    assert rows(result)["macs"].verdict is FAIL


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("at_home", [True, False])
def test_a_profile_of_the_users_own_is_judged_where_its_build_measured(
    at_home: bool, tmp_path: Path
) -> None:
    own = Small(
        profile="my_board", latency=(latency("main", 1.0, machine=HERE, stand_in=not at_home),)
    )
    result = pair(tmp_path, own, own)
    row = rows(result)["latency_p50_ms"]
    assert row.verdict is (PASS if at_home else OPEN)
    assert ("'my_board' is not at hand" in row.reason) is not at_home


@pytest.mark.usefixtures("still")
def test_on_the_device_itself_its_own_runtime_is_judged_and_a_stand_in_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Small(profile="orin", target="tensorrt")  # a file that ONNX Runtime times
    for found, verdict in ((Hardware(), OPEN), (ON_ORIN, PASS)):
        monkeypatch.setattr(machines, "hardware", lambda found=found: found)
        for name in ("latency_p50_ms", "peak_memory_mb"):
            assert rows(pair(tmp_path / str(verdict), own, own))[name].verdict is verdict
    stand_in = dataclasses.replace(own, target="onnxruntime")
    row = rows(pair(tmp_path / "stand_in", stand_in, stand_in))["latency_p50_ms"]
    assert row.verdict is OPEN
    assert "it stands in for another runtime" in row.reason


@pytest.mark.usefixtures("still")
def test_on_the_device_a_runtime_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for found in (Hardware(), ON_ORIN):
        monkeypatch.setattr(machines, "hardware", lambda found=found: found)
        told[found] = rows(pair(tmp_path / found.capability, TENSORRT, TENSORRT))["latency_p50_ms"]
    assert told[Hardware()].reason.startswith("a tensorrt file is timed on its device; ")
    assert told[ON_ORIN].reason.startswith(f"{inspector_for('tensorrt').untimed()}; ")
    for row in told.values():
        assert row.verdict is OPEN
        assert "report BUNDLE --attach" in row.reason


# --- reports -------------------------------------------------------------------------------------


def test_a_tensorrt_file_is_not_timed_here(tmp_path: Path) -> None:
    result = pair(tmp_path, TENSORRT, TENSORRT)
    found = rows(result)
    assert "report BUNDLE --attach" in found["latency_p50_ms"].reason
    assert "nothing on this machine shows the memory" in found["peak_memory_mb"].reason
    assert result.verdict is PASS
    assert not result.comparisons
    strict = run_gate(tmp_path / "new", tmp_path / "old", GateOptions(require_measured=True))
    assert strict.verdict is OPEN
    required = {row.name for row in strict.limits if row.required}
    assert {"latency_p50_ms", "peak_memory_mb", "drop", "size_mb"} <= required
    assert "partitions" not in required  # neither side tells it


@pytest.mark.parametrize(("milliseconds", "verdict"), [(1.0, PASS), (1.5, FAIL), (1.05, OPEN)])
def test_attached_measurements_are_judged(
    milliseconds: float, verdict: Verdict, tmp_path: Path
) -> None:
    new = dataclasses.replace(TENSORRT, latency=(latency("main", milliseconds),), doc="new")
    old = dataclasses.replace(TENSORRT, latency=(latency("main", 1.0),))
    result = pair(tmp_path, new, old, limits=("size_mb<=inf",))
    row = rows(result)["latency_p50_ms"]
    assert row.verdict is verdict
    assert row.value == pytest.approx(milliseconds)
    assert row.comparison is None  # not measured in pairs
    assert row.origin.startswith("attached: TensorRT 10.3 on Orin")
    assert result.verdict is verdict


def test_a_measurement_of_another_device_is_no_attached_one(tmp_path: Path) -> None:
    new = dataclasses.replace(TENSORRT, latency=(latency("main", 1.0, stand_in=True),))
    result = pair(tmp_path, new, dataclasses.replace(TENSORRT, latency=(latency("main", 1.0),)))
    assert rows(result)["latency_p50_ms"].value is None


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"int8_macs": 0.85}, "int8_macs", FAIL),
        ({"int8_macs": 0.895}, "int8_macs", PASS),
        ({"float_gemms": 2}, "float_gemms", FAIL),
        ({"float_gemms": 0}, "float_gemms", PASS),
        ({"float_gemms": None}, "float_gemms", OPEN),
        ({"compile": {"fused_attentions": 3, "partitions": 1}}, "fused_attentions", FAIL),
        ({"compile": {"fused_attentions": 4, "partitions": 2}}, "partitions", FAIL),
        ({"compile": {"fused_attentions": 4, "partitions": 1}}, "partitions", PASS),
        ({"compile": {"delegated_share": 0.5}}, "delegated_share", FAIL),
        ({"compile": {}}, "delegated_share", OPEN),
        ({"accuracy": (accuracy("main", 3.0),)}, "drop", FAIL),
        ({"accuracy": (accuracy("main", 0.4),)}, "drop", PASS),
        ({"accuracy": (accuracy("main", 0.6),)}, "drop", OPEN),
        ({"accuracy": (accuracy("main", agreement=80.0),)}, "agreement", FAIL),
        ({"accuracy": (accuracy("main", snr_db=20.0),)}, "snr_db", FAIL),
        ({"accuracy": ()}, "drop", OPEN),
        ({"accuracy": (accuracy("another"),)}, "drop", OPEN),
    ],
)
def test_each_number_of_a_report_is_judged(
    changes: dict[str, Any], name: str, verdict: Verdict, tmp_path: Path
) -> None:
    told = {"fused_attentions": 4, "partitions": 1, "delegated_share": 0.9}
    old = dataclasses.replace(TENSORRT, compile=told)
    new = dataclasses.replace(old, doc="new", **changes)
    result = pair(tmp_path, new, old, limits=("size_mb<=inf",))
    row = rows(result)[name]
    assert row.verdict is verdict
    if verdict is OPEN:
        assert row.required  # lost, or cannot be told
        assert result.verdict is OPEN
    else:
        assert "report.json" in row.origin


@pytest.mark.parametrize("report", [True, False], ids=["report", "file"])
def test_each_counted_or_judged_quantity_is_there_or_its_absence_has_a_reason(
    report: bool, tmp_path: Path
) -> None:
    bundle = Small(report=report).write(tmp_path / "b")
    side, _ = open_sides(bundle, bundle, None)
    facts = facts_of(side, from_file=not report)
    wanted = {*compared(Evidence.COUNTED), *compared(Evidence.ACCURACY)}
    assert {*facts.numbers, *facts.missing} == wanted
    assert not set(facts.numbers) & set(facts.missing)


TENSORS = """
    from edgeopt.limits.counted import Counted
    from edgeopt.limits.quantities import Kind, Sense

    class Tensors(Counted):
        name, unit, sense, about = "acme_bytes", "B", Sense.AT_MOST, "bytes of tensors"
        compared = Kind.RATIO

        def count(self, told):
            return float(sum(row.bytes for row in told.sizes)) or None
"""


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("report", [True, False], ids=["report", "file"])
def test_a_plugins_quantity_is_counted_in_the_report_or_the_file(
    report: bool, site: Path, tmp_path: Path
) -> None:
    points = {"edgeopt.quantities": {"acme_bytes": "acme:Tensors"}}
    install(site, "acme", points, {"acme.py": TENSORS})
    small = Small(report=report)
    result = pair(tmp_path, small, small, limits=("acme_bytes<=1",))
    row = rows(result)["acme_bytes"]
    if report:  # it lists no tensors
        assert (row.value, row.verdict, row.required) == (None, OPEN, True)
        assert row.reason == "both: its report does not tell"
    else:
        assert (row.candidate, row.value, row.verdict) == (16 * 16 * 4, 1.0, PASS)
        assert row.origin == "file"
    assert "acme_bytes" not in rows(pair(tmp_path / "again", small, small))


@pytest.mark.usefixtures("still")
def test_an_old_name_is_judged_under_todays_with_one_note(tmp_path: Path) -> None:
    limits = ("latency_p50<=1.5", "size<=inf")
    result = pair(tmp_path, TENSORRT, TENSORRT, limits=limits)
    found = rows(result)
    assert (found["latency_p50_ms"].limit, found["size_mb"].limit) == (1.5, None)
    assert not {"latency_p50", "size"} & set(found)
    assert [w for w in result.warnings if "is called" in w] == [
        "limit 'latency_p50' is called 'latency_p50_ms' now",
        "limit 'size' is called 'size_mb' now",
    ]


@pytest.mark.usefixtures("still")
def test_without_a_report_the_file_tells(tmp_path: Path) -> None:
    bare = Small(report=False)
    result = pair(tmp_path, bare, dataclasses.replace(bare, count=2))
    found = rows(result)
    assert found["macs"].value == 0.5
    assert found["macs"].origin == "file"
    assert found["int8_macs"].candidate == 0.0
    assert found["drop"].value is None


@pytest.mark.usefixtures("still")
def test_a_bundle_and_a_file_are_compared_by_their_files(tmp_path: Path) -> None:
    bundle = Small(count=2).write(tmp_path / "b")
    file = products(tmp_path / "plain.onnx", 1)
    result = run_gate(file, bundle, QUICK)
    found = rows(result)
    assert found["macs"].value == 0.5
    assert found["macs"].origin == "file"
    assert not found["drop"].required  # a file loses no accuracy figure that it could have had
    assert result.candidate.precision == ""
    assert result.baseline.profile == "host"


# --- bad input -----------------------------------------------------------------------------------


def refused(error: type[EdgeOptError], words: str, *places: Path, **options: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        run_gate(places[0], places[1], GateOptions(**options))
    assert "\n" not in str(caught.value)


def test_another_profile_is_refused_unless_an_artifact_is_named(tmp_path: Path) -> None:
    ours = TENSORRT.write(tmp_path / "a")
    theirs = dataclasses.replace(TENSORRT, profile="a100").write(tmp_path / "b")
    refused(BundleError, "profile 'orin' and .* for 'a100'; name an artifact", ours, theirs)
    assert run_gate(ours, theirs, GateOptions(artifact="main")).verdict is PASS
    refused(BundleError, "has no artifact 'mian'; it holds main", ours, theirs, artifact="mian")


def test_a_modified_bundle_is_refused_as_verify_does(tmp_path: Path) -> None:
    good, bad = TENSORRT.write(tmp_path / "a"), TENSORRT.write(tmp_path / "b")
    with (bad / "main.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    for places in ((good, bad), (bad, good)):
        refused(CheckFailed, r"b: file main\.onnx SHA-256 differs; see edgeopt verify", *places)
    assert main(["gate", str(bad), "--baseline", str(good)]) == 1
    assert main(["verify", str(bad)]) == 1
    extra = TENSORRT.write(tmp_path / "c")
    (extra / "extra.bin").write_bytes(b"x")
    refused(CheckFailed, r"extra\.bin is not in the manifest", extra, good)


def test_a_report_of_another_build_is_refused(tmp_path: Path) -> None:
    good = TENSORRT.write(tmp_path / "a")
    other = dataclasses.replace(TENSORRT, doc="other").write(tmp_path / "b")
    (other / "report.json").write_bytes((good / "report.json").read_bytes())
    refused(BundleError, r"report\.json: speaks of another main\.onnx", other, good)
    (other / "report.json").write_text("{", encoding="utf-8")
    refused(BundleError, r"report\.json: not valid JSON", other, good)


def test_another_program_is_refused(tmp_path: Path) -> None:
    ours = TENSORRT.write(tmp_path / "a")
    theirs = dataclasses.replace(TENSORRT, batch=8).write(tmp_path / "b")
    told = r"not the same program: inputs of forward are x float32\[4, 16\] and x float32\[8, 16\]"
    refused(BundleError, told, ours, theirs)
    refused(BundleError, "no method 'decode'", ours, ours, method="decode")
    wide = products(tmp_path / "wide.onnx", width=32)
    refused(BundleError, "not the same program", wide, products(tmp_path / "narrow.onnx"))


def test_files_of_two_runtimes_are_refused(tmp_path: Path) -> None:
    ours = TENSORRT.write(tmp_path / "a")
    refused(BundleError, "tensorrt and .* is onnx", ours, products(tmp_path / "b.onnx"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.onnx", None, "no such bundle or file"),
        ("empty.onnx", b"", "is empty"),
        ("text.onnx", b"text", "is no ONNX file"),
        ("model.txt", b"text", "neither a bundle nor a model file"),
    ],
)
def test_what_is_no_model_is_refused(
    name: str, content: bytes | None, told: str, tmp_path: Path
) -> None:
    place = tmp_path / name
    if content is not None:
        place.write_bytes(content)
    good = products(tmp_path / "good.onnx")
    for places in ((place, good), (good, place)):
        refused(BundleError, told, *places)


def test_an_artifact_of_two_plain_files_is_refused(tmp_path: Path) -> None:
    file = products(tmp_path / "a.onnx")
    refused(ConfigError, "neither .* is a bundle", file, file, artifact="main")


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    refused(BundleError, "is not a bundle", tmp_path, products(tmp_path / "a.onnx"))
