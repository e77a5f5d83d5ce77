"""What reports and files tell of two sides without measuring, compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from edgeopt.limits.judge import Found, change
from edgeopt.limits.quantities import Quantity
from edgeopt.results.measurements import AccuracyResult, LatencyResult, Percentile

COUNTED = (
    "size",
    "macs",
    "int8_macs",
    "float_gemms",
    "fused_attentions",
    "partitions",
    "delegated_share",
)
ACCURACY = ("drop", "agreement", "snr_db")
SNR_CEILING_DB = 60.0
"""Above it float rounding is compared: at the outputs, nobody sees the difference."""
SESSION_SPREAD = 0.02
"""Two sessions of one file differ by 1 to 2 % for good (DESIGN.md section 8), so two measurements
of one session each cannot be told apart below it, however many samples they have."""
_Z = 1.959963984540054  # of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of one side.

    Attributes:
        numbers: Quantity -> number, of `COUNTED`.
        hashes: SHA-256 of the artifact's files.
        missing: Quantity -> why there is none.
        accuracy: Method -> accuracy, from the build's report.
        attached: Method -> latency that was measured on the device and attached.
        origin: `report.json` or `file`.
    """

    numbers: Mapping[str, float]
    hashes: tuple[str, ...]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accuracy: Mapping[str, AccuracyResult] = dataclasses.field(default_factory=dict)
    attached: Mapping[str, LatencyResult] = dataclasses.field(default_factory=dict)
    origin: str = "report.json"


def counted(quantity: Quantity, candidate: Facts, baseline: Facts) -> Found:
    """Compare a counted quantity."""
    ours = candidate.numbers.get(quantity.name)
    theirs = baseline.numbers.get(quantity.name)
    if ours is None or theirs is None:
        return Found(theirs, ours, reason=_why_missing(quantity.name, candidate, baseline))
    return Found(
        theirs, ours, change(quantity.kind, ours, theirs), origin=_origins(candidate, baseline)
    )


def _why_missing(name: str, candidate: Facts, baseline: Facts) -> str:
    ours, theirs = (
        "" if name in side.numbers else side.missing.get(name, "") for side in (candidate, baseline)
    )
    if ours == theirs:
        return f"both: {ours or 'nothing tells it'}"
    return "; ".join(
        f"{who}: {why}" for who, why in (("candidate", ours), ("baseline", theirs)) if why
    )


def _origins(candidate: Facts, baseline: Facts) -> str:
    if candidate.origin == baseline.origin:
        return candidate.origin
    return f"candidate: {candidate.origin}; baseline: {baseline.origin}"


def accuracy(quantity: Quantity, method: str, candidate: Facts, baseline: Facts) -> Found:
    """Compare an accuracy figure of the two builds' reports.

    The two were judged apart, each paired with its own float reference, so the interval of the
    difference takes their errors as independent: wider than a paired comparison would give.
    """
    ours, theirs = candidate.accuracy.get(method), baseline.accuracy.get(method)
    own, other = (_figure(quantity.name, side) for side in (ours, theirs))
    if own is None or other is None or ours is None or theirs is None:
        return Found(other, own, reason=_why_missing(quantity.name, candidate, baseline))
    unit = ours.unit if quantity.name == "drop" else ""
    if quantity.name == "drop" and (ours.metric, ours.unit) != (theirs.metric, theirs.unit):
        reason = f"judged by {ours.metric} ({ours.unit}), not by {theirs.metric} ({theirs.unit})"
        return Found(other, own, reason=reason, unit=unit)
    value = own - other
    low = high = value
    if candidate.hashes != baseline.hashes:
        low, high = _difference_interval(
            own, _interval(quantity.name, ours), other, _interval(quantity.name, theirs)
        )
    samples = f"{ours.samples} samples"
    if ours.samples != theirs.samples:
        samples = f"{ours.samples} samples against {theirs.samples}"
    origin = f"{_origins(candidate, baseline)}: {samples}, {ours.runtime}"
    return Found(other, own, value, low, high, origin=origin, unit=unit)


def _figure(name: str, side: AccuracyResult | None) -> float | None:
    value: float | None = None if side is None else getattr(side, name)
    if value is None or math.isnan(value):
        return None
    return min(value, SNR_CEILING_DB) if name == "snr_db" else value


def _interval(name: str, side: AccuracyResult) -> tuple[float, float]:
    """Return the 95 % interval of one side's figure; the figure itself where there is none."""
    if name == "drop" and side.drop is not None:
        low = side.drop if side.drop_low is None else side.drop_low
        high = side.drop if side.drop_high is None else side.drop_high
        return low, high
    if name == "agreement" and side.agreement is not None and side.samples:
        low, high = wilson(side.agreement / 100, side.samples)
        return 100 * low, 100 * high
    value = _figure(name, side)
    assert value is not None
    return value, value


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson, JASA 1927)."""
    square = _Z * _Z / samples
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / samples + square / (4 * samples))
    return centre - half, centre + half


def _difference_interval(
    one: float, around_one: tuple[float, float], other: float, around_other: tuple[float, float]
) -> tuple[float, float]:
    """Return the interval of `one - other` by the square-and-add of Newcombe (1998), method 10."""
    value = one - other
    down = math.hypot(one - around_one[0], around_other[1] - other)
    up = math.hypot(around_one[1] - one, other - around_other[0])
    return value - down, value + up


def attached(rank: str, method: str, candidate: Facts, baseline: Facts) -> Found | None:
    """Compare latencies that `report --attach` brought home, or return None where there are none.

    Args:
        rank: `p50` or `p99`.
        method: The program's method.
        candidate: The candidate's facts.
        baseline: The baseline's facts.

    Returns:
        The ratio. Its interval takes the two as independent, one session each. There is no value
        where the two were not measured in the same way.
    """
    ours, theirs = candidate.attached.get(method), baseline.attached.get(method)
    if ours is None or theirs is None:
        return None
    own, other = (getattr(side, rank) for side in (ours, theirs))
    if not all(0 < p.low <= p.value <= p.high < math.inf for p in (own, other)):
        return Found(reason="an attached measurement holds times that cannot be")
    unlike = _unlike(ours, theirs)
    if unlike:
        reason = f"the attached measurements do not compare: {unlike}"
        return Found(other.value, own.value, reason=reason)
    ratio, low, high = independent_ratio(own, other)
    counts = f"{len(ours.samples_ms)} and {len(theirs.samples_ms)} calls"
    origin = f"attached: {ours.runtime} on {ours.machine.name}, {counts}, one session each"
    return Found(other.value, own.value, ratio, low, high, origin=origin)


def _unlike(ours: LatencyResult, theirs: LatencyResult) -> str:
    power = "power mode"
    pairs = {
        "device": (ours.machine.device, theirs.machine.device),
        "runtime": (ours.runtime, theirs.runtime),
        power: (ours.machine.details.get(power, ""), theirs.machine.details.get(power, "")),
        "batch": (ours.batch, theirs.batch),
        "threads": (ours.threads, theirs.threads),
    }
    return "; ".join(
        f"{name} {one} against {other}" for name, (one, other) in pairs.items() if one != other
    )


def independent_ratio(candidate: Percentile, baseline: Percentile) -> tuple[float, float, float]:
    """Return the ratio of two latencies measured apart, and its 95 % interval.

    The logarithms' half-widths are added in square, with `SESSION_SPREAD` for the sessions.
    """
    ratio = candidate.value / baseline.value

    def half(up: Percentile, down: Percentile) -> float:
        spread = math.log1p(SESSION_SPREAD)
        ends = (math.log(up.high / up.value), math.log(down.value / down.low))
        return math.hypot(spread, *ends)

    return (
        ratio,
        ratio * math.exp(-half(baseline, candidate)),
        ratio * math.exp(half(candidate, baseline)),
    )
