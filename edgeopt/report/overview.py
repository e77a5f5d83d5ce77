"""The targets of a bundle at a glance: the same five figures of each file that is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from edgeopt.report.files import Files
from edgeopt.report.words import count, number, share
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult
from edgeopt.results.reports import ArtifactRow, BuildReport, FileRole
from edgeopt.results.verdicts import Pace


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure with where it comes from.

    Attributes:
        label: What it is.
        value: The number, or the word that stands for it.
        unit: After a number.
        note: Where it comes from, or why there is none.
        brief: The note's most telling part, where the figure stands among others.
        percent: How full its bar is, or None: no bar.
        tone: `pass`, `fail`, `open` (nothing was measured), or empty.
    """

    label: str
    value: str
    unit: str
    note: str
    brief: str
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
    note, percent = "no float file to compare with", None
    if artifact.precision != "int8":
        note = artifact.format
    if yardstick is not None and artifact.size_bytes and yardstick.size_bytes:
        ratio = yardstick.size_bytes / artifact.size_bytes
        note = f"{ratio:.2f} × smaller than {yardstick.precision}"
        if ratio < 1:
            note = f"{1 / ratio:.2f} × larger than {yardstick.precision}"
        percent = min(100.0, 100 / ratio)
    return Figure("Model file", f"{artifact.size_bytes / 1e6:.2f}", "MB", note, note, percent)


def _accuracy(report: BuildReport, artifact: ArtifactRow) -> Figure:
    found = next((a for a in report.accuracy if a.artifact == artifact.name), None)
    if found is None:
        head = f"no {artifact.format} file was run: "
        why = next((w.removeprefix(head) for w in report.warnings if w.startswith(head)), "")
        why = why or "no evaluation data, or no runtime here"
        return Figure("Accuracy", "not judged", "", why, why, tone="open")
    note, brief = _samples(found), count(found.samples, "sample")
    if found.agreement is not None:
        brief = f"{number(found.agreement, 1)} % same answers"
    if found.drop is not None:
        return Figure(f"{found.metric} drop", number(found.drop), found.unit, note, brief)
    return Figure("Outputs against float", number(found.snr_db, 1), "dB", note, brief)


def _samples(found: AccuracyResult) -> str:
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
    if _is_number(said.get("delegated_share")):
        parts.append(f"{share(said['delegated_share'])} delegated")
    for key, noun in (("partitions", "partition"), ("fused_attentions", "fused attention")):
        if _is_number(said.get(key)):
            parts.append(count(int(said[key]), noun))
    note = ", ".join(parts)
    if artifact.int8_macs is None:
        return Figure("Runs in INT8", "–", "", note, note)
    percent = 100 * artifact.int8_macs
    return Figure("Runs in INT8", number(percent, 1), "% of MACs", note, note, percent)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _speed(report: BuildReport, artifact: ArtifactRow) -> Figure:
    timed = [r for r in report.latency if r.artifact == artifact.name]
    device = [r for r in timed if r.machine.device != "host"]
    if not timed:
        why = report.unmeasured.get(artifact.name) or _open_latency_limit(report, artifact.name)
        why = why or "no runtime of its own here, or latency was switched off"
        return Figure("Speed", "not measured", "", why, why, tone="open")
    shown = (device or timed)[0]
    where = _where(shown)
    pair = next((c for c in report.comparisons if c.candidate == artifact.name), None)
    if device or pair is None or pair.ratio <= 0:
        note = f"p50 {where}, p99 {number(shown.p99.value)} ms"
        return Figure("Latency", number(shown.p50.value), "ms", note, f"p50 {where}")
    yardstick = next((a for a in report.artifacts if a.name == pair.baseline), None)
    against = f"against {yardstick.precision if yardstick is not None else pair.baseline}"
    note = f"{against}; p50 {number(shown.p50.value)} ms {where}"
    return _pace(pair, note, f"{against}, {where}")


def _pace(pair: Comparison, note: str, brief: str) -> Figure:
    if pair.pace is Pace.FASTER:
        return Figure("Speed", f"{1 / pair.ratio:.2f}", "× faster", note, brief)
    if pair.pace is Pace.SLOWER:
        return Figure("Speed", f"{pair.ratio:.2f}", "× slower", note, brief, tone="fail")
    words = "same speed" if pair.pace is Pace.SAME else "cannot tell"
    return Figure("Speed", words, "", f"ratio {pair.ratio:.3f} {note}", brief)


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
        why = "its runtime's integers were not compared"
        if artifact.precision != "int8":
            why = f"a {artifact.precision} file"
        return Figure("Integer proof", "not proven", "", why, why, tone="open")
    elements = sum(p.elements for p in found)
    brief = count(sum(p.nodes for p in found), "node")
    note = f"{brief}, {count(elements, 'element')}"
    unproven = sum(len(p.unproven) for p in found)
    if unproven:
        note += f"; {unproven} more without an arithmetic"
    if all(p.exact for p in found):
        return Figure("Integer proof", "bit exact", "", note, brief, tone="pass")
    differ = elements - sum(p.equal for p in found)
    off = f"at most {max(p.max_lsb for p in found):g} LSB"
    return Figure(
        "Integer proof", f"{differ:,}", "differ", f"of {note}; {off}", off, tone="fail"
    )  # fmt: skip


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
