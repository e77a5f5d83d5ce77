"""The commands."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeopt.cli.adapter import adapter
from edgeopt.cli.assets import assets
from edgeopt.cli.bench import bench
from edgeopt.cli.build import build
from edgeopt.cli.catalogue import models, passes, profiles, recipes
from edgeopt.cli.doctor import doctor
from edgeopt.cli.gate import gate
from edgeopt.cli.report import report
from edgeopt.cli.schema import schema
from edgeopt.cli.verify import verify

# Without markup, typer does not load rich for the help, which keeps it fast.
app = typer.Typer(
    name="edgeopt",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for command in (
    build,
    verify,
    bench,
    gate,
    assets,
    report,
    passes,
    profiles,
    models,
    recipes,
    doctor,
    schema,
):
    app.command()(command)
app.add_typer(adapter, name="adapter")


def _version(wanted: bool) -> None:
    if wanted:
        from edgeopt.version import __version__

        print(f"edgeopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    _traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from (any command).")
    ] = False,
) -> None:
    """Compile a torch model for a device: prune, quantize, export, run, judge.

    Exit codes: 0 good; 1 a measured limit or a check failed; 2 bad input; 3 asked to measure what
    this machine cannot, or cannot tell.
    """
