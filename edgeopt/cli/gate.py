"""`edgeopt gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.cli.text import Table
    from edgeopt.limits.results import GateLimit, GateResult


def gate(
    candidate: Annotated[
        Path, typer.Argument(metavar="BUNDLE|FILE", help="What is judged: a bundle or model file.")
    ],
    baseline: Annotated[
        Path, typer.Option(metavar="BUNDLE|FILE", help="What it is judged against.")
    ],
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="'NAME<=NUMBER'",
            help="A bound (or >=) in place of the default; inf: none. May be repeated.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this method of the program.")
    ] = None,
    artifact: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This artifact of both bundles; else the first."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Latency samples of each file in one look."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML for the CI server.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table for a pull request.")
    ] = None,
    require_measured: Annotated[
        bool, typer.Option("--require-measured", help="Exit 3 where a number is missing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Judge a model against a baseline: slower, larger or worse fails.

    Latency and memory are measured here, both files interleaved; the rest is read from the
    bundles' reports or from the files. Exits 1 if a limit fails, 3 if one cannot be told from the
    machine's noise, or was asked for and cannot be measured here. `edgeopt schema gate` and
    docs/gate.md tell more.
    """
    from edgeopt.api.gate import GateOptions, run_gate
    from edgeopt.cli.text import only_json, progress_line, show_json
    from edgeopt.files import write_text
    from edgeopt.results.verdicts import Verdict

    options = GateOptions(
        limits=tuple(limits or ()),
        method=method,
        artifact=artifact,
        samples=samples,
        require_measured=require_measured,
    )
    with only_json(wanted=as_json), progress_line() as progress:
        result = run_gate(candidate, baseline, options, progress=progress)
    if junit is not None:
        from edgeopt.report.junit import render as junit_xml

        write_text(junit, junit_xml(result))
    if markdown is not None:
        from edgeopt.report.markdown import render as markdown_table

        write_text(markdown, markdown_table(result))
    if as_json:
        show_json(result)
    else:
        show_gate(result)
    return {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_MEASURED: 3}[result.verdict]


def show_gate(result: GateResult) -> None:
    """Print a gate: the verdict first, then each limit, then where the numbers come from."""
    from edgeopt.cli.text import STYLES, show_line, show_table, show_warning

    verdict = result.verdict.value
    ours, theirs = (
        f"{side.path} ({side.artifact})" if side.artifact != side.path else side.path
        for side in (result.candidate, result.baseline)
    )
    show_line(f"{verdict.upper()}  {ours} against {theirs}", STYLES[verdict])
    show_line()
    for warning in result.warnings:
        show_warning(warning)
    show_table(limit_table(result.limits))
    show_table(_not_measured(result.limits))
    show_table(_origins(result.limits))


def limit_table(rows: tuple[GateLimit, ...]) -> Table:
    """Return what was compared."""
    from edgeopt.cli.text import Table
    from edgeopt.report import change

    shown = [row for row in rows if row.value is not None]
    cells = tuple(
        (
            change.title(row),
            change.number(row.baseline, row.unit),
            change.number(row.candidate, row.unit),
            "\n".join(filter(None, (change.change(row), _bracketed(change.interval(row))))),
            change.allowed(row),
            row.comparison.value if row.comparison is not None else "",
            row.verdict.value,
            row.reason,
        )
        for row in shown
    )
    heads = (
        "limit",
        ">baseline",
        ">candidate",
        ">change\n(95 %)",
        ">allowed",
        "pace",
        "verdict",
        "",
    )
    return Table("Limits", heads, cells)


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


def _not_measured(rows: tuple[GateLimit, ...]) -> Table:
    from edgeopt.cli.text import Table
    from edgeopt.report import change

    cells = tuple(
        (change.title(row), "yes" if row.required else "no", row.reason)
        for row in rows
        if row.value is None
    )
    return Table("Not measured", ("limit", "required", "why"), cells)


def _origins(rows: tuple[GateLimit, ...]) -> Table:
    from edgeopt.cli.text import Table
    from edgeopt.report import change

    told: dict[str, list[str]] = {}
    for row in rows:
        if row.origin:
            told.setdefault(row.origin, []).append(change.title(row))
    cells = tuple((", ".join(names), origin) for origin, names in told.items())
    return Table("Where the numbers come from", ("limits", "origin"), cells)
