"""Render a `BuildReport` as one self-contained HTML page."""

from __future__ import annotations

from importlib import resources
from typing import Any

from edgeopt.report import drift, overview, placement, plots, sizes, view, words
from edgeopt.report.files import Files
from edgeopt.report.printable import printable
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import Verdict

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
        bytes=words.size,
        count=words.count,
        decibels=words.decibels,
        kind=words.kind,
        number=words.number,
        significant=words.significant,
        quantity=words.quantity,
        verdict=lambda verdict: _VERDICT_CLASS[verdict],
    )
    page = environment.get_template("report.html.j2")
    return page.render(report=report, css=_css(), **_views(report))


def _source(name: str) -> str:
    return (resources.files("edgeopt.report.templates") / name).read_text(encoding="utf-8")


def _css() -> Any:
    from markupsafe import Markup

    return Markup(_source("report.css"))


def _views(report: BuildReport) -> dict[str, Any]:
    from markupsafe import Markup

    files = Files(report)
    precisions = {a.name: a.precision for a in report.artifacts}
    latency = [
        (
            machine,
            results,
            view.latency_findings(results, report.comparisons),
            Markup(plots.latency_plot(results, precisions, f"latency-{index}")),
        )
        for index, (machine, results) in enumerate(view.machines(report))
    ]
    judged = view.judged(report)
    targets = overview.targets(report)
    profile = drift.profile(report)
    rankings = drift.views(report)
    return {
        "targets": targets,
        "targets_title": overview.title(targets),
        "tiles": overview.tiles(targets),
        "sentence": view.verdict_sentence(report),
        "limit_fill": view.limit_fill,
        "accuracy_findings": [view.accuracy_finding(group) for group in judged],
        "drops": [
            Markup(plots.drop_plot(group, view.drop_limit(report, group), f"drop-{index}"))
            for index, group in enumerate(judged)
        ],
        "latency": latency,
        "comparison_findings": [view.comparison_finding(pair) for pair in report.comparisons],
        "ratios": Markup(plots.ratio_plot(report.comparisons)) if report.comparisons else "",
        "sizes": sizes.sizes(report),
        "operators": placement.placements(report),
        "profile": profile,
        "profile_plot": Markup(plots.profile_plot(profile)) if profile is not None else "",
        "drift": rankings,
        "drift_plots": [
            Markup(plots.drift_plot(ranking.rows[:MOST_DRIFT_ROWS], f"drift-plot-{index}"))
            for index, ranking in enumerate(rankings)
        ],
        "drift_shown": MOST_DRIFT_ROWS,
        "roles": {a.name: files.role(a).value for a in report.artifacts},
        "branches": view.branches(report.passes),
        "histogram": view.histogram,
        "is_mapping": lambda value: isinstance(value, dict),
        "is_list": lambda value: isinstance(value, (list, tuple)),
    }
