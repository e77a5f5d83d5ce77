"""The report's plots as inline SVG, in the page's own colours, so that they follow dark mode."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.report.drift import Profile
from edgeopt.report.printable import printable
from edgeopt.report.view import called
from edgeopt.report.words import number, stage
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult
from edgeopt.results.structure import DriftRow
from edgeopt.results.verdicts import EXACT_DB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn with these, then replaced: matplotlib knows no CSS variables.
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_INT8, _FLOAT, _BAND = "#040404", "#050505", "#060606"
_FAIL = "#070707"
_LINES = ("#080808", "#090909", "#0a0a0a", "#0b0b0b")
_CSS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _INT8: "var(--int8)",
    _FLOAT: "var(--float)",
    _BAND: "var(--band)",
    _FAIL: "var(--fail)",
    **{colour: f"var(--line{index})" for index, colour in enumerate(_LINES, start=1)},
}
_WIDTH_INCHES = 9.6
_BINS = 180
_MARKERS = {"p50": "o", "p90": "^", "p99": "D"}
_LINE_MARKERS = ("o", "s", "^", "D")
_MOST_STAGES = 14


def latency_plot(
    results: Sequence[LatencyResult], precisions: Mapping[str, str], name: str = "latency"
) -> str:
    """Draw one histogram an artifact on a shared axis, with p50, p90, p99 and their intervals.

    Args:
        results: Measured on one machine.
        precisions: Artifact -> precision, for the colour.
        name: Unique in the page.
    """
    import numpy as np

    height = 0.85 * len(results) + 0.55
    figure, axes = _canvas(height)
    low = min(min(r.samples_ms) for r in results)
    high = max(max(r.p99.high, r.p99.value) for r in results)
    high = min(high * 1.12, max(max(r.samples_ms) for r in results) * 1.02)
    edges = np.linspace(low - 0.02 * (high - low), high, _BINS + 1)
    for row, result in enumerate(results):
        base = float(len(results) - 1 - row)
        colour = _INT8 if precisions.get(result.artifact) == "int8" else _FLOAT
        counts, _ = np.histogram(result.samples_ms, bins=edges)
        tall = 0.62 * counts / max(counts.max(), 1)
        axes.stairs(base + tall, edges, baseline=base, fill=True, color=colour, alpha=0.28)
        axes.stairs(base + tall, edges, baseline=base, color=colour, linewidth=1.0)
        _percentiles(axes, result, base, colour)
        beyond = sum(sample > edges[-1] for sample in result.samples_ms)
        if beyond:
            axes.text(
                edges[-1], base + 0.12, f"{beyond} beyond →", ha="right", fontsize=8.5, color=_MUTED
            )
    axes.set_ylim(-0.36, len(results) - 0.22)
    axes.set_yticks([len(results) - 1 - i + 0.18 for i in range(len(results))])
    axes.set_yticklabels([_short(called(r)) for r in results])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(
        "latency of one call in ms;  ● p50  ▲ p90  ◆ p99 with 95 % intervals", color=_MUTED
    )
    return _svg(figure, name)


def _percentiles(axes: Axes, result: LatencyResult, base: float, colour: str) -> None:
    below = base - 0.14
    for name, point in (("p50", result.p50), ("p90", result.p90), ("p99", result.p99)):
        axes.plot([point.low, point.high], [below, below], color=colour, linewidth=3.0, alpha=0.55)
        axes.plot([point.value], [below], marker=_MARKERS[name], markersize=5, color=colour)
    axes.plot([result.p50.value] * 2, [below, base + 0.66], color=colour, linewidth=1.2)


def ratio_plot(comparisons: Sequence[Comparison]) -> str:
    """Draw each ratio with its interval over the machine's own noise."""
    figure, axes = _canvas(0.55 * len(comparisons) + 0.65)
    for row, pair in enumerate(comparisons):
        y = float(len(comparisons) - 1 - row)
        axes.fill_between(
            [1 - pair.noise, 1 + pair.noise], y - 0.38, y + 0.38, color=_BAND, linewidth=0
        )
        axes.plot([pair.low, pair.high], [y, y], color=_INT8, linewidth=3.0, alpha=0.55)
        axes.plot([pair.ratio], [y], marker="o", markersize=6, color=_INT8)
        axes.annotate(
            f"{pair.ratio:.3f}  {pair.pace.value}",
            (pair.high, y),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=_INK,
        )
    axes.axvline(1.0, color=_MUTED, linewidth=1.0)
    low = min(*(c.low for c in comparisons), 1 - max(c.noise for c in comparisons))
    high = max(*(c.high for c in comparisons), 1 + max(c.noise for c in comparisons))
    room = max(high - low, 0.02)
    axes.set_xlim(low - 0.08 * room, high + 0.30 * room)
    axes.set_ylim(-0.55, len(comparisons) - 0.45)
    axes.set_yticks([float(len(comparisons) - 1 - i) for i in range(len(comparisons))])
    pairs = [f"{_short(c.candidate, 24)} / {_short(c.baseline, 24)}" for c in comparisons]
    axes.set_yticklabels(pairs)
    axes.set_xlabel("ratio of latencies; under 1 is faster; the band is the noise", color=_MUTED)
    return _svg(figure, "ratio")


def drop_plot(results: Sequence[AccuracyResult], maximum: float | None, name: str = "drop") -> str:
    """Draw each file's drop with its interval, no loss, and the limit.

    Args:
        results: Of one metric; each has a drop.
        maximum: The largest drop that a limit allows, or None.
        name: Unique in the page.
    """
    figure, axes = _canvas(0.42 * len(results) + 0.65)
    ends = [0.0] if maximum is None else [0.0, maximum]
    for row, result in enumerate(results):
        y, drop = float(len(results) - 1 - row), result.drop
        assert drop is not None
        low = drop if result.drop_low is None else result.drop_low
        high = drop if result.drop_high is None else result.drop_high
        axes.plot([low, high], [y, y], color=_INT8, linewidth=3.0, alpha=0.55)
        axes.plot([drop], [y], marker="o", markersize=6, color=_INT8)
        ends += [low, high, drop]
    axes.axvline(0.0, color=_MUTED, linewidth=1.0)
    if maximum is not None:
        axes.axvline(maximum, color=_FAIL, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit {number(maximum)}",
            (maximum, len(results) - 0.45),
            xytext=(-5, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color=_FAIL,
        )
    room = max(max(ends) - min(ends), 0.1)
    axes.set_xlim(min(ends) - 0.06 * room, max(ends) + 0.06 * room)
    axes.set_ylim(-0.55, len(results) - 0.45)
    axes.set_yticks([float(len(results) - 1 - i) for i in range(len(results))])
    axes.set_yticklabels([_short(r.artifact) for r in results])
    axes.set_xlabel(
        f"drop of {printable(results[0].metric)} in {printable(results[0].unit)} with its 95 % "
        "interval; left is better",
        color=_MUTED,
    )
    return _svg(figure, name)


def profile_plot(profile: Profile) -> str:
    """Draw the SNR of each layer's output over the network's depth, one line a target."""
    figure, axes = _canvas(3.5)
    for index, line in enumerate(profile.lines):
        colour = _LINES[index % len(_LINES)]
        marker = _LINE_MARKERS[index % len(_LINE_MARKERS)]
        values = [_shown(value) for value in line.snr_db]
        own = [_shown(value) for value in line.own_snr_db]
        axes.plot(line.places, own, color=colour, linewidth=1.0, alpha=0.55, linestyle=(0, (3, 3)))
        axes.plot(
            line.places,
            values,
            color=colour,
            linewidth=1.8,
            marker=marker,
            markersize=4.5,
            label=_short(line.name) or "the quantized program",
        )
    starts = _stage_starts(profile.sites)
    axes.set_xticks([place for place, _ in starts])
    axes.set_xticklabels([_short(name, 18) for _, name in starts], ha="left", rotation=-28)
    for place, _ in starts[1:]:
        axes.axvline(place - 0.5, color=_RULE, linewidth=0.7)
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.tick_params(axis="y", labelcolor=_MUTED, labelsize=9)
    axes.set_xlim(-0.6, len(profile.sites) - 0.4)
    axes.set_ylabel("SNR in dB, lower is worse", color=_MUTED)
    figure.legend(
        loc="outside upper left",
        ncols=len(profile.lines),
        frameon=False,
        labelcolor=_INK,
        fontsize=9.5,
        title="solid: in the quantized program; dashed: only that layer quantized",
        title_fontproperties={"size": 9},
        alignment="left",
    ).get_title().set_color(_MUTED)
    return _svg(figure, "profile")


def _stage_starts(sites: Sequence[str]) -> list[tuple[int, str]]:
    """Return where each stage of the network begins, thinned out where they are many."""
    starts: list[tuple[int, str]] = []
    for place, site in enumerate(sites):
        name = stage(site)
        if name and (not starts or starts[-1][1] != name):
            starts.append((place, name))
    step = -(-len(starts) // _MOST_STAGES) or 1
    return starts[::step]


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and abs(value) < EXACT_DB]


def _shown(value: float | None) -> float:
    """Return an SNR, or NaN, which draws nothing, where nothing or everything differs."""
    return math.nan if value is None or abs(value) >= EXACT_DB else value


def drift_plot(rows: Sequence[DriftRow], name: str = "drift-plot") -> str:
    """Draw the worst sites: their output in the quantized program, and quantized alone.

    Args:
        rows: Worst first.
        name: Unique in the page.
    """
    figure, axes = _canvas(0.30 * len(rows) + 0.75)
    positions = [float(len(rows) - 1 - i) for i in range(len(rows))]
    both = any(r.own_snr_db is not None for r in rows)
    values = _finite(v for r in rows for v in (r.snr_db, r.own_snr_db))
    left = min(0.0, *values) if values else 0.0
    for y, row in zip(positions, rows, strict=True):
        ranked = row.snr_db if row.own_snr_db is None else row.own_snr_db
        axes.plot([left, ranked], [y, y], color=_INT8, linewidth=1.6, alpha=0.5)
        if row.own_snr_db is not None:
            axes.plot([row.snr_db], [y], marker="D", markersize=4.5, color=_FLOAT)
        axes.plot([ranked], [y], marker="o", markersize=5.5, color=_INT8)
    axes.set_xlim(left, max([*values, 1.0]) * 1.06)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(positions)
    axes.set_yticklabels([_short(r.site) for r in rows])
    words = "SNR of the layer's output in dB, lower is worse;  ● "
    words += "only this layer quantized   ◆ in the quantized program" if both else "quantized"
    axes.set_xlabel(words, color=_MUTED)
    return _svg(figure, name)


def _short(name: str, most: int = 46) -> str:
    name = printable(name)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _canvas(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(axis="y", length=0, labelcolor=_INK, labelsize=10)
    axes.tick_params(axis="x", color=_RULE, labelcolor=_MUTED, labelsize=9)
    axes.grid(axis="x", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an `<svg>` element that can stand in a page with others."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": name,  # the same figure gives the same bytes
        "text.parse_math": False,  # a `$` in a layer's name is a dollar sign
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the layout font lacks; the page's has it
        for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
            text.set_parse_math(False)  # type: ignore[attr-defined]
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=3)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))

    def own(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', own, svg)
    svg = re.sub(r'(url\(#|href="#)([\w-]+)', rf"\g<1>{name}-\g<2>", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, variable)
    # The size comes from the view box, so that the plot scales with the column.
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
