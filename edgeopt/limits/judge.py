"""From two numbers to a verdict."""

from __future__ import annotations

import dataclasses
import math

from edgeopt.limits.bounds import Bound
from edgeopt.limits.quantities import Kind, Rule, Sense
from edgeopt.limits.results import GateLimit
from edgeopt.results.verdicts import Pace, Verdict

CANNOT_TELL = "cannot tell"
_ROUNDING = 1e-9
"""Shares are quotients: -0.01 must not fail a bound of -0.01 by its last bit."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found about one quantity of both sides.

    Attributes:
        baseline: The baseline's number, or None.
        candidate: The candidate's, or None.
        value: Ratio or difference, or None: cannot be compared.
        low: Lower end of its 95 % interval, or None: exact.
        high: Upper end.
        comparison: Of latencies measured in pairs.
        reason: Why there is no value, or what it is made of.
        origin: Where the numbers come from.
        gated: False: shown, and never judged.
        identical: The two are the same bytes, run by the same runtime on the same machine.
        unit: In place of the quantity's own, where the numbers carry one.
        seconds: How long it took.
    """

    baseline: float | None = None
    candidate: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    comparison: Pace | None = None
    reason: str = ""
    origin: str = ""
    gated: bool = True
    identical: bool = False
    unit: str = ""
    seconds: float = 0.0

    @property
    def lost(self) -> bool:
        """The baseline has the number and the candidate has not."""
        return self.baseline is not None and self.candidate is None


def change(kind: Kind, candidate: float, baseline: float) -> float:
    """Return the ratio or the difference; nothing over nothing is 1, something over it infinite."""
    if kind is Kind.DIFFERENCE:
        return candidate - baseline
    if baseline == 0:
        return 1.0 if candidate == 0 else math.inf
    return candidate / baseline


def judge(
    bound: Bound, found: Found, *, method: str = "", require_measured: bool = False
) -> GateLimit:
    """Judge one quantity.

    Args:
        bound: The quantity and how far it may move.
        found: The numbers.
        method: The program's method that they are of, or empty: the whole file.
        require_measured: The gate needs every number that a side has or a machine could measure.

    Returns:
        A row. It is required where a user named the limit, where the numbers are there and cannot
        be told apart, where the candidate lost a number that the baseline has, and, with
        `require_measured`, where there is or should be a number.
    """
    quantity = bound.quantity
    verdict, reason = verdict_of(bound, found)
    open_ = verdict is Verdict.NOT_MEASURED
    undecided = open_ and found.gated and found.value is not None
    there = found.baseline is not None or found.candidate is not None
    wanted = require_measured and (there or bound.change.rule is Rule.MEASURED)
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return GateLimit(
        name=quantity.name,
        method=method,
        kind=bound.change.kind,
        unit=found.unit or quantity.unit,
        baseline=found.baseline,
        candidate=found.candidate,
        value=_finite(found.value),
        low=_finite(low),
        high=_finite(high),
        sense=quantity.sense,
        limit=_finite(bound.limit),
        comparison=found.comparison,
        verdict=verdict,
        required=bound.asked_for or undecided or found.lost or wanted,
        reason=reason,
        origin=found.origin,
        source=bound.source,
        seconds=found.seconds,
    )


def verdict_of(bound: Bound, found: Found) -> tuple[Verdict, str]:
    """Return the verdict on a value, and why it is not told where it is not."""
    if found.value is None or math.isnan(found.value) or not found.gated:
        return Verdict.NOT_MEASURED, found.reason or "there is no value"
    if math.isinf(bound.limit):
        return Verdict.PASS, _joined("no bound", found.reason)
    if found.identical:
        why = "the same bytes cannot have changed: the ratio is this machine's noise"
        return Verdict.PASS, _joined(why, found.reason)
    # Turned so that less is better.
    sign = 1.0 if bound.quantity.sense is Sense.AT_MOST else -1.0
    ends = [sign * end for end in (found.low, found.high) if end is not None]
    value, limit = sign * found.value, sign * bound.limit
    low, high = min([*ends, value]), max([*ends, value])
    rule = bound.change.rule
    if rule is Rule.MEASURED:
        return _measured(found, value, low, high, limit)
    if value <= limit + _ROUNDING:
        return Verdict.PASS, found.reason
    if rule is Rule.SAMPLED and low <= 0:
        why = f"{CANNOT_TELL}: the loss is within the sampling error; evaluate on more samples"
        return Verdict.NOT_MEASURED, _joined(why, found.reason)
    return Verdict.FAIL, found.reason


def _measured(
    found: Found, value: float, low: float, high: float, limit: float
) -> tuple[Verdict, str]:
    if high <= limit:
        return Verdict.PASS, found.reason
    # A ratio that equal files reach on this machine too shows nothing.
    noise = found.comparison is Pace.CANNOT_TELL and limit >= 1
    if low > limit and not noise:
        return Verdict.FAIL, found.reason
    why = (
        f"{CANNOT_TELL}: equal files differ by as much on this machine"
        if low > limit
        else f"{CANNOT_TELL}: the interval {low:.3f} to {high:.3f} reaches over the limit {limit:g}"
    )
    return Verdict.NOT_MEASURED, _joined(why, found.reason)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
