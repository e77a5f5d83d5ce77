"""The bytes of each layer, one view a target."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from edgeopt.report.files import Files
from edgeopt.report.placement import Segment, segments
from edgeopt.report.words import count, size
from edgeopt.results.reports import BuildReport
from edgeopt.results.structure import SizeRow

MOST_LAYERS = 18


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
    """The size breakdown of one artifact.

    Attributes:
        artifact: Its name.
        other: Its float yardstick's, or empty.
        finding: What it shows, in words.
        layers: The largest.
        rest: Bytes of the others together.
        rest_count: How many others.
        types: Bytes by dtype.
    """

    artifact: str
    other: str
    finding: str
    layers: tuple[LayerSize, ...]
    rest: int
    rest_count: int
    types: tuple[Segment, ...]


def sizes(report: BuildReport) -> tuple[SizeView, ...]:
    """Return the bytes of each layer in each own target's file, against its float yardstick."""
    known = {row.artifact for row in report.sizes}
    files = Files(report)
    found = []
    for artifact in (a for a in files.own if a.name in known):
        yardstick = files.yardstick(artifact)
        found.append(_view(report.sizes, artifact.name, yardstick.name if yardstick else ""))
    return tuple(found)


def _view(rows: Iterable[SizeRow], main: str, other: str) -> SizeView:
    mine, theirs = _by_layer(rows, main), _by_layer(rows, other)
    dtypes = _main_types(rows, main)
    ranked = sorted(mine, key=lambda site: (-mine[site], site))
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
        for site in ranked[:MOST_LAYERS]
    )
    types: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.artifact == main:
            types[row.dtype] += row.bytes
    return SizeView(
        main,
        other if theirs else "",
        _finding([mine[site] for site in ranked]),
        layers,
        sum(mine[site] for site in ranked[MOST_LAYERS:]),
        len(ranked[MOST_LAYERS:]),
        segments(dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))), "bytes"),
    )


def _finding(ranked: list[int]) -> str:
    """Say how few layers hold half of the bytes."""
    total = sum(ranked)
    few = next(n for n, held in enumerate(accumulate(ranked), start=1) if 2 * held >= total)
    return f"Half of the {size(total)} lie in {count(few, 'layer')}."


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
