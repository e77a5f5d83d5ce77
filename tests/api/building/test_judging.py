"""Limits: the bound itself passes, a step past it fails, and what was not measured never passes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edgeopt.api.building.judging import (
    DEVICE_ONLY,
    READINGS,
    Found,
    judge,
    merged,
    withheld,
)
from edgeopt.devices.profile import DeviceProfile, Target
from edgeopt.errors import ConfigError
from edgeopt.limits.counted import Told
from edgeopt.limits.limit import Limit
from edgeopt.limits.quantities import QUANTITIES
from edgeopt.results.measurements import (
    AccuracyResult,
    Comparison,
    LatencyResult,
    Machine,
    MemoryResult,
    Percentile,
)
from edgeopt.results.reports import ArtifactRow
from edgeopt.results.verdicts import Pace, Verdict

ARTIFACT = ArtifactRow(
    name="onnxruntime",
    target="onnxruntime",
    format="onnx",
    precision="int8",
    file="model.onnx",
    size_bytes=3_000_000,
    sha256="aa",
    macs=1000,
    int8_macs=0.95,
)
ACCURACY = AccuracyResult(
    artifact="onnxruntime",
    runtime="onnxruntime 1.31",
    metric="top1",
    unit="points",
    reference=90.0,
    value=89.0,
    drop=1.0,
    drop_low=0.5,
    drop_high=1.5,
    agreement=97.0,
    snr_db=25.0,
    cosine=0.99,
    samples=200,
)
MACHINE = Machine("a processor", 2, (), "Linux x86_64", 0.0)
LATENCY = LatencyResult(
    artifact="onnxruntime",
    runtime="onnxruntime 1.31",
    machine=MACHINE,
    threads=1,
    batch=1,
    p50=Percentile(2.0, 1.9, 2.1),
    p90=Percentile(2.5, 2.4, 2.6),
    p99=Percentile(4.0, 3.5, 4.5),
    samples_ms=(2.0, 2.0, 4.0),
    block=24,
)
COMPARISON = Comparison(
    candidate="onnxruntime",
    baseline="onnxruntime-float32",
    ratio=0.5,
    low=0.45,
    high=0.55,
    noise=0.01,
    pace=Pace.FASTER,
    pairs=100,
)


MEMORY = MemoryResult("onnxruntime", peak_rss_mb=60.0, base_rss_mb=40.0, runtime="onnxruntime 1.31")
COMPILED = {
    "compiler": "a compiler 1.0",
    "partitions": 1,
    "delegated_share": 0.5,
    "fused_attentions": 4,
}
EVERYTHING = Found(ARTIFACT, 2, ACCURACY, LATENCY, COMPARISON, MEMORY, told=Told(compile=COMPILED))
NOTHING = Found(dataclasses.replace(ARTIFACT, int8_macs=None), 0)
VALUES = {
    "latency_p50_ms": 2.0,
    "latency_p99_ms": 4.0,
    "speedup": 2.0,
    "size_mb": 3.0,
    "peak_memory_mb": 60.0,
    "drop": 1.0,
    "agreement": 97.0,
    "snr_db": 25.0,
    "int8_macs": 0.95,
    "float_gemms": 2.0,
    "macs": 1000.0,
    "partitions": 1.0,
    "delegated_share": 0.5,
    "fused_attentions": 4.0,
}


def test_every_quantity_is_read_and_has_a_value_here() -> None:
    assert list(READINGS) == list(QUANTITIES)
    assert set(VALUES) == set(QUANTITIES)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_bound_is_met_by_the_value_itself_and_missed_by_a_step_past_it(name: str) -> None:
    value = VALUES[name]
    limits = (
        Limit(name, maximum=value),
        Limit(name, minimum=value),
        Limit(name, maximum=value - 0.01),
        Limit(name, minimum=value + 0.01),
    )
    rows = judge(limits, EVERYTHING)
    assert [row.value for row in rows] == [value] * 4
    assert [row.verdict for row in rows] == [
        Verdict.PASS,
        Verdict.PASS,
        Verdict.FAIL,
        Verdict.FAIL,
    ]
    assert {row.name for row in rows} == {name}
    assert {row.artifact for row in rows} == {"onnxruntime"}
    assert all(row.reason for row in rows)  # what the value is made of


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"size_mb", "macs", "float_gemms"}))
def test_what_was_not_measured_never_passes(name: str) -> None:
    for limit in (Limit(name, maximum=1e9), Limit(name, minimum=-1e9)):
        (row,) = judge((limit,), NOTHING)
        assert row.verdict is Verdict.NOT_MEASURED
        assert row.value is None
        assert row.reason


def test_the_reason_for_a_missing_value_is_the_one_given() -> None:
    found = dataclasses.replace(NOTHING, missing={"latency_p50_ms": "no GPU here"})
    limits = (Limit("latency_p50_ms", maximum=1.0), Limit("latency_p99_ms", maximum=1.0))
    assert [row.reason for row in judge(limits, found)] == ["no GPU here", "was not measured"]


def test_data_without_labels_have_no_drop_but_an_agreement() -> None:
    accuracy = dataclasses.replace(ACCURACY, drop=None)
    found = dataclasses.replace(EVERYTHING, accuracy=accuracy)
    rows = judge((Limit("drop", maximum=5.0), Limit("agreement", minimum=90.0)), found)
    assert [row.verdict for row in rows] == [Verdict.NOT_MEASURED, Verdict.PASS]
    assert rows[0].reason == "the data carry no labels for it"


def test_a_drop_has_the_metrics_own_unit() -> None:
    accuracy = dataclasses.replace(ACCURACY, metric="perplexity", unit="%")
    (row,) = judge(
        (Limit("drop", maximum=5.0),), dataclasses.replace(EVERYTHING, accuracy=accuracy)
    )
    assert row.unit == "%"
    (row,) = judge((Limit("size_mb", maximum=5.0),), EVERYTHING)
    assert row.unit == "MB"


def test_a_row_carries_bound_method_and_source() -> None:
    limit = Limit("drop", maximum=1.5, method="decode", source="our own bound")
    (row,) = judge((limit,), EVERYTHING)
    assert (row.maximum, row.minimum, row.method, row.source) == (
        1.5,
        None,
        "decode",
        "our own bound",
    )


def test_a_verdict_can_be_withheld_with_the_reason() -> None:
    rows = withheld(judge((Limit("drop", maximum=5.0),), EVERYTHING), "another device")
    assert [row.verdict for row in rows] == [Verdict.NOT_MEASURED]
    assert rows[0].reason.startswith("another device; ")
    assert rows[0].value == 1.0


def profile(*limits: Limit) -> DeviceProfile:
    target = Target("cpu", "onnx", "onnxruntime", "onnxruntime-x86")
    return DeviceProfile("mine", "My device", "int8", (target,), limits=limits)


def test_a_limit_of_the_command_line_takes_the_place_of_the_profiles() -> None:
    own = profile(Limit("drop", maximum=1.5), Limit("speedup", minimum=1.2))
    assert merged(own, ()) == (own.limits, ())
    found, notes = merged(own, ("drop<=0.5", "size_mb<=4", "drop>=-1"))
    assert not notes
    assert [limit.text for limit in found] == [
        "speedup>=1.2",
        "drop<=0.5",
        "size_mb<=4",
        "drop>=-1",
    ]


def test_an_old_name_is_todays_limit_and_one_note() -> None:
    own = profile(Limit("size", maximum=9.0), Limit("peak_memory", maximum=50.0))
    found, notes = merged(own, ("size_mb<=4", "peak_memory<=60", "latency_p50<=2"))
    assert [(limit.name, limit.maximum) for limit in found] == [
        ("size_mb", 4.0),
        ("peak_memory_mb", 60.0),
        ("latency_p50_ms", 2.0),
    ]
    assert notes == (
        "limit 'size' is called 'size_mb' now",
        "limit 'peak_memory' is called 'peak_memory_mb' now",
        "limit 'latency_p50' is called 'latency_p50_ms' now",
    )
    rows = judge((Limit("size", maximum=5.0),), EVERYTHING)
    assert [(row.name, row.unit, row.value) for row in rows] == [("size_mb", "MB", 3.0)]


def test_the_guide_to_profiles_lists_every_quantity_and_which_need_the_device() -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "writing_a_profile.md"
    text = guide.read_text(encoding="utf-8").partition("## Limits")[2].partition("## ")[0]
    listed = {
        name: needs == "yes"
        for names, needs in re.findall(r"^\| (`.+?) \| .+? \| (yes|no) \|$", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == {name: name in DEVICE_ONLY for name in QUANTITIES}


def test_a_limit_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"limit 'spedup' is not known \(did you mean 'speedup'"):
        merged(profile(), ("spedup>=1",))


def test_what_only_the_device_can_tell_are_limits() -> None:
    assert set(QUANTITIES) > DEVICE_ONLY
    assert not DEVICE_ONLY & {"drop", "size_mb", "int8_macs"}
