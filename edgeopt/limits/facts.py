"""What reports and files tell of two sides without measuring, compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from edgeopt.limits.bounds import Bound
from edgeopt.limits.judge import Found, change
from edgeopt.limits.percentiles import PERCENTILES
from edgeopt.results.measurements import AccuracyResult, LatencyResult, Percentile

SNR_CEILING_DB = 60.0
"""Above it float rounding is compared: at the outputs, nobody sees the difference."""
SESSION_SPREAD = 0.02
"""Two sessions of one file differ by 1 to 2 % for good, by where their memory lies, so two
measurements of one session each cannot be told apart below it, however many samples they have."""
_Z = 1.959963984540054  # of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of one side.

    Attributes:
        numbers: Quantity -> number, of those that are counted.
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


def counted(bound: Bound, candidate: Facts, baseline: Facts) -> Found:
    """Compare a counted quantity."""
    name = bound.quantity.name
    ours, theirs = candidate.numbers.get(name), baseline.numbers.get(name)
    if ours is None or theirs is None:
        return Found(theirs, ours, reason=_why_missing(name, candidate, baseline))
    value = change(bound.change.kind, ours, theirs)
    return Found(theirs, ours, value, origin=_origins(candidate, baseline))


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


@dataclasses.dataclass(frozen=True)
class Figure:
    """How a quantity is read off what a build's report tells of its accuracy.

    Attributes:
        value: The figure, or None: there is none.
        interval: Told the result and its figure: the figure's 95 % interval.
        of_the_metric: It is in the metric's unit, and another metric's is not comparable.
    """

    value: Callable[[AccuracyResult], float | None]
    interval: Callable[[AccuracyResult, float], tuple[float, float]]
    of_the_metric: bool = False


def _drop_interval(side: AccuracyResult, drop: float) -> tuple[float, float]:
    low = drop if side.drop_low is None else side.drop_low
    high = drop if side.drop_high is None else side.drop_high
    return low, high


def _agreement_interval(side: AccuracyResult, agreement: float) -> tuple[float, float]:
    if not side.samples:
        return agreement, agreement
    low, high = wilson(agreement / 100, side.samples)
    return 100 * low, 100 * high


def _snr_below_the_ceiling(side: AccuracyResult) -> float | None:
    return None if side.snr_db is None else min(side.snr_db, SNR_CEILING_DB)


FIGURES: Mapping[str, Figure] = {
    "drop": Figure(lambda side: side.drop, _drop_interval, of_the_metric=True),
    "agreement": Figure(lambda side: side.agreement, _agreement_interval),
    "snr_db": Figure(_snr_below_the_ceiling, lambda _side, snr: (snr, snr)),
}


def accuracy(bound: Bound, method: str, candidate: Facts, baseline: Facts) -> Found:
    """Compare an accuracy figure of the two builds' reports.

    The two were judged apart, each paired with its own float reference, so the interval of the
    difference takes their errors as independent: wider than a paired comparison would give.
    """
    name = bound.quantity.name
    figure = FIGURES[name]
    ours, theirs = candidate.accuracy.get(method), baseline.accuracy.get(method)
    own, other = (_value(figure, side) for side in (ours, theirs))
    if own is None or other is None or ours is None or theirs is None:
        return Found(other, own, reason=_why_missing(name, candidate, baseline))
    unit = ours.unit if figure.of_the_metric else ""
    if figure.of_the_metric and (ours.metric, ours.unit) != (theirs.metric, theirs.unit):
        reason = f"judged by {ours.metric} ({ours.unit}), not by {theirs.metric} ({theirs.unit})"
        return Found(other, own, reason=reason, unit=unit)
    value = own - other
    low = high = value
    if candidate.hashes != baseline.hashes:
        low, high = _difference_interval(
            own, figure.interval(ours, own), other, figure.interval(theirs, other)
        )
    samples = f"{ours.samples} samples"
    if ours.samples != theirs.samples:
        samples = f"{ours.samples} samples against {theirs.samples}"
    origin = f"{_origins(candidate, baseline)}: {samples}, {ours.runtime}"
    return Found(other, own, value, low, high, origin=origin, unit=unit)


def _value(figure: Figure, side: AccuracyResult | None) -> float | None:
    value = None if side is None else figure.value(side)
    return None if value is None or math.isnan(value) else value


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


def attached(bound: Bound, method: str, candidate: Facts, baseline: Facts) -> Found | None:
    """Compare latencies that `report --attach` brought home, or return None where there are none.

    Args:
        bound: Of a percentile of the latency.
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
    percentile = PERCENTILES[bound.quantity.name]
    own, other = percentile(ours), percentile(theirs)
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
