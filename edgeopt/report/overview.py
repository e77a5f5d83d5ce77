"""The targets of a bundle at a glance: the same five figures of each file that is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from edgeopt.report.files import Files
from edgeopt.report.words import count, number, share
from edgeopt.results import (
    AccuracyResult,
    ArtifactRow,
    BuildReport,
    Comparison,
    FileRole,
    LatencyResult,
    Pace,
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure with where it comes from.

    Attributes:
        label: What it is.
        value: The number, or the word that stands for it.
        unit: After a number.
        note: Where it comes from, or why there is none.
        percent: How full its bar is, or None: no bar.
        tone: `pass`, `fail`, `open` (nothing was measured), or empty.
    """

    label: str
    value: str
    unit: str
    note: str
    percent: float | None = None
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class TargetView:
    """One target's file.

    Attributes:
        artifact: Its row.
        role: In words.
        kind: `verdict`, `shipped` or `stand-in`.
        figures: File, accuracy, INT8, speed, proof.
    """

    artifact: ArtifactRow
    role: str
    kind: str
    figures: tuple[Figure, ...]


def targets(report: BuildReport) -> tuple[TargetView, ...]:
    """Return the files that are judged, the verdict's first, stand-ins last."""
    files = Files(report)
    found = []
    for artifact in files.main:
        role, kind = "also shipped", "shipped"
        if files.role(artifact) is FileRole.STAND_IN:
            role, kind = "stand-in", "stand-in"
        elif artifact is files.verdict:
            role, kind = "gives the verdict", "verdict"
        figures = (
            _file(artifact, files.yardstick(artifact)),
            _accuracy(report, artifact),
            _int8(report, artifact),
            _speed(report, artifact),
            _proof(report, artifact),
        )
        found.append(TargetView(artifact, role, kind, figures))
    return tuple(found)


def _file(artifact: ArtifactRow, yardstick: ArtifactRow | None) -> Figure:
    note, percent = artifact.format, None
    if yardstick is not None and artifact.size_bytes and yardstick.size_bytes:
        ratio = yardstick.size_bytes / artifact.size_bytes
        note = f"{ratio:.2f} × smaller than {yardstick.precision}"
        if ratio < 1:
            note = f"{1 / ratio:.2f} × larger than {yardstick.precision}"
        percent = min(100.0, 100 / ratio)
    return Figure("Model file", f"{artifact.size_bytes / 1e6:.2f}", "MB", note, percent)


def _accuracy(report: BuildReport, artifact: ArtifactRow) -> Figure:
    found = next((a for a in report.accuracy if a.artifact == artifact.name), None)
    if found is None:
        head = f"no {artifact.format} file was run: "
        why = next((w.removeprefix(head) for w in report.warnings if w.startswith(head)), "")
        return Figure("Accuracy", "not judged", "", why or "no evaluation data, or no runtime here",
                      tone="open")  # fmt: skip
    note = _accuracy_note(found)
    if found.drop is not None:
        return Figure(f"{found.metric} drop", number(found.drop), found.unit, note)
    if found.snr_db is not None:
        return Figure("Outputs against float", number(found.snr_db, 1), "dB", note)
    return Figure("Accuracy", "–", "", note)


def _accuracy_note(found: AccuracyResult) -> str:
    parts = []
    if found.drop_low is not None and found.drop_high is not None:
        parts.append(f"95 %: {number(found.drop_low)} to {number(found.drop_high)}")
    if found.agreement is not None:
        parts.append(f"{number(found.agreement, 1)} % same answers")
    parts.append(count(found.samples, "sample"))
    return ", ".join(parts)


def _int8(report: BuildReport, artifact: ArtifactRow) -> Figure:
    said = report.compile.get(artifact.name, {})
    parts = []
    for key, noun in (("partitions", "partition"), ("fused_attentions", "fused attention")):
        number_of = said.get(key)
        if isinstance(number_of, (int, float)) and not isinstance(number_of, bool):
            parts.append(count(int(number_of), noun))
    delegated = said.get("delegated_share")
    if isinstance(delegated, (int, float)) and not isinstance(delegated, bool):
        parts.insert(0, f"{share(delegated)} delegated")
    note = ", ".join(parts)
    if artifact.int8_macs is None:
        return Figure("Runs in INT8", "–", "", note)
    percent = 100 * artifact.int8_macs
    return Figure("Runs in INT8", number(percent, 1), "% of MACs", note, percent)


def _speed(report: BuildReport, artifact: ArtifactRow) -> Figure:
    timed = [r for r in report.latency if r.artifact == artifact.name]
    device = next((r for r in timed if r.machine.device != "host"), None)
    pair = next((c for c in report.comparisons if c.candidate == artifact.name), None)
    if device is not None:
        note = f"p50 on {device.machine.name}, p99 {number(device.p99.value)} ms"
        return Figure("Latency", number(device.p50.value), "ms", note)
    if not timed:
        why = report.unmeasured.get(artifact.name) or _open_latency_limit(report, artifact.name)
        why = why or "no runtime of its own here, or latency was switched off"
        return Figure("Speed", "not measured", "", why, tone="open")
    note = f"p50 {number(timed[0].p50.value)} ms {_where(timed[0])}"
    if pair is None or pair.ratio <= 0:
        return Figure("Latency", number(timed[0].p50.value), "ms", f"p50 {_where(timed[0])}")
    yardstick = next((a for a in report.artifacts if a.name == pair.baseline), None)
    against = yardstick.precision if yardstick is not None else pair.baseline
    return _pace(pair, f"against {against}; {note}")


def _pace(pair: Comparison, note: str) -> Figure:
    if pair.pace is Pace.FASTER:
        return Figure("Speed", f"{1 / pair.ratio:.2f}", "× faster", note)
    if pair.pace is Pace.SLOWER:
        return Figure("Speed", f"{pair.ratio:.2f}", "× slower", note, tone="fail")
    words = "same speed" if pair.pace is Pace.SAME else "cannot tell"
    return Figure("Speed", words, "", f"ratio {pair.ratio:.3f} {note}")


def _where(result: LatencyResult) -> str:
    where = f"on {result.machine.name}"
    return f"{where}, not the device" if result.stand_in else where


def _open_latency_limit(report: BuildReport, artifact: str) -> str:
    """Return why a latency limit stayed open: older reports say it nowhere else."""
    return next(
        (
            limit.reason
            for limit in report.limits
            if limit.artifact == artifact
            and limit.value is None
            and limit.name.startswith(("latency", "speedup"))
        ),
        "",
    )


def _proof(report: BuildReport, artifact: ArtifactRow) -> Figure:
    found = [p for p in report.proof if p.artifact == artifact.name]
    if not found:
        return Figure("Integer proof", "not proven", "", _why_unproven(artifact), tone="open")
    nodes, elements = sum(p.nodes for p in found), sum(p.elements for p in found)
    note = f"{count(nodes, 'node')}, {count(elements, 'element')}"
    unproven = sum(len(p.unproven) for p in found)
    if unproven:
        note += f"; {unproven} more without an arithmetic"
    if all(p.exact for p in found):
        return Figure("Integer proof", "bit exact", "", note, tone="pass")
    differ = elements - sum(p.equal for p in found)
    largest = max(p.max_lsb for p in found)
    return Figure("Integer proof", f"{differ:,}", "differ", f"of {note}; at most {largest:g} LSB",
                  tone="fail")  # fmt: skip


def _why_unproven(artifact: ArtifactRow) -> str:
    if artifact.precision != "int8":
        return f"a {artifact.precision} file"
    return "no runtime of its own here gave its integers"


def tiles(views: Iterable[TargetView]) -> tuple[Figure, ...]:
    """Return the headline figures: those of the target that gives the verdict."""
    first = next(iter(views), None)
    return () if first is None else first.figures


def title(views: Iterable[TargetView]) -> str:
    """Return what the bundle holds, in words."""
    kinds = [view.kind for view in views]
    stand_ins = kinds.count("stand-in")
    words = count(len(kinds) - stand_ins, "target")
    return f"{words}, {count(stand_ins, 'stand-in')}" if stand_ins else words
