"""What a side shows without being run: structure, sizes, reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.api.formats import inspector_for
from edgeopt.api.gating.side import THIS_MACHINE, Side, artifact_row
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import EdgeOptError
from edgeopt.limits.facts import ACCURACY, Facts
from edgeopt.results.measurements import AccuracyResult, LatencyResult
from edgeopt.results.reports import BuildReport
from edgeopt.runtime_tests.inspection import Structure


def facts_of(side: Side, *, from_file: bool) -> Facts:
    """Return what a side tells without being measured.

    Args:
        side: The side.
        from_file: Read the file alone, since the other side is a plain file.
    """
    if side.report is not None and not from_file:
        return _reported(side, side.report)
    return _read(side)


def _reported(side: Side, report: BuildReport) -> Facts:
    name = side.artifact.name
    row = artifact_row(report, side.artifact)
    numbers = {"size": _size_mb(side.artifact)}
    missing: dict[str, str] = {}
    if row is not None:
        structure = {
            "macs": row.macs,
            "int8_macs": row.int8_macs,
            "float_gemms": row.float_gemms,
        }
        _sort(structure, numbers, missing, "its report does not tell")
    else:
        absent = "its report does not speak of the artifact"
        missing |= {key: absent for key in ("macs", "int8_macs", "float_gemms")}
    _sort(_compiled(report.compile.get(name, {})), numbers, missing, "no compiler told it")
    missing |= dict.fromkeys(ACCURACY, "its build judged no such accuracy")
    accuracy: dict[str, AccuracyResult] = {
        r.method: r for r in report.accuracy if r.artifact == name
    }
    attached: dict[str, LatencyResult] = {
        r.method: r
        for r in report.latency
        if r.artifact == name and r.machine.device != THIS_MACHINE and not r.stand_in
    }
    return Facts(numbers, side.hashes, missing, accuracy, attached)


def _read(side: Side) -> Facts:
    numbers = {"size": _size_mb(side.artifact)}
    missing = dict.fromkeys(ACCURACY, "a file does not tell its accuracy; compare two bundles")
    structure, reason = _structure(side)
    found: Mapping[str, float | None] = {
        "macs": structure.macs if structure else None,
        "int8_macs": structure.int8_macs if structure else None,
        "float_gemms": structure.float_gemms if structure else None,
    }
    _sort(found, numbers, missing, reason)
    compiled = _compiled(structure.compile if structure else {})
    _sort(compiled, numbers, missing, "no compiler told it")
    return Facts(numbers, side.hashes, missing, origin="file")


def _size_mb(artifact: Artifact) -> float:
    """Return the size of everything that a runtime loads, in 10^6 bytes."""
    loaded = [e for e in artifact.files if not e.path.endswith((".json", ".py"))]
    return sum(entry.size_bytes for entry in loaded) / 1e6


def _structure(side: Side) -> tuple[Structure | None, str]:
    artifact = side.artifact
    target = Target(artifact.target or artifact.name, artifact.format, "", "")
    try:
        return inspector_for(artifact.format).structure(side.folder, artifact, target), (
            "the file multiplies nothing"
        )
    except EdgeOptError as failure:
        return None, f"cannot be read off the file: {failure}"


def _compiled(compile_: Mapping[str, Any]) -> dict[str, float | None]:
    names = ("fused_attentions", "partitions", "delegated_share")
    return {name: _number(compile_.get(name)) for name in names}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _sort(
    found: Mapping[str, float | None],
    numbers: dict[str, float],
    missing: dict[str, str],
    reason: str,
) -> None:
    for name, value in found.items():
        if value is None:
            missing[name] = reason
        else:
            numbers[name] = float(value)
