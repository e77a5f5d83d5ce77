"""Where each operator runs: a strip in graph order, shares, and what left INT8 and why."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from edgeopt.report.files import Files
from edgeopt.report.words import count, kind, quantity, share, stage
from edgeopt.results.reports import BuildReport
from edgeopt.results.structure import OperatorRow

FALLBACK = re.compile(r"\b(cpu|portable)", re.IGNORECASE)
"""Names the places that take what an accelerator or a delegate leaves."""
OFF = "off"
MOST_MARKS = 600
SMALLEST_MARK = 0.6
"""Percent of the strip that an operator without multiplications takes."""
MOST_FOR_SMALLEST = 35.0
"""Percent of the strip that such floors take together at most."""
MOST_NAMES = 6
_KINDS = {
    "int8": "INT8",
    "half": "16-bit float",
    "full": "32-bit float",
    "other": "other",
    OFF: "left to the CPU",
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """One part of a stacked bar."""

    kind: str
    percent: float
    text: str


@dataclasses.dataclass(frozen=True)
class Mark:
    """One operator in the strip, or neighbours alike where there are too many to show each."""

    kind: str
    percent: float
    title: str


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The part of the strip that one stage of the network takes."""

    name: str
    percent: float


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Operators of one kind that do not run in INT8, all for one reason."""

    operator: str
    precision: str
    where: str
    kind: str
    reason: str
    macs: int
    sites: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one artifact's operators run.

    Attributes:
        artifact: Its name.
        finding: What the strip shows, in words.
        marks: In graph order; wide where the multiply-accumulates are.
        stretches: Below the marks.
        legend: CSS class and words of each kind of mark that occurs.
        by_macs: Shares of the multiply-accumulates.
        by_count: Shares of the operators.
        places: Place -> operators there, where there are several.
        elsewhere: What does not run in INT8 or was left to the CPU.
        elsewhere_count: Operators in it.
    """

    artifact: str
    finding: str
    marks: tuple[Mark, ...]
    stretches: tuple[Stretch, ...]
    legend: tuple[tuple[str, str], ...]
    by_macs: tuple[Segment, ...]
    by_count: tuple[Segment, ...]
    places: tuple[tuple[str, int], ...]
    elsewhere: tuple[Elsewhere, ...]
    elsewhere_count: int


@dataclasses.dataclass(frozen=True)
class PlacementView:
    """All artifacts; float yardsticks are only counted."""

    placements: tuple[Placement, ...]
    yardsticks: tuple[tuple[str, int], ...]


def placements(report: BuildReport) -> PlacementView:
    """Group the operators by artifact: the targets' files first, then the stand-ins'."""
    grouped: dict[str, list[OperatorRow]] = defaultdict(list)
    for row in report.operators:
        grouped[row.artifact].append(row)
    files = Files(report)
    main = [a.name for a in files.main if a.name in grouped]
    plain = [a.name for a in files.yardsticks if a.name in grouped]
    unlisted = [name for name in grouped if name not in {*main, *plain}]
    return PlacementView(
        tuple(
            _placement(name, grouped[name], "delegated_share" in report.compile.get(name, {}))
            for name in (*main, *unlisted)
        ),
        tuple((name, len(grouped[name])) for name in plain),
    )


def off_accelerator(rows: Sequence[OperatorRow], *, delegates: bool) -> list[bool]:
    """Tell of each operator whether the accelerator or the delegate left it to the CPU.

    Args:
        rows: Of one file.
        delegates: The file is made for one, even if it took nothing.
    """
    fallback = [FALLBACK.search(row.where) is not None for row in rows]
    return fallback if delegates or not all(fallback) else [False] * len(rows)


def _placement(artifact: str, rows: Sequence[OperatorRow], delegates: bool) -> Placement:
    off = off_accelerator(rows, delegates=delegates)
    kinds = [OFF if is_off else kind(row.precision) for row, is_off in zip(rows, off, strict=True)]
    marks, stretches = _strip(rows, kinds)
    elsewhere = _elsewhere(rows, kinds)
    places: dict[str, int] = defaultdict(int)
    for row in rows:
        places[row.where] += 1
    return Placement(
        artifact=artifact,
        finding=_finding(rows, kinds),
        marks=marks,
        stretches=stretches,
        legend=tuple((k, words) for k, words in _KINDS.items() if k in kinds),
        by_macs=segments({p: sum(r.macs for r in of) for p, of in _split(rows)}, "MACs"),
        by_count=segments({p: len(of) for p, of in _split(rows)}, "operators"),
        places=tuple(sorted(places.items(), key=lambda item: (-item[1], item[0]))),
        elsewhere=elsewhere,
        elsewhere_count=sum(len(e.sites) for e in elsewhere),
    )


def _finding(rows: Sequence[OperatorRow], kinds: Sequence[str]) -> str:
    """Say how much runs in INT8, and what fell off the accelerator."""
    macs = sum(row.macs for row in rows)
    int8 = sum(row.macs for row in rows if row.precision == "int8")
    found = [f"{share(int8 / macs)} of the multiply-accumulates run in INT8"] if macs else []
    off = [row for row, k in zip(rows, kinds, strict=True) if k == OFF]
    outside = sum(row.precision != "int8" for row in rows)
    if off:
        names = list(dict.fromkeys(row.operator for row in off))
        more = f" and {len(names) - MOST_NAMES} more kinds" if len(names) > MOST_NAMES else ""
        found.append(
            f"{len(off)} of {count(len(rows), 'operator')} are left to the CPU "
            f"({', '.join(names[:MOST_NAMES])}{more})"
        )
    elif outside:
        do_not = "do not" if macs else "do not run in INT8"
        found.append(f"{outside} of {count(len(rows), 'operator')} {do_not}")
    else:
        found = [f"Each of {count(len(rows), 'reported operator')} runs in INT8"]
    return f"{'; '.join(found)}."


def _strip(
    rows: Sequence[OperatorRow], kinds: Sequence[str]
) -> tuple[tuple[Mark, ...], tuple[Stretch, ...]]:
    groups = _groups(rows, kinds)
    macs = [sum(row.macs for row in group) for group, _ in groups]
    total = sum(macs)
    smallest = min(SMALLEST_MARK, MOST_FOR_SMALLEST / len(groups)) if total else 100 / len(groups)
    rest = 100 - smallest * len(groups)
    widths = [smallest + (rest * amount / total if total else 0) for amount in macs]
    marks = [Mark(k, width, _title(of)) for (of, k), width in zip(groups, widths, strict=True)]
    return tuple(marks), _stretches([group[0].site for group, _ in groups], widths)


def _groups(
    rows: Sequence[OperatorRow], kinds: Sequence[str]
) -> list[tuple[list[OperatorRow], str]]:
    """Return each operator by itself, or neighbours of one kind together if they are too many."""
    together = len(rows) > MOST_MARKS
    groups: list[tuple[list[OperatorRow], str]] = []
    for row, k in zip(rows, kinds, strict=True):
        if together and groups and groups[-1][1] == k:
            groups[-1][0].append(row)
        else:
            groups.append(([row], k))
    return groups


def _title(rows: Sequence[OperatorRow]) -> str:
    first = rows[0]
    if len(rows) > 1:
        names = list(dict.fromkeys(row.operator for row in rows))
        more = ", …" if len(names) > MOST_NAMES else ""
        macs = sum(row.macs for row in rows)
        return (
            f"{first.site} to {rows[-1].site}\n{len(rows)} operators: "
            f"{', '.join(names[:MOST_NAMES])}{more}\n{quantity(macs)} MACs, on {first.where}"
        )
    work = f", {quantity(first.macs)} MACs" if first.macs else ""
    reason = f"\n{first.reason}" if first.reason else ""
    return f"{first.site}\n{first.operator}, {first.precision}{work}\non {first.where}{reason}"


def _stretches(sites: Sequence[str], widths: Sequence[float]) -> tuple[Stretch, ...]:
    """Return the stages that the marks run through; a mark without a name goes on with the last."""
    found: list[Stretch] = []
    for site, width in zip(sites, widths, strict=True):
        name = stage(site)
        if found and name in ("", found[-1].name):
            found[-1] = Stretch(found[-1].name, found[-1].percent + width)
        else:
            found.append(Stretch(name, width))
    return tuple(found)


def _elsewhere(rows: Iterable[OperatorRow], kinds: Sequence[str]) -> tuple[Elsewhere, ...]:
    grouped: dict[tuple[str, str, str, str, str], list[OperatorRow]] = defaultdict(list)
    for row, k in zip(rows, kinds, strict=True):
        if row.precision != "int8" or k == OFF:
            grouped[row.operator, row.precision, row.where, k, row.reason].append(row)
    found = [
        Elsewhere(*key, macs=sum(r.macs for r in of), sites=tuple(r.site for r in of))
        for key, of in grouped.items()
    ]
    found.sort(key=lambda e: (e.kind != OFF, -e.macs, -len(e.sites), e.operator))
    return tuple(found)


def _split(rows: Sequence[OperatorRow]) -> list[tuple[str, list[OperatorRow]]]:
    found: dict[str, list[OperatorRow]] = defaultdict(list)
    for row in rows:
        found[row.precision].append(row)
    return sorted(found.items(), key=lambda item: (item[0] != "int8", item[0]))


def segments(amounts: Mapping[str, int], unit: str) -> tuple[Segment, ...]:
    """Return the parts of a stacked bar.

    Args:
        amounts: Precision or dtype -> how much.
        unit: What is counted.
    """
    total = sum(amounts.values())
    return tuple(
        Segment(
            kind(name),
            100 * amount / total,
            f"{name}: {100 * amount / total:.1f} % ({quantity(amount)} {unit})",
        )
        for name, amount in amounts.items()
        if total and amount
    )
