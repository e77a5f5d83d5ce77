"""`edgeopt report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, BundleArgument


def report(
    bundle: BundleArgument,
    attach: Annotated[
        Path | None,
        typer.Option(
            metavar="MEASURED.JSON",
            help="What the on-device script measured; the latency limits are judged again.",
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write a bundle's HTML report again.

    --attach brings home what was measured on the device; it then exits 1 if a measured limit fails.
    """
    from edgeopt.api.report import run_report
    from edgeopt.cli.text import only_json, show_json, show_line

    with only_json(wanted=as_json):
        outcome = run_report(bundle, attach=attach)
    if as_json:
        show_json(outcome.report)
    else:
        from edgeopt.cli.summary import show_build

        if attach is not None:
            show_build(outcome.report, bundle)
        show_line(f"report  {outcome.path}")
    if open_browser:
        import webbrowser

        webbrowser.open(outcome.path.resolve().as_uri())
    if attach is None:
        return 0
    from edgeopt.cli.build import exit_code

    return exit_code(outcome.report)
