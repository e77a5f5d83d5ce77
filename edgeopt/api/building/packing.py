"""Write what a build leaves beside the model files: state, manifest, lock, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeopt.api.building.branches import Branch
from edgeopt.api.building.inputs import Inputs
from edgeopt.api.building.lock import Lock, locked_options
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.written import Written
from edgeopt.artifacts import build_state
from edgeopt.artifacts import bundle as bundles
from edgeopt.artifacts.artifact import FileEntry
from edgeopt.artifacts.manifest import Manifest
from edgeopt.files import to_json, write_text
from edgeopt.registry.plugins import Plugin
from edgeopt.report.html import render
from edgeopt.results.reports import BuildReport
from edgeopt.version import __version__


def write_states(folder: Path, branches: Sequence[Branch]) -> None:
    """Write each branch's programs, plan, statistics and contracts."""
    for branch in branches:
        build_state.write_state(
            folder,
            branch.target.name,
            programs=branch.state.carrier_programs,
            plan=branch.state.plan,
            statistics=branch.state.statistics,
            contracts=branch.state.contracts,
        )


def write_manifest(
    folder: Path, inputs: Inputs, written: Sequence[Written], plugins: Sequence[Plugin]
) -> tuple[FileEntry, ...]:
    """Describe every file of the folder; return the entries."""
    files = bundles.entries(folder)
    listed = {entry.path for entry in files}
    names = [w.artifact.name for w in written]
    job = inputs.job
    bundles.write_manifest(
        folder,
        Manifest(
            edgeopt=__version__,
            model=job.loaded.source or job.loaded.name,
            profile=job.profile.name,
            recipe=job.recipe.name,
            build_key=inputs.made_of.build_key,
            hashes=inputs.made_of.hashes,
            seed=job.seed,
            tools=inputs.made_of.tools,
            artifacts=tuple(w.artifact for w in written),
            files=files,
            preprocessing=inputs.preprocessing,
            labels=job.loaded.labels,
            adapters=inputs.adapters,
            minimum_runtime={
                t.runtime: t.minimum_runtime for t in inputs.chosen.targets if t.minimum_runtime
            },
            golden={n: f"golden/{n}.npz" for n in names if f"golden/{n}.npz" in listed},
            plugins=tuple(plugins),
        ),
    )
    return files


def write_lock(
    folder: Path,
    options: BuildOptions,
    inputs: Inputs,
    files: Sequence[FileEntry],
    plugins: Sequence[Plugin],
) -> None:
    """Write `edgeopt.lock`."""
    lock = Lock(
        options=locked_options(options),
        limits=options.limits,
        hashes=inputs.made_of.hashes,
        tools=inputs.made_of.tools,
        machine=inputs.made_of.machine,
        files={entry.path: entry.sha256 for entry in files},
        build_key=inputs.made_of.build_key,
        plugins=tuple(plugins),
    )
    write_text(folder / bundles.LOCK, to_json(lock))


def write_reports(folder: Path, report: BuildReport) -> None:
    """Write `report.json` and `report.html`."""
    write_text(folder / bundles.REPORT, to_json(report))
    write_text(folder / bundles.REPORT_HTML, render(report))
