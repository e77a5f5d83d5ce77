"""What a side shows without being run: structure, sizes, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.api.formats import inspector_for
from edgeopt.api.gating.side import THIS_MACHINE, Side, artifact_row
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import EdgeOptError
from edgeopt.limits.counted import Told
from edgeopt.limits.facts import Facts
from edgeopt.limits.known import count
from edgeopt.limits.quantities import QUANTITIES, Evidence, compared
from edgeopt.results.measurements import AccuracyResult, LatencyResult
from edgeopt.results.reports import ArtifactRow, BuildReport
from edgeopt.runtime_tests.inspection import Structure


def facts_of(side: Side, names: Sequence[str] = (), *, from_file: bool) -> Facts:
    """Return what a side tells without being measured.

    Args:
        side: The side.
        names: Of the quantities that are compared; a plug-in's are counted for it.
        from_file: Read the file alone, since the other side is a plain file.
    """
    if side.report is not None and not from_file:
        return _reported(side, side.report, _added(names))
    return _read(side, _added(names))


def _added(names: Sequence[str]) -> list[str]:
    """Return the names of plug-ins' quantities."""
    return [name for name in names if name not in QUANTITIES]


def _counted(added: Sequence[str], told: Told | None) -> dict[str, float | None]:
    return {name: None if told is None else count(name, told) for name in added}


def _told(report: BuildReport, artifact: str) -> Told:
    return Told(
        tuple(row for row in report.operators if row.artifact == artifact),
        tuple(row for row in report.sizes if row.artifact == artifact),
        report.compile.get(artifact, {}),
    )


def _reported(side: Side, report: BuildReport, added: Sequence[str]) -> Facts:
    name = side.artifact.name
    row = artifact_row(report, side.artifact)
    numbers = {"size_mb": _size_mb(side.artifact)}
    missing = dict.fromkeys(compared(Evidence.ACCURACY), "its build judged no such accuracy")
    silent = "does not tell" if row is not None else "does not speak of the artifact"
    _sort(_structural(row), numbers, missing, f"its report {silent}")
    _sort(_compiled(report.compile.get(name, {})), numbers, missing, "no compiler told it")
    told = None if row is None else _told(report, name)
    _sort(_counted(added, told), numbers, missing, f"its report {silent}")
    accuracy: dict[str, AccuracyResult] = {
        r.method: r for r in report.accuracy if r.artifact == name
    }
    attached: dict[str, LatencyResult] = {
        r.method: r
        for r in report.latency
        if r.artifact == name and r.machine.device != THIS_MACHINE and not r.stand_in
    }
    return Facts(numbers, side.hashes, missing, accuracy, attached)


def _read(side: Side, added: Sequence[str]) -> Facts:
    numbers = {"size_mb": _size_mb(side.artifact)}
    silent = "a file does not tell its accuracy; compare two bundles"
    missing = dict.fromkeys(compared(Evidence.ACCURACY), silent)
    structure, reason = _structure(side)
    _sort(_structural(structure), numbers, missing, reason)
    compiled = _compiled(structure.compile if structure else {})
    _sort(compiled, numbers, missing, "no compiler told it")
    if added and structure is not None:
        sizes = inspector_for(side.artifact.format).sizes(side.folder, side.artifact)
        told = Told(structure.operators, sizes, structure.compile)
        _sort(_counted(added, told), numbers, missing, "the file does not tell it")
    else:
        missing |= dict.fromkeys(added, reason)
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
