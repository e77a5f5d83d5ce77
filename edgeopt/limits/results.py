"""What `edgeopt gate` returns; the JSON of `gate --json`."""

from __future__ import annotations

import dataclasses

from edgeopt.limits.quantities import Kind, Sense
from edgeopt.results.measurements import Comparison, Machine
from edgeopt.results.verdicts import Pace, Verdict

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class GateLimit:
    """One quantity of the candidate against the baseline's.

    Attributes:
        name: `latency_p50_ms`, `latency_p99_ms`, `peak_memory_mb`, `size_mb`, `macs`, `int8_macs`,
            `float_gemms`, `fused_attentions`, `partitions`, `delegated_share`, `drop`, `agreement`
            or `snr_db`: as in `edgeopt.limits.quantities.QUANTITIES`.
        method: The program's method, or empty: of the whole file.
        kind: What `value` is: candidate / baseline, or candidate - baseline.
        unit: Of `baseline` and `candidate`; of `value` too where it is a difference.
        baseline: The baseline's number, or None.
        candidate: The candidate's number, or None.
        value: The ratio or difference that is judged, or None.
        low: Lower end of its 95 % interval; equal to `value` where it is exact.
        high: Upper end.
        sense: `<=` or `>=`: on which side of `limit` the value must be.
        limit: The bound, or None: shown without a bound.
        comparison: Of latencies measured in pairs, else None.
        verdict: Pass, fail or not measured.
        required: Whether the gate's own verdict needs this one.
        reason: Why not measured, why it cannot be told, or what the value is made of.
        origin: Where the two numbers come from: runtime and machine, reports, files.
        source: Who set the limit: `default` or `command line`.
        seconds: How long it took to measure.
    """

    name: str
    method: str
    kind: Kind
    unit: str
    baseline: float | None
    candidate: float | None
    value: float | None
    low: float | None
    high: float | None
    sense: Sense
    limit: float | None
    comparison: Pace | None
    verdict: Verdict
    required: bool
    reason: str = ""
    origin: str = ""
    source: str = "default"
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class GateSide:
    """One of the two that are compared.

    Attributes:
        path: The bundle or file as given.
        artifact: The artifact's name, or the file's.
        file: The model file.
        sha256: Its hash.
        format: The exporter.
        precision: `int8`, `float16`, `float32`, or empty: a plain file does not tell.
        profile: The bundle's profile, or empty.
        recipe: The bundle's recipe, or empty.
        build_key: The bundle's, or empty.
    """

    path: str
    artifact: str
    file: str
    sha256: str
    format: str
    precision: str = ""
    profile: str = ""
    recipe: str = ""
    build_key: str = ""


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What `edgeopt gate` found.

    Attributes:
        verdict: Fail if a limit fails; not measured if a required one is, or if nothing at all
            was judged; else pass.
        candidate: What is judged.
        baseline: What it is judged against.
        limits: One row a quantity and method.
        comparisons: The interleaved pairs with their raw samples.
        machine: Where was measured.
        warnings: What a user should read first.
        seconds: How long it took.
        schema: Version.
    """

    verdict: Verdict
    candidate: GateSide
    baseline: GateSide
    limits: tuple[GateLimit, ...]
    comparisons: tuple[Comparison, ...]
    machine: Machine
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    schema: int = SCHEMA_VERSION


def combine(rows: tuple[GateLimit, ...]) -> Verdict:
    """Return the gate's verdict."""
    found = [row.verdict for row in rows]
    if Verdict.FAIL in found:
        return Verdict.FAIL
    unknown = any(row.required and row.verdict is Verdict.NOT_MEASURED for row in rows)
    return Verdict.NOT_MEASURED if unknown or Verdict.PASS not in found else Verdict.PASS
