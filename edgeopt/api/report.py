"""Write a bundle's report again, and bring home what was measured on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.artifacts.bundle import REPORT, REPORT_HTML, Bundle
from edgeopt.errors import BundleError, CheckFailed, PluginError, ProfileError
from edgeopt.files import inside, to_json, write_text
from edgeopt.limits.percentiles import PERCENTILES
from edgeopt.results.measurements import LatencyResult, Measured
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import SCHEMA_VERSION, LimitResult, Verdict, combine


@dataclasses.dataclass(frozen=True)
class ReportOutcome:
    """A report and where its page was written."""

    report: BuildReport
    path: Path


def run_report(bundle: Path, *, attach: Path | None = None) -> ReportOutcome:
    """Write `report.html` again; with `attach`, add a measurement and judge by it.

    Args:
        bundle: The bundle's folder.
        attach: What the on-device script wrote. A second measurement of the same artifact on the
            same device takes the place of the first.

    Raises:
        BundleError: If the bundle or the measurement cannot be read, or do not belong together.
        CheckFailed: If the golden vectors did not come out on the device; nothing is changed.
    """
    from edgeopt.report.html import render

    opened = Bundle.open(bundle)
    report = opened.report()
    if report.schema != SCHEMA_VERSION:
        raise BundleError(
            f"{bundle / REPORT}: schema {report.schema}; this edgeopt reads {SCHEMA_VERSION}"
        )
    if attach is not None:
        from edgeopt.runtime_tests.measured import attach as read

        measured, latency = read(attach, opened.manifest)
        report = with_measurement(report, measured, latency)
        kept = inside(bundle, f"measured-{measured.artifact}.json")
        page = render(report)
        write_text(kept, to_json(measured))
        write_text(bundle / REPORT, to_json(report))
    else:
        page = render(report)
    write_text(bundle / REPORT_HTML, page)
    return ReportOutcome(report, bundle / REPORT_HTML)


def with_measurement(
    report: BuildReport, measured: Measured, latency: LatencyResult
) -> BuildReport:
    """Return the report with a measurement of the device, its latency limits judged again.

    Raises:
        CheckFailed: If the golden vectors did not come out: a latency of wrong answers counts for
            nothing.
    """
    if measured.golden_ok is False:
        error = measured.golden_max_error
        found = "" if error is None else f", the largest difference is {error:g}"
        raise CheckFailed(
            f"{measured.artifact} on {measured.device}: the golden vectors did not come out"
            f"{found}; the measurement is not attached"
        )
    trusted, doubt = _is_the_device(report.profile, measured.device)
    limits = tuple(_judge(limit, latency, trusted=trusted, doubt=doubt) for limit in report.limits)
    warnings = [doubt] if doubt else []
    if measured.golden_ok is None:
        warnings.append(
            f"{measured.artifact} on {measured.device}: the golden vectors were not checked there"
        )
    others = (
        found
        for found in report.latency
        if (found.artifact, found.machine.device) != (latency.artifact, latency.machine.device)
    )
    return dataclasses.replace(
        report,
        latency=(dataclasses.replace(latency, stand_in=not trusted), *others),
        limits=limits,
        verdict=combine([limit.verdict for limit in limits]),
        unmeasured={k: why for k, why in report.unmeasured.items() if k != latency.artifact},
        compile={**report.compile, f"{latency.artifact} on {measured.device}": _about(measured)},
        warnings=(*report.warnings, *(w for w in warnings if w not in report.warnings)),
    )


def _is_the_device(profile: str, device: str) -> tuple[bool, str]:
    """Tell whether a device's own name fits the profile, and what to warn of."""
    from edgeopt.devices.machine import is_named
    from edgeopt.devices.profile import load_profile

    try:
        known = load_profile(profile)
    except (ProfileError, PluginError):  # a profile of the user's own
        known = None
    named = None if known is None else is_named(known, device)
    if named is None:
        return True, f"nothing tells whether {device!r} is the device of profile {profile}"
    if named:
        return True, ""
    assert known is not None
    return False, f"was measured on {device!r}, which is not {known.title}"


def _judge(limit: LimitResult, latency: LatencyResult, *, trusted: bool, doubt: str) -> LimitResult:
    percentile = PERCENTILES.get(limit.name)
    if percentile is None or (limit.artifact, limit.method) != (latency.artifact, latency.method):
        return limit
    if not trusted:
        return dataclasses.replace(limit, value=None, verdict=Verdict.NOT_MEASURED, reason=doubt)
    value = percentile(latency).value
    low = -float("inf") if limit.minimum is None else limit.minimum
    high = float("inf") if limit.maximum is None else limit.maximum
    return dataclasses.replace(
        limit,
        value=value,
        verdict=Verdict.PASS if low <= value <= high else Verdict.FAIL,
        reason=f"{len(latency.samples_ms)} samples on {latency.machine.name}, {latency.runtime}",
    )


def _about(measured: Measured) -> Mapping[str, Any]:
    """Return what the device told beside the samples."""
    about: dict[str, Any] = {
        "runtime": measured.runtime,
        "power mode": measured.power_mode,
        "command": measured.command,
        "engine bytes": measured.engine_bytes,
        "golden vectors": _golden(measured),
        **measured.clocks,
        "layers": list(measured.layers),
    }
    return {key: value for key, value in about.items() if value not in ("", None, [])}


def _golden(measured: Measured) -> str:
    if measured.golden_ok is None:
        return "not checked"
    error = measured.golden_max_error
    return "come out" if error is None else f"come out, largest difference {error:g}"
