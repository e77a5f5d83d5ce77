"""Render a `BuildReport` as one self-contained HTML page."""

from __future__ import annotations

from importlib import resources
from typing import Any

from edgeopt.report import plots, view
from edgeopt.report.printable import printable
from edgeopt.results import BuildReport, Verdict

MOST_DRIFT_ROWS = 16

_VERDICT_CLASS = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.NOT_MEASURED: "open"}


def render(report: BuildReport) -> str:
    """Return the page. It loads nothing from anywhere, and the same report gives the same bytes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,  # names come from files of others
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=_bytes,
        kind=_kind,
        number=_number,
        significant=_significant,
        quantity=view.quantity,
        verdict=lambda verdict: _VERDICT_CLASS[verdict],
    )
    page = environment.get_template("report.html.j2")
    return page.render(report=report, css=_css(), **_views(report))


def _source(name: str) -> str:
    return (resources.files("edgeopt.report") / name).read_text(encoding="utf-8")


def _css() -> Any:
    from markupsafe import Markup

    return Markup(_source("report.css"))


def _views(report: BuildReport) -> dict[str, Any]:
    from markupsafe import Markup

    precisions = {a.name: a.precision for a in report.artifacts}
    latency = [
        (machine, results, Markup(plots.latency_plot(results, precisions, f"latency-{index}")))
        for index, (machine, results) in enumerate(view.machines(report))
    ]
    worst = sorted(report.drift, key=lambda row: row.rank)
    return {
        "tiles": view.tiles(report),
        "sentence": view.verdict_sentence(report),
        "limit_fill": view.limit_fill,
        "latency": latency,
        "ratios": Markup(plots.ratio_plot(report.comparisons)) if report.comparisons else "",
        "size": view.sizes(report),
        "placements": view.placements(report),
        "drift": worst,
        "drift_plot": Markup(plots.drift_plot(worst[:MOST_DRIFT_ROWS])) if worst else "",
        "drift_shown": min(len(worst), MOST_DRIFT_ROWS),
        "keep_float": view.keep_float_command(report, worst[0].site) if worst else "",
        "branches": view.branches(report.passes),
        "histogram": view.histogram,
        "is_mapping": lambda value: isinstance(value, dict),
        "is_list": lambda value: isinstance(value, (list, tuple)),
    }


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero


def _significant(value: float | None) -> str:
    """Write a number of any size with four significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def _kind(precision: str) -> str:
    """Return the CSS class of a precision or dtype."""
    if precision.startswith(("int8", "uint8", "int4", "uint4")):
        return "int8"
    if precision.startswith(("float16", "bfloat16")):
        return "half"
    return "full" if precision.startswith("float") else "other"
