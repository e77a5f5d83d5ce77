"""Verdicts, and the rows that carry one."""

from __future__ import annotations

import dataclasses
import enum

SCHEMA_VERSION = 1


EXACT_DB = 300.0
"""Stands for the SNR of equal outputs: JSON has no infinity."""


class Verdict(enum.Enum):
    """Of a limit, or of a whole build. `NOT_MEASURED` never counts as a pass."""

    PASS = "pass"
    FAIL = "fail"
    NOT_MEASURED = "not measured"


class Pace(enum.Enum):
    """Of two latencies measured in pairs."""

    FASTER = "faster"
    SAME = "same"
    SLOWER = "slower"
    CANNOT_TELL = "cannot tell"


@dataclasses.dataclass(frozen=True)
class LimitResult:
    """A limit and how it came out.

    Attributes:
        name: As in `edgeopt.limits.quantities.QUANTITIES`.
        artifact: Which artifact it speaks of.
        unit: The value's unit.
        value: What was found, or None.
        maximum: The bound, or None.
        minimum: The bound, or None.
        verdict: Pass, fail or not measured.
        reason: Why not measured, or what the value is made of.
        source: Who set the limit.
        method: The program's method.
    """

    name: str
    artifact: str
    unit: str
    value: float | None
    maximum: float | None
    minimum: float | None
    verdict: Verdict
    reason: str = ""
    source: str = ""
    method: str = "forward"


@dataclasses.dataclass(frozen=True)
class Check:
    """One yes-or-no check."""

    name: str
    holds: bool
    message: str = ""


def finite_db(snr_db: float) -> float:
    """Return an SNR within plus and minus `EXACT_DB`."""
    return max(-EXACT_DB, min(EXACT_DB, snr_db))


def combine(verdicts: list[Verdict]) -> Verdict:
    """Return FAIL if one fails, NOT_MEASURED if one is not measured or there is none, else PASS."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if not verdicts or Verdict.NOT_MEASURED in verdicts:
        return Verdict.NOT_MEASURED
    return Verdict.PASS
