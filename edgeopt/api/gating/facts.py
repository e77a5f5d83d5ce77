"""What a side shows without being run: structure, sizes, reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.api.formats import inspector_for
from edgeopt.api.gating.side import THIS_MACHINE, Side, artifact_row
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import EdgeOptError
from edgeopt.limits.facts import Facts
from edgeopt.limits.quantities import Evidence, compared
from edgeopt.results.measurements import AccuracyResult, LatencyResult
from edgeopt.results.reports import ArtifactRow, BuildReport
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
    numbers = {"size_mb": _size_mb(side.artifact)}
    missing = dict.fromkeys(compared(Evidence.ACCURACY), "its build judged no such accuracy")
    silent = "does not tell" if row is not None else "does not speak of the artifact"
    _sort(_structural(row), numbers, missing, f"its report {silent}")
    _sort(_compiled(report.compile.get(name, {})), numbers, missing, "no compiler told it")
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
    numbers = {"size_mb": _size_mb(side.artifact)}
    silent = "a file does not tell its accuracy; compare two bundles"
    missing = dict.fromkeys(compared(Evidence.ACCURACY), silent)
    structure, reason = _structure(side)
    _sort(_structural(structure), numbers, missing, reason)
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


def _structural(told: ArtifactRow | Structure | None) -> dict[str, float | None]:
    return {
        "macs": None if told is None else told.macs,
        "int8_macs": None if told is None else told.int8_macs,
        "float_gemms": None if told is None else told.float_gemms,
    }


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
