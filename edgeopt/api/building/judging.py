"""Judge a build by its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from edgeopt.devices.profile import DeviceProfile
from edgeopt.limits.counted import Told
from edgeopt.limits.known import count
from edgeopt.limits.limit import Limit, renamed
from edgeopt.limits.percentiles import PERCENTILES
from edgeopt.limits.quantities import old_name_notes
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult, MemoryResult
from edgeopt.results.reports import ArtifactRow
from edgeopt.results.verdicts import LimitResult, Verdict

DEVICE_ONLY = frozenset({"latency_p50_ms", "latency_p99_ms", "speedup", "peak_memory_mb"})
"""What only the device itself can tell."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a build found about the artifact that gives the verdict.

    Attributes:
        artifact: Its row.
        float_gemms: Weighted operators that stay float.
        accuracy: Its accuracy, or None.
        latency: Its latency on the device, or None.
        comparison: Against the float file on the device, or None.
        memory: On the device, or None.
        missing: Limit name -> why there is no value.
        told: What a plug-in's quantity may count.
    """

    artifact: ArtifactRow
    float_gemms: int
    accuracy: AccuracyResult | None = None
    latency: LatencyResult | None = None
    comparison: Comparison | None = None
    memory: MemoryResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    told: Told = dataclasses.field(default_factory=Told)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One number of what was found.

    Attributes:
        value: The number, or None.
        reason: What it is made of, or why there is none, where `Found.missing` does not say.
        unit: In place of the quantity's own, where the number carries one.
    """

    value: float | None
    reason: str
    unit: str = ""


_NOT_MEASURED = Reading(None, "was not measured")
_COUNTED = "counted in the exported program"


def merged(
    profile: DeviceProfile, given: Sequence[str]
) -> tuple[tuple[Limit, ...], tuple[str, ...]]:
    """Return the profile's limits with those of the command line in their place, and notes.

    A limit of the command line replaces all of the profile's of that name. All have the names of
    today; each old name that was written is a note for the user.

    Raises:
        ConfigError: If a limit cannot be read; the nearest name is suggested.
    """
    own = tuple(Limit.parse(text) for text in given)
    replaced = {limit.quantity.name for limit in own}
    kept = (limit for limit in profile.limits if limit.quantity.name not in replaced)
    notes = old_name_notes(limit.name for limit in (*profile.limits, *own))
    return tuple(renamed(limit) for limit in (*kept, *own)), tuple(notes)


def judge(limits: Sequence[Limit], found: Found) -> tuple[LimitResult, ...]:
    """Compare each limit with what was found; what was not measured never passes."""
    return tuple(_judge(limit, found) for limit in limits)


def withheld(rows: Sequence[LimitResult], reason: str) -> tuple[LimitResult, ...]:
    """Return the rows with no verdict: what was judged cannot stand for the device."""
    return tuple(
        dataclasses.replace(row, verdict=Verdict.NOT_MEASURED, reason=f"{reason}; {row.reason}")
        for row in rows
    )


def _judge(limit: Limit, found: Found) -> LimitResult:
    name = limit.quantity.name
    reading = READINGS[name](found) if name in READINGS else _added(name, found)
    value, reason = reading.value, reading.reason
    if value is None:
        verdict, reason = Verdict.NOT_MEASURED, found.missing.get(name, reason)
    elif limit.maximum is not None:
        verdict = Verdict.PASS if value <= limit.maximum else Verdict.FAIL
    else:
        assert limit.minimum is not None
        verdict = Verdict.PASS if value >= limit.minimum else Verdict.FAIL
    return LimitResult(
        name=name,
        artifact=found.artifact.name,
        unit=reading.unit or limit.quantity.unit,
        value=value,
        maximum=limit.maximum,
        minimum=limit.minimum,
        verdict=verdict,
        reason=reason,
        source=limit.source,
        method=limit.method,
    )


def _added(name: str, found: Found) -> Reading:
    """Read a plug-in's quantity."""
    number = count(name, found.told)
    return Reading(number, "the file does not tell it" if number is None else found.artifact.file)


def _latency(name: str) -> Callable[[Found], Reading]:
    def reading(found: Found) -> Reading:
        latency = found.latency
        if latency is None:
            return _NOT_MEASURED
        samples = f"{len(latency.samples_ms)} samples on {latency.machine.name}"
        return Reading(PERCENTILES[name](latency).value, samples)

    return reading


def _speedup(found: Found) -> Reading:
    ratio = found.comparison
    if ratio is None:
        return _NOT_MEASURED
    return Reading(1.0 / ratio.ratio, f"{ratio.pairs} interleaved pairs against {ratio.baseline}")


def _peak_memory(found: Found) -> Reading:
    if found.memory is None:
        return _NOT_MEASURED
    whose = "peak resident set of a process that loads and runs it"
    return Reading(found.memory.peak_rss_mb, whose)


def _int8_macs(found: Found) -> Reading:
    share = found.artifact.int8_macs
    if share is None:
        return Reading(None, "the file multiplies nothing")
    return Reading(share, "of the compiled or exported program")


def _compiled(name: str) -> Callable[[Found], Reading]:
    def reading(found: Found) -> Reading:
        number = found.told.compile.get(name)
        if number is None:
            return Reading(None, "no compiler on this machine tells it")
        return Reading(
            float(number), str(found.told.compile.get("compiler", "the compiler's report"))
        )

    return reading


def _accuracy(
    value: Callable[[AccuracyResult], float | None], *, in_metric_units: bool = False
) -> Callable[[Found], Reading]:
    def reading(found: Found) -> Reading:
        accuracy = found.accuracy
        if accuracy is None:
            return _NOT_MEASURED
        unit = accuracy.unit if in_metric_units else ""
        number = value(accuracy)
        if number is None:
            return Reading(None, "the data carry no labels for it", unit)
        return Reading(float(number), f"{accuracy.samples} samples, {accuracy.runtime}", unit)

    return reading


READINGS: Mapping[str, Callable[[Found], Reading]] = {
    "latency_p50_ms": _latency("latency_p50_ms"),
    "latency_p99_ms": _latency("latency_p99_ms"),
    "speedup": _speedup,
    "peak_memory_mb": _peak_memory,
    "size_mb": lambda found: Reading(found.artifact.size_bytes / 1e6, found.artifact.file),
    "macs": lambda found: Reading(float(found.artifact.macs), _COUNTED),
    "int8_macs": _int8_macs,
    "float_gemms": lambda found: Reading(float(found.float_gemms), _COUNTED),
    "fused_attentions": _compiled("fused_attentions"),
    "partitions": _compiled("partitions"),
    "delegated_share": _compiled("delegated_share"),
    "drop": _accuracy(lambda accuracy: accuracy.drop, in_metric_units=True),
    "agreement": _accuracy(lambda accuracy: accuracy.agreement),
    "snr_db": _accuracy(lambda accuracy: accuracy.snr_db),
}
"""Quantity -> how a build's own number is read."""
