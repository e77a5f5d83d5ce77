"""A gate's verdicts as a Markdown table, for a comment on a pull request or a job's summary."""

from __future__ import annotations

import re

from edgeopt.limits.results import GateLimit, GateResult, GateSide
from edgeopt.report import change
from edgeopt.report.printable import printable
from edgeopt.results.verdicts import Verdict

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")
_HEADS = ("verdict", "limit", "baseline", "candidate", "change (95 %)", "allowed")


def render(result: GateResult) -> str:
    """Return the comment."""
    lines = [
        f"### edgeopt gate: {result.verdict.value}",
        "",
        f"Candidate {_side(result.candidate)}  ",
        f"Baseline {_side(result.baseline)}",
        "",
        f"| {' | '.join(_HEADS)} |",
        "|---|---|--:|--:|--:|--:|",
        *(_row(row) for row in result.limits),
        "",
    ]
    notes = [*result.warnings, *_notes(result.limits)]
    if notes:
        lines += [*(f"- {_escape(note)}" for note in notes), ""]
    machine = result.machine
    lines.append(
        f"Measured on {_escape(machine.name)}, {machine.cores} cores, load {machine.load:.1f}, "
        f"{result.seconds:.0f} s."
    )
    return "\n".join(lines) + "\n"


def _side(side: GateSide) -> str:
    kinds = [side.format, side.precision, side.profile and f"profile {side.profile}"]
    told = ", ".join(_escape(kind) for kind in kinds if kind)
    return f"{_escape(side.path)}: {_escape(side.file)} ({told}), sha256 {side.sha256[:12]}"


def _row(row: GateLimit) -> str:
    verdict = row.verdict.value
    spread = change.interval(row)
    pace = f", {row.comparison.value}" if row.comparison is not None else ""
    cells = (
        f"**{verdict}**" if row.verdict is Verdict.FAIL or _blocks(row) else verdict,
        _escape(change.title(row)),
        _escape(change.number(row.baseline, row.unit)),
        _escape(change.number(row.candidate, row.unit)),
        _escape(change.change(row) + (f" ({spread})" if spread else "") + pace),
        _escape(change.allowed(row)),
    )
    return f"| {' | '.join(cells)} |"


def _blocks(row: GateLimit) -> bool:
    return row.required and row.verdict is Verdict.NOT_MEASURED


def _notes(rows: tuple[GateLimit, ...]) -> list[str]:
    """Say what was measured how, and why something was not; each text once."""
    told: dict[str, list[str]] = {}
    for row in rows:
        words = row.reason if row.verdict is Verdict.NOT_MEASURED else ""
        text = "; ".join(part for part in (words, row.origin) if part)
        if text:
            told.setdefault(text, []).append(change.title(row))
    return [f"{', '.join(names)}: {text}" for text, names in told.items()]


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is; names come from files and command lines."""
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
