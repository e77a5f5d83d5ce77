"""What two reports tell, compared."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgeopt.limits.bounds import Bound
from edgeopt.limits.facts import (
    SESSION_SPREAD,
    Facts,
    accuracy,
    attached,
    counted,
    independent_ratio,
    wilson,
)
from edgeopt.limits.judge import verdict_of
from edgeopt.limits.quantities import QUANTITIES
from edgeopt.results.measurements import AccuracyResult, LatencyResult, Machine, Percentile
from edgeopt.results.verdicts import Verdict

ACCURACY = AccuracyResult(
    artifact="a",
    runtime="onnxruntime 1",
    metric="top1",
    unit="points",
    reference=98.0,
    value=97.0,
    drop=1.0,
    drop_low=0.4,
    drop_high=1.6,
    agreement=99.0,
    snr_db=30.0,
    cosine=0.99,
    samples=600,
)
DEVICE = Machine("Orin", 0, (), "", 0.0, "Orin", {"power mode": "MAXN", "before: x": "1"})


def facts(hashes: str = "a", result: AccuracyResult | None = ACCURACY, **numbers: float) -> Facts:
    return Facts(numbers, (hashes,), {}, {} if result is None else {"forward": result})


def latency(milliseconds: float, **changes: object) -> LatencyResult:
    point = Percentile(milliseconds, milliseconds * 0.999, milliseconds * 1.001)
    result = LatencyResult(
        "a", "TensorRT 10.3", DEVICE, 1, 1, point, point, point, (milliseconds,) * 100, 100
    )
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def bound(name: str, limit: float = 1.0) -> Bound:
    return Bound(QUANTITIES[name], limit)


def test_a_count_is_compared_where_both_have_it() -> None:
    found = counted(bound("int8_macs"), facts(int8_macs=0.9), facts(int8_macs=0.95))
    assert found.value == pytest.approx(-0.05)
    assert found.origin == "report.json"
    ratio = counted(bound("size_mb"), facts(size_mb=3.0), facts(size_mb=2.0))
    assert ratio.value == 1.5


def test_why_a_count_is_missing_is_said_of_the_side_that_lacks_it() -> None:
    lacking = dataclasses.replace(facts(), missing={"macs": "no report"})
    one = counted(bound("macs"), lacking, facts(macs=5.0))
    assert (one.value, one.baseline, one.candidate) == (None, 5.0, None)
    assert one.reason == "candidate: no report"
    assert one.lost
    other = counted(bound("macs"), facts(macs=5.0), lacking)
    assert (other.reason, other.lost) == ("baseline: no report", False)
    assert counted(bound("macs"), lacking, lacking).reason == "both: no report"


def test_the_interval_of_a_difference_holds_both_errors() -> None:
    worse = dataclasses.replace(ACCURACY, drop=2.0, drop_low=1.2, drop_high=2.8)
    found = accuracy(bound("drop"), "forward", facts("b", worse), facts())
    assert found.value == 1.0
    assert found.low == pytest.approx(1.0 - math.hypot(0.8, 0.6))
    assert found.high == pytest.approx(1.0 + math.hypot(0.8, 0.6))
    assert found.unit == "points"
    assert "600 samples" in found.origin


def test_the_same_file_loses_exactly_nothing() -> None:
    found = accuracy(bound("drop"), "forward", facts(), facts())
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_one_disagreement_of_twenty_does_not_fail_and_does_not_pass() -> None:
    few = dataclasses.replace(ACCURACY, samples=20, agreement=100.0)
    found = accuracy(
        bound("agreement"),
        "forward",
        facts("b", dataclasses.replace(few, agreement=95.0)),
        facts("a", few),
    )
    verdict, reason = verdict_of(bound("agreement", -1.0), found)
    assert verdict is Verdict.NOT_MEASURED
    assert "more samples" in reason
    many = dataclasses.replace(ACCURACY, samples=2000, agreement=100.0)
    sure = accuracy(
        bound("agreement"),
        "forward",
        facts("b", dataclasses.replace(many, agreement=95.0)),
        facts("a", many),
    )
    assert verdict_of(bound("agreement", -1.0), sure)[0] is Verdict.FAIL


@pytest.mark.parametrize("samples", [1, 7, 600])
def test_the_score_interval_is_scipys(samples: int) -> None:
    for right in {0, samples // 3, samples}:
        wanted = binomtest(right, samples).proportion_ci(method="wilson")
        low, high = wilson(right / samples, samples)
        assert low == pytest.approx(wanted.low, abs=1e-9)
        assert high == pytest.approx(wanted.high, abs=1e-9)


def test_two_metrics_are_not_compared() -> None:
    other = dataclasses.replace(ACCURACY, metric="perplexity", unit="%")
    found = accuracy(bound("drop"), "forward", facts("b", other), facts())
    assert found.value is None
    assert "perplexity (%), not by top1 (points)" in found.reason
    assert accuracy(bound("snr_db"), "forward", facts("b", other), facts()).value == 0.0


def test_an_accuracy_that_one_side_lacks_is_missing_with_a_reason() -> None:
    lacking = dataclasses.replace(facts("b", None), missing={"drop": "was not judged"})
    found = accuracy(bound("drop"), "forward", lacking, facts())
    assert (found.value, found.lost, found.reason) == (None, True, "candidate: was not judged")


def test_float_rounding_is_no_change_of_quality() -> None:
    fine, finer = (dataclasses.replace(ACCURACY, snr_db=db) for db in (110.0, 130.0))
    found = accuracy(bound("snr_db"), "forward", facts("b", fine), facts("a", finer))
    assert found.value == 0.0
    poor = dataclasses.replace(ACCURACY, snr_db=20.0)
    worse = accuracy(bound("snr_db"), "forward", facts("b", poor), facts("a", finer))
    assert worse.value == -40.0


# --- attached latencies --------------------------------------------------------------------------


def _with(result: LatencyResult | None) -> Facts:
    return Facts({}, ("a",), attached={} if result is None else {"forward": result})


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.8, Verdict.PASS), (1.0, Verdict.PASS), (1.05, Verdict.NOT_MEASURED), (1.1, Verdict.FAIL)],
)
def test_attached_latencies_are_judged(ratio: float, verdict: Verdict) -> None:
    found = attached(bound("latency_p50_ms"), "forward", _with(latency(ratio)), _with(latency(1.0)))
    assert found is not None
    assert found.value == pytest.approx(ratio)
    assert found.origin.startswith("attached: TensorRT 10.3 on Orin, 100 and 100 calls")
    assert verdict_of(bound("latency_p50_ms", 1.05), found)[0] is verdict


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runtime": "TensorRT 8.5"}, "runtime TensorRT 8.5 against TensorRT 10.3"),
        ({"batch": 8}, "batch 8 against 1"),
        ({"machine": dataclasses.replace(DEVICE, device="Nano")}, "device Nano against Orin"),
        (
            {"machine": dataclasses.replace(DEVICE, details={"power mode": "15W"})},
            "power mode 15W against MAXN",
        ),
    ],
)
def test_measurements_of_another_kind_are_not_compared(
    changes: dict[str, object], told: str
) -> None:
    found = attached(
        bound("latency_p99_ms"), "forward", _with(latency(1.0, **changes)), _with(latency(1.0))
    )
    assert found is not None
    assert found.value is None
    assert told in found.reason


def test_one_attached_measurement_is_none() -> None:
    assert attached(bound("latency_p50_ms"), "forward", _with(latency(1.0)), _with(None)) is None
    assert (
        attached(bound("latency_p50_ms"), "decode", _with(latency(1.0)), _with(latency(1.0)))
        is None
    )


def test_times_that_cannot_be_are_refused() -> None:
    broken = latency(1.0, p50=Percentile(1.0, 0.0, 1.0))
    found = attached(bound("latency_p50_ms"), "forward", _with(broken), _with(latency(1.0)))
    assert found is not None
    assert found.value is None


def test_the_interval_of_two_sessions_covers_them() -> None:
    """Sessions that differ by 1 % each way, and their samples' own error."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        sessions = np.exp(random.normal(0, 0.007, 2))  # their ratio: 1 % standard deviation
        points = []
        for truth, session in zip((1.2, 1.0), sessions, strict=True):
            value = truth * session * np.exp(random.normal(0, 0.005))
            points.append(Percentile(value, value * np.exp(-0.0098), value * np.exp(0.0098)))
        _, low, high = independent_ratio(*points)
        covered += low <= 1.2 <= high
    # 95 % of 400 are 380; 366 or less would happen once in 300 times.
    assert covered > 366


@given(st.floats(0.01, 1e3), st.floats(0.01, 1e3), st.floats(1.0, 2.0), st.floats(1.0, 2.0))
def test_the_ratio_of_two_points_lies_in_its_interval(
    one: float, other: float, wide: float, wider: float
) -> None:
    ours, theirs = Percentile(one, one / wide, one * wider), Percentile(other, other / wider, other)
    ratio, low, high = independent_ratio(ours, theirs)
    assert low < ratio < high
    assert high / ratio >= 1 + SESSION_SPREAD - 1e-9
    back, back_low, back_high = independent_ratio(theirs, ours)
    assert (back * ratio, back_low * high, back_high * low) == pytest.approx((1, 1, 1))
