"""Verdicts on made-up numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.limits.bounds import Bound
from edgeopt.limits.judge import Found, change, judge, verdict_of
from edgeopt.limits.quantities import QUANTITIES, Kind, Rule, Sense
from edgeopt.limits.results import GateLimit, combine
from edgeopt.results.verdicts import Pace, Verdict

PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.NOT_MEASURED


def ratio(value: float, low: float, high: float, pace: Pace | None = None) -> Found:
    return Found(10.0, 10.0 * value, value, low, high, pace)


@pytest.mark.parametrize(
    ("value", "low", "high", "limit", "pace", "verdict"),
    [
        (1.00, 0.98, 1.02, 1.05, Pace.SAME, PASS),
        (0.50, 0.48, 0.52, 1.05, Pace.FASTER, PASS),
        (1.03, 1.01, 1.05, 1.05, Pace.SLOWER, PASS),  # slower, and within what is allowed
        (1.04, 1.02, 1.06, 1.05, Pace.SLOWER, OPEN),
        (1.06, 1.04, 1.08, 1.05, Pace.SLOWER, OPEN),
        (1.10, 1.06, 1.14, 1.05, Pace.SLOWER, FAIL),
        (1.10, 1.06, 1.14, 1.05, Pace.CANNOT_TELL, OPEN),  # equal files differ by as much here
        (1.10, 1.06, 1.14, 1.05, None, FAIL),  # memory has no pace
        (1.00, 0.98, 1.02, 0.90, Pace.CANNOT_TELL, FAIL),  # must be faster, and is surely not
        (0.80, 0.70, 0.89, 0.90, Pace.FASTER, PASS),
        (0.88, 0.80, 0.95, 0.90, Pace.FASTER, OPEN),
        (1.00, 0.0, math.inf, 1.05, Pace.CANNOT_TELL, OPEN),  # one block
    ],
)
def test_an_interval_decides_what_is_measured(
    value: float, low: float, high: float, limit: float, pace: Pace | None, verdict: Verdict
) -> None:
    bound = Bound(QUANTITIES["latency_p50_ms"], limit)
    row = judge(bound, ratio(value, low, high, pace), method="forward")
    assert row.verdict is verdict
    assert row.comparison is pace
    assert row.required is (verdict is OPEN)
    assert ("cannot tell" in row.reason) is (verdict is OPEN)


def test_the_same_bytes_pass_whatever_the_noise() -> None:
    found = Found(10.0, 14.0, 1.4, 1.2, 1.6, Pace.SLOWER, identical=True)
    row = judge(Bound(QUANTITIES["latency_p50_ms"], 1.05), found)
    assert row.verdict is PASS
    assert "same bytes" in row.reason
    assert (row.value, row.low, row.high) == (1.4, 1.2, 1.6)


def test_what_is_shown_only_is_never_judged() -> None:
    found = Found(10.0, 5.0, 0.5, 0.4, 0.6, Pace.FASTER, gated=False, reason="not the device")
    row = judge(Bound(QUANTITIES["latency_p50_ms"], 1.05), found)
    assert (row.verdict, row.reason, row.required) == (OPEN, "not the device", False)
    asked = Bound(QUANTITIES["latency_p50_ms"], 1.05, "command line")
    assert judge(asked, found).required
    assert judge(Bound(QUANTITIES["latency_p50_ms"], 1.05), found, require_measured=True).required


@pytest.mark.parametrize(
    ("name", "baseline", "candidate", "verdict"),
    [
        ("size_mb", 100, 102, PASS),
        ("size_mb", 100, 102.1, FAIL),
        ("macs", 0, 0, PASS),
        ("macs", 0, 1, FAIL),
        ("float_gemms", 3, 3, PASS),
        ("float_gemms", 3, 2, PASS),
        ("float_gemms", 3, 4, FAIL),
        ("fused_attentions", 4, 4, PASS),
        ("fused_attentions", 4, 3, FAIL),
        ("partitions", 1, 2, FAIL),
        ("int8_macs", 0.98, 0.97, PASS),  # 0.98 - 0.97 is not 0.01 in floats
        ("int8_macs", 0.98, 0.969, FAIL),
        ("delegated_share", 0.5, 0.9, PASS),
        ("snr_db", 30.0, 29.1, PASS),
        ("snr_db", 30.0, 28.9, FAIL),
    ],
)
def test_a_count_is_judged_by_itself(
    name: str, baseline: float, candidate: float, verdict: Verdict
) -> None:
    quantity = QUANTITIES[name]
    compared = quantity.change
    assert compared is not None
    assert compared.rule is Rule.EXACT
    assert compared.default is not None
    found = Found(baseline, candidate, change(compared.kind, candidate, baseline))
    row = judge(Bound(quantity, compared.default), found)
    assert row.verdict is verdict
    assert row.low == row.value == row.high
    assert not row.required


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.4, -0.5, 1.3, PASS),
        (0.6, -0.1, 1.3, OPEN),  # as likely nothing at all
        (0.6, 0.0, 1.2, OPEN),
        (0.6, 0.1, 1.1, FAIL),
        (3.0, 2.0, 4.0, FAIL),
        (-2.0, -3.0, -1.0, PASS),
    ],
)
def test_a_loss_of_accuracy_must_be_beyond_the_sampling_error(
    value: float, low: float, high: float, verdict: Verdict
) -> None:
    found = Found(0.0, value, value, low, high)
    assert verdict_of(Bound(QUANTITIES["drop"], 0.5), found)[0] is verdict
    turned = Found(99.0, 99.0 - 2 * value, -2 * value, -2 * high, -2 * low)
    assert verdict_of(Bound(QUANTITIES["agreement"], -1.0), turned)[0] is verdict


def test_without_a_bound_everything_passes_and_is_shown() -> None:
    row = judge(Bound(QUANTITIES["size_mb"], math.inf, "command line"), Found(1.0, 9.0, 9.0))
    assert (row.verdict, row.limit, row.value) == (PASS, None, 9.0)
    missing = judge(Bound(QUANTITIES["size_mb"], math.inf, "command line"), Found(reason="no file"))
    assert missing.verdict is OPEN


@pytest.mark.parametrize(
    ("found", "asked", "measured", "required"),
    [
        (Found(reason="-"), False, False, False),
        (Found(reason="-"), True, False, True),
        (Found(5.0, None, reason="-"), False, False, True),  # the candidate lost it
        (Found(None, 5.0, reason="-"), False, False, False),  # the baseline is of an older version
        (Found(None, 5.0, reason="-"), False, True, True),
        (Found(reason="-"), False, True, False),  # neither tells it: nothing to measure
    ],
)
def test_when_a_missing_count_keeps_the_gate_from_passing(
    found: Found, asked: bool, measured: bool, required: bool
) -> None:
    source = "command line" if asked else "default"
    row = judge(Bound(QUANTITIES["partitions"], 0, source), found, require_measured=measured)
    assert (row.verdict, row.required) == (OPEN, required)


def test_what_a_machine_could_measure_is_required_with_require_measured() -> None:
    bound = Bound(QUANTITIES["peak_memory_mb"], 1.1)
    assert not judge(bound, Found(reason="no runtime")).required
    assert judge(bound, Found(reason="no runtime"), require_measured=True).required


def test_an_infinite_change_is_written_as_none_and_still_fails() -> None:
    quantity = QUANTITIES["macs"]
    row = judge(Bound(quantity, 1.01), Found(0.0, 5.0, change(Kind.RATIO, 5.0, 0.0)))
    assert (row.verdict, row.value) == (FAIL, None)


def _row(verdict: Verdict, *, required: bool = False) -> GateLimit:
    found = Found(1.0, 1.0, {PASS: 1.0, FAIL: 2.0, OPEN: None}[verdict])
    source = "command line" if required else "default"
    return judge(Bound(QUANTITIES["size_mb"], 1.02, source), found)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ((), OPEN),
        ((_row(OPEN),), OPEN),
        ((_row(PASS), _row(OPEN)), PASS),
        ((_row(PASS), _row(OPEN, required=True)), OPEN),
        ((_row(PASS), _row(OPEN, required=True), _row(FAIL)), FAIL),
    ],
)
def test_the_gate_fails_before_it_is_open_before_it_passes(
    rows: tuple[GateLimit, ...], verdict: Verdict
) -> None:
    assert combine(rows) is verdict


numbers = st.floats(0.01, 100.0)


@given(numbers, numbers, numbers, st.sampled_from([n for n, q in QUANTITIES.items() if q.change]))
def test_a_worse_value_never_gets_a_better_verdict(
    limit: float, value: float, worse: float, name: str
) -> None:
    quantity = QUANTITIES[name]
    order = [FAIL, OPEN, PASS]
    sign = 1 if quantity.sense is Sense.AT_MOST else -1
    found = []
    for shift in (0.0, worse):
        at = value + sign * shift
        spread = Found(1.0, 1.0, at, at - 0.5, at + 0.5, Pace.SLOWER)
        found.append(order.index(verdict_of(Bound(quantity, limit), spread)[0]))
    assert found[1] <= found[0]
