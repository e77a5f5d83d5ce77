"""What the report's sections show, computed from a `BuildReport`."""

from __future__ import annotations

import dataclasses
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from edgeopt.results import (
    ArtifactRow,
    BuildReport,
    LatencyResult,
    LimitResult,
    Machine,
    OperatorRow,
    PassRow,
    SizeRow,
    Verdict,
)

MOST_LAYERS = 18


@dataclasses.dataclass(frozen=True)
class Tile:
    """One headline number with where it comes from."""

    label: str
    value: str
    unit: str
    note: str


@dataclasses.dataclass(frozen=True)
class Segment:
    """One part of a stacked bar."""

    precision: str
    percent: float
    text: str


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Operators of one kind that do not run in INT8, all for one reason."""

    operator: str
    precision: str
    where: str
    reason: str
    macs: int
    sites: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one artifact's operators run."""

    artifact: str
    by_macs: tuple[Segment, ...]
    by_count: tuple[Segment, ...]
    operators: int
    elsewhere: tuple[Elsewhere, ...]
    elsewhere_count: int
    float_file: bool


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """One layer's bytes in two artifacts, as percent of the largest layer."""

    site: str
    dtype: str
    bytes: int
    percent: float
    other_bytes: int | None
    other_percent: float


@dataclasses.dataclass(frozen=True)
class SizeView:
    """The size breakdown."""

    artifact: str
    other: str
    layers: tuple[LayerSize, ...]
    rest: int
    types: tuple[Segment, ...]


def tiles(report: BuildReport) -> tuple[Tile, ...]:
    """Return the headline numbers; those that were not measured are left out."""
    found = [_size_tile(report), _accuracy_tile(report), _speed_tile(report)]
    found += [_int8_tile(report), _proof_tile(report)]
    return tuple(tile for tile in found if tile is not None)


def _size_tile(report: BuildReport) -> Tile | None:
    if not report.artifacts:
        return None
    main = report.artifacts[0]
    note = main.name
    other = _yardstick(report.artifacts)
    if other is not None and main.size_bytes:
        note = f"{other.size_bytes / main.size_bytes:.2f} × smaller than {other.name}"
    return Tile("Model file", f"{main.size_bytes / 1e6:.2f}", "MB", note)


def _yardstick(artifacts: Sequence[ArtifactRow]) -> ArtifactRow | None:
    """Return the float artifact that the first one is compared with: of its target, if any."""
    floats = [a for a in artifacts[1:] if a.precision.startswith("float")]
    same = [a for a in floats if a.target == artifacts[0].target]
    return next(iter(same or floats), None)


def _accuracy_tile(report: BuildReport) -> Tile | None:
    found = next((a for a in report.accuracy if a.drop is not None), None)
    if found is None or found.drop is None:
        return None
    note = f"{found.artifact}, {found.samples} samples"
    if found.drop_low is not None and found.drop_high is not None:
        note = f"95 %: {found.drop_low:.2f} to {found.drop_high:.2f}; {note}"
    return Tile(f"{found.metric} drop", f"{found.drop:.2f}", found.unit, note)


def _speed_tile(report: BuildReport) -> Tile | None:
    pair = next((c for c in report.comparisons if c.ratio > 0), None)
    if pair is None:
        return None
    measured = next((r for r in report.latency if r.artifact == pair.candidate), None)
    where = f"on {measured.machine.name}" if measured is not None else ""
    if measured is not None and measured.stand_in:
        where = "on a stand-in, not the device"
    note = f"{pair.candidate} against {pair.baseline}, measured {where}".strip()
    return Tile("Speed", f"{1 / pair.ratio:.2f}", "× faster" if pair.ratio < 1 else "×", note)


def _int8_tile(report: BuildReport) -> Tile | None:
    found = next((a for a in report.artifacts if a.int8_macs is not None), None)
    if found is None or found.int8_macs is None:
        return None
    return Tile("Runs in INT8", f"{100 * found.int8_macs:.1f}", "% of MACs", found.name)


def _proof_tile(report: BuildReport) -> Tile | None:
    if not report.proof:
        return None
    proof = report.proof[0]
    note = f"{proof.nodes} nodes, {proof.elements:,} elements in {proof.runtime}"
    if proof.exact:
        return Tile("Integer proof", "bit exact", "", note)
    return Tile("Integer proof", f"{proof.elements - proof.equal:,}", "elements differ", note)


def verdict_sentence(report: BuildReport) -> str:
    """Say in words what the verdict is made of."""
    limits = report.limits
    if not limits:
        return "No limits were set, so nothing was judged."
    count = {v: sum(x.verdict is v for x in limits) for v in Verdict}
    parts = [f"{count[Verdict.PASS]} of {len(limits)} limits hold"]
    failed = [x.name for x in limits if x.verdict is Verdict.FAIL]
    open_ = [x.name for x in limits if x.verdict is Verdict.NOT_MEASURED]
    if failed:
        parts.append(f"missed: {', '.join(dict.fromkeys(failed))}")
    if open_:
        parts.append(f"not measured: {', '.join(dict.fromkeys(open_))}")
    return f"{'; '.join(parts)}."


def limit_fill(limit: LimitResult) -> float | None:
    """Return how much of a maximum is used up, in percent, for the bar."""
    if limit.value is None or not limit.maximum or limit.maximum < 0:
        return None
    return max(0.0, min(100.0, 100 * limit.value / limit.maximum))


def machines(report: BuildReport) -> tuple[tuple[Machine, tuple[LatencyResult, ...]], ...]:
    """Return the machines that measured latency, each at its busiest, with what they measured."""
    found: dict[tuple[str, str], list[LatencyResult]] = {}
    for result in report.latency:
        found.setdefault((result.machine.device, result.machine.name), []).append(result)
    return tuple(
        (max((r.machine for r in results), key=lambda machine: machine.load), tuple(results))
        for results in found.values()
    )


def placements(report: BuildReport) -> tuple[Placement, ...]:
    """Group the operators by artifact."""
    floats = {a.name for a in report.artifacts if a.precision.startswith("float")}
    grouped: dict[str, list[OperatorRow]] = defaultdict(list)
    for row in report.operators:
        grouped[row.artifact].append(row)
    return tuple(
        Placement(
            artifact=artifact,
            by_macs=_segments({p: sum(r.macs for r in of) for p, of in _split(found)}, "MACs"),
            by_count=_segments({p: len(of) for p, of in _split(found)}, "operators"),
            operators=len(found),
            elsewhere=_elsewhere(found),
            elsewhere_count=sum(row.precision != "int8" for row in found),
            float_file=artifact in floats,
        )
        for artifact, found in grouped.items()
    )


def _elsewhere(rows: Iterable[OperatorRow]) -> tuple[Elsewhere, ...]:
    grouped: dict[tuple[str, str, str, str], list[OperatorRow]] = defaultdict(list)
    for row in rows:
        if row.precision != "int8":
            grouped[row.operator, row.precision, row.where, row.reason].append(row)
    found = [
        Elsewhere(*key, macs=sum(r.macs for r in of), sites=tuple(r.site for r in of))
        for key, of in grouped.items()
    ]
    return tuple(sorted(found, key=lambda e: (-e.macs, -len(e.sites), e.operator)))


def _split(rows: Sequence[OperatorRow]) -> list[tuple[str, list[OperatorRow]]]:
    found: dict[str, list[OperatorRow]] = defaultdict(list)
    for row in rows:
        found[row.precision].append(row)
    return sorted(found.items(), key=lambda item: (item[0] != "int8", item[0]))


def _segments(amounts: Mapping[str, int], unit: str) -> tuple[Segment, ...]:
    total = sum(amounts.values())
    return tuple(
        Segment(
            name,
            100 * amount / total,
            f"{name}: {100 * amount / total:.1f} % ({quantity(amount)} {unit})",
        )
        for name, amount in amounts.items()
        if total and amount
    )


def sizes(report: BuildReport) -> SizeView | None:
    """Return the bytes of each layer in the first artifact, against the float one."""
    names = list(dict.fromkeys(row.artifact for row in report.sizes))
    if not names:
        return None
    kept = [a for a in report.artifacts if a.name in names]
    main = kept[0].name if kept else names[0]
    yardstick = _yardstick(kept) if kept else None
    other = yardstick.name if yardstick is not None else ""
    mine, theirs = _by_layer(report.sizes, main), _by_layer(report.sizes, other)
    dtypes = _main_types(report.sizes, main)
    ranked = sorted(mine, key=lambda site: (-mine[site], site))
    shown = ranked[:MOST_LAYERS]
    largest = max([*mine.values(), *theirs.values(), 1])
    layers = tuple(
        LayerSize(
            site,
            dtypes[site],
            mine[site],
            100 * mine[site] / largest,
            theirs.get(site),
            100 * theirs.get(site, 0) / largest,
        )
        for site in shown
    )
    types: dict[str, int] = defaultdict(int)
    for row in report.sizes:
        if row.artifact == main:
            types[row.dtype] += row.bytes
    rest = sum(mine[site] for site in ranked[MOST_LAYERS:])
    return SizeView(
        main,
        other,
        layers,
        rest,
        _segments(dict(sorted(types.items(), key=lambda item: -item[1])), "bytes"),
    )


def _by_layer(rows: Iterable[SizeRow], artifact: str) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.artifact == artifact:
            found[_layer(row.site)] += row.bytes
    return dict(found)


def _main_types(rows: Iterable[SizeRow], artifact: str) -> dict[str, str]:
    """Return the type of each layer's largest tensor."""
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        if row.artifact == artifact:
            layer = _layer(row.site)
            found[layer] = max(found.get(layer, (-1, "")), (row.bytes, row.dtype))
    return {layer: dtype for layer, (_, dtype) in found.items()}


def _layer(site: str) -> str:
    owner, dot, leaf = site.rpartition(".")
    return owner if dot and leaf in ("weight", "bias") else site


def keep_float_command(report: BuildReport, site: str) -> str:
    """Return the command that leaves one layer in float, safe to paste into a shell."""
    words = ["edgeopt", "build", report.model, "--profile", report.profile]
    words += ["--recipe", report.recipe, "--keep-float", site]
    return " ".join(shlex.quote(word) for word in words)


def branches(rows: Iterable[PassRow]) -> tuple[tuple[str, tuple[PassRow, ...]], ...]:
    """Group the passes by branch, in order."""
    found: dict[str, list[PassRow]] = {}
    for row in rows:
        found.setdefault(row.branch, []).append(row)
    return tuple((name, tuple(passes)) for name, passes in found.items())


def histogram(counts: Mapping[str, int]) -> tuple[tuple[str, int, float], ...]:
    """Return (difference in codes, count, percent of the largest), in order, without 0."""

    def place(key: str) -> tuple[float, str]:
        try:
            return float(key), key
        except ValueError:
            return float("inf"), key

    different = {key: count for key, count in counts.items() if place(key)[0] != 0}
    most = max([*different.values(), 1])
    return tuple(
        (key, different[key], 100 * different[key] / most) for key in sorted(different, key=place)
    )


def quantity(value: float) -> str:
    """Write a large count for people: `4.2 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"
