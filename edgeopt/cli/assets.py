"""`edgeopt assets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson, BundleArgument

if TYPE_CHECKING:
    from edgeopt.app_assets.manifest import AssetsResult


def assets(
    bundle: BundleArgument,
    platform: Annotated[
        str, typer.Option(metavar="android|ios|jetson", help="Where the model is to run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The app module's or any other folder; else BUNDLE-PLATFORM beside the bundle.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name in the app; else the bundle's folder."),
    ] = None,
    artifacts: Annotated[
        list[str] | None,
        typer.Option(
            "--artifact", metavar="NAME", help="Only this artifact of the bundle; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write what an app or a robot loads.

    Model files, manifest, golden vectors that need no numpy, labels, preprocessing and notices, in
    the platform's own layout. The bundle is verified before, the folder after it was written.
    Exits 1 if a check fails, 2 if the bundle holds nothing for the platform.
    """
    from edgeopt.api.assets import run_assets
    from edgeopt.cli.text import only_json, progress_line, show_json

    with only_json(wanted=as_json), progress_line() as progress:
        result = run_assets(
            bundle, platform, out, name=name, artifacts=tuple(artifacts or ()), progress=progress
        )
    if as_json:
        show_json(result)
    else:
        show_assets(result)
    return 0


def show_assets(result: AssetsResult) -> None:
    """Print what was written, what was checked, and what was left out."""
    from edgeopt.cli.text import Table, show_line, show_table, show_warning

    for warning in result.warnings:
        show_warning(warning)
    sizes = {entry.path: entry.size_bytes for entry in result.manifest.files}
    models = tuple(
        (
            m.name,
            m.format,
            m.precision,
            m.file,
            f"{sizes[m.file] / 1e6:.2f}",
            f"{m.runtime} {m.minimum_runtime}".strip(),
        )
        for m in result.manifest.models
    )
    heads = ("model", "format", "precision", "file", ">MB", "runtime, at least")
    show_table(Table("Models", heads, models))
    told = tuple(
        (c.name, "pass" if c.holds else "fail", c.message) for c in result.checks if c.message
    )
    show_table(Table("Checks", ("check", "verdict", ""), told))
    show_table(Table("Left out", ("artifact", "why"), tuple(result.left_out.items())))
    files = len(result.manifest.files) + 1
    show_line(f"assets  {result.path}  ({files} files, {result.size_bytes / 1e6:.2f} MB)")
