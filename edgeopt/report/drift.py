"""What quantizing each layer costs: worst first for each target, and along the network's depth."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence

from edgeopt.report.words import decibels
from edgeopt.results.reports import BuildReport
from edgeopt.results.structure import DriftRow
from edgeopt.results.verdicts import EXACT_DB


@dataclasses.dataclass(frozen=True)
class DriftView:
    """The ranking of one target.

    Attributes:
        name: The target, and the method where there are several.
        rows: Worst first.
        finding: In words.
        keep_float: The command that leaves the worst layer in float.
    """

    name: str
    rows: tuple[DriftRow, ...]
    finding: str
    keep_float: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One target's SNR along the depth.

    Attributes:
        name: The target, and the method where there are several.
        places: Index into the profile's sites.
        snr_db: In the quantized program.
        own_snr_db: With only that layer quantized; None where it was not measured.
    """

    name: str
    places: tuple[int, ...]
    snr_db: tuple[float, ...]
    own_snr_db: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Profile:
    """All targets along the depth.

    Attributes:
        sites: The layers in graph order; a layer that only one target quantizes stands after the
            one that precedes it there.
        lines: One a target.
        findings: One a line, in words.
    """

    sites: tuple[str, ...]
    lines: tuple[Line, ...]
    findings: tuple[str, ...]


def views(report: BuildReport) -> tuple[DriftView, ...]:
    """Return the rankings, the verdict's target first."""
    found = []
    for name, rows in _groups(report.drift):
        ranked = tuple(sorted(rows, key=lambda row: row.rank))
        found.append(
            DriftView(name, ranked, _ranked_words(ranked), _keep_float(report, ranked[0].site))
        )
    return tuple(found)


def profile(report: BuildReport) -> Profile | None:
    """Return the drift along the depth, or None where no report says the layers' order."""
    groups = [
        (name, sorted(rows, key=lambda row: row.depth))
        for name, rows in _groups(report.drift)
        if len(rows) > 1 and all(row.depth for row in rows)
    ]
    if not groups:
        return None
    sites = _merged([[row.site for row in rows] for _, rows in groups])
    place = {site: index for index, site in enumerate(sites)}
    lines = tuple(
        Line(
            name,
            tuple(place[row.site] for row in rows),
            tuple(row.snr_db for row in rows),
            tuple(row.own_snr_db for row in rows),
        )
        for name, rows in groups
    )
    return Profile(sites, lines, tuple(_along_words(name, rows) for name, rows in groups))


def _groups(rows: Iterable[DriftRow]) -> list[tuple[str, list[DriftRow]]]:
    found: dict[tuple[str, str], list[DriftRow]] = {}
    for row in rows:
        found.setdefault((row.target, row.method), []).append(row)
    several = len({method for _, method in found}) > 1
    return [
        (", ".join(part for part in (target, method if several else "") if part), group)
        for (target, method), group in found.items()
    ]


def _merged(orders: Sequence[Sequence[str]]) -> tuple[str, ...]:
    merged = list(dict.fromkeys(orders[0]))
    for order in orders[1:]:
        at = 0
        for site in order:
            if site not in merged:
                merged.insert(at, site)
            at = merged.index(site) + 1
    return tuple(merged)


def _ranked_words(rows: Sequence[DriftRow]) -> str:
    worst = rows[0]
    value = worst.snr_db if worst.own_snr_db is None else worst.own_snr_db
    how = "in the quantized program" if worst.own_snr_db is None else "with only it quantized"
    return f"The worst is {worst.site}: {decibels(value)} {how}."


def _along_words(name: str, rows: Sequence[DriftRow]) -> str:
    """Say where a line starts, ends and lies lowest."""
    finite = [row for row in rows if abs(row.snr_db) < EXACT_DB]
    if not finite:
        return f"{name or 'The program'}: no layer's output differs from float."
    first, last = finite[0], finite[-1]
    lowest = min(finite, key=lambda row: row.snr_db)
    words = (
        f"{name or 'The program'}: from {decibels(first.snr_db)} at the first layer "
        f"to {decibels(last.snr_db)} at the last"
    )
    if lowest is last:
        return f"{words}, which is the lowest."
    return f"{words}; lowest at {lowest.site}, {decibels(lowest.snr_db)}."


def _keep_float(report: BuildReport, site: str) -> str:
    """Return the command that leaves one layer in float, safe to paste into a shell."""
    words = ["edgeopt", "build", report.model, "--profile", report.profile]
    words += ["--recipe", report.recipe, "--keep-float", site]
    return " ".join(shlex.quote(word) for word in words)
