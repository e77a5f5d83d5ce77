"""Judge a build by its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.devices.profile import DeviceProfile
from edgeopt.limits.limit import LIMITS, Limit
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
        compile: What a real compiler said of it, or empty.
    """

    artifact: ArtifactRow
    float_gemms: int
    accuracy: AccuracyResult | None = None
    latency: LatencyResult | None = None
    comparison: Comparison | None = None
    memory: MemoryResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compile: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def merged(profile: DeviceProfile, given: Sequence[str]) -> tuple[Limit, ...]:
    """Return the profile's limits with those of the command line in their place.

    A limit of the command line replaces all of the profile's of that name.

    Raises:
        ConfigError: If a limit cannot be read; the nearest name is suggested.
    """
    own = tuple(Limit.parse(text) for text in given)
    names = {limit.name for limit in own}
    return (*(limit for limit in profile.limits if limit.name not in names), *own)


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
    value, reason = _value(limit.name, found)
    if value is None:
        verdict = Verdict.NOT_MEASURED
    elif limit.maximum is not None:
        verdict = Verdict.PASS if value <= limit.maximum else Verdict.FAIL
    else:
        assert limit.minimum is not None
        verdict = Verdict.PASS if value >= limit.minimum else Verdict.FAIL
    unit, _ = LIMITS[limit.name]
    if limit.name == "drop" and found.accuracy is not None:
        unit = found.accuracy.unit
    return LimitResult(
        name=limit.name,
        artifact=found.artifact.name,
        unit=unit,
        value=value,
        maximum=limit.maximum,
        minimum=limit.minimum,
        verdict=verdict,
        reason=reason,
        source=limit.source,
        method=limit.method,
    )


def _value(name: str, found: Found) -> tuple[float | None, str]:
    missing = found.missing.get(name, "was not measured")
    accuracy = found.accuracy
    if name == "size_mb":
        return found.artifact.size_bytes / 1e6, found.artifact.file
    if name == "macs":
        return float(found.artifact.macs), "counted in the exported program"
    if name == "float_gemms":
        return float(found.float_gemms), "counted in the exported program"
    if name == "int8_macs":
        if found.artifact.int8_macs is None:
            return None, "the file multiplies nothing"
        return found.artifact.int8_macs, "of the compiled or exported program"
    if name in ("partitions", "delegated_share", "fused_attentions"):
        number = found.compile.get(name)
        if number is None:
            return None, found.missing.get(name, "no compiler on this machine tells it")
        return float(number), str(found.compile.get("compiler", "the compiler's report"))
    if name in ("drop", "agreement", "snr_db"):
        value = getattr(accuracy, name) if accuracy is not None else None
        if value is None:
            return None, missing if accuracy is None else "the data carry no labels for it"
        assert accuracy is not None
        return float(value), f"{accuracy.samples} samples, {accuracy.runtime}"
    if name in ("latency_p50_ms", "latency_p99_ms"):
        if found.latency is None:
            return None, missing
        point = found.latency.p50 if name == "latency_p50_ms" else found.latency.p99
        return (
            point.value,
            f"{len(found.latency.samples_ms)} samples on {found.latency.machine.name}",
        )
    if name == "speedup":
        if found.comparison is None:
            return None, missing
        ratio = found.comparison
        return 1.0 / ratio.ratio, f"{ratio.pairs} interleaved pairs against {ratio.baseline}"
    if name == "peak_memory_mb":
        if found.memory is None:
            return None, missing
        return found.memory.peak_rss_mb, "peak resident set of a process that loads and runs it"
    raise AssertionError(f"limit {name} has no value")
