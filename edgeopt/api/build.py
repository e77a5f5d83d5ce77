"""The main job: compile, export, run, judge, bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.api.building import judging, packing
from edgeopt.api.building.branches import Branch, pass_rows, run_branch, run_trunk
from edgeopt.api.building.inputs import Inputs, resolve
from edgeopt.api.building.judgement import Judged, found_for_verdict, judge_files
from edgeopt.api.building.lock import options_from_lock, read_lock, unlike_files
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.plugins import plugins_of
from edgeopt.api.building.stages import Stages
from edgeopt.api.building.written import Written, write_files
from edgeopt.artifacts.bundle import Bundle
from edgeopt.errors import ConfigError, nearest
from edgeopt.files import atomic_folder, write_text
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel
from edgeopt.pipeline.compiler_pass import WARNING
from edgeopt.pipeline.state import ModelState
from edgeopt.progress import Progress, no_progress
from edgeopt.results.reports import BuildReport, PassRow
from edgeopt.results.verdicts import combine
from edgeopt.version import __version__

__all__ = ["BuildOptions", "BuildOutcome", "build", "options_from_lock", "run_build"]


@dataclasses.dataclass(frozen=True)
class BuildOutcome:
    """What a build leaves.

    Attributes:
        report: Everything that it found.
        bundle_path: The folder.
    """

    report: BuildReport
    bundle_path: Path

    @property
    def bundle(self) -> Bundle:
        """The bundle, opened."""
        return Bundle.open(self.bundle_path)

    def to_html(self, path: Path | str) -> None:
        """Write the report as one self-contained HTML file.

        Raises:
            BundleError: If the place cannot be written.
        """
        from edgeopt.report.html import render

        write_text(Path(path), render(self.report))


def build(
    model: Any,
    example_args: Any = None,
    *,
    profile: str = "orin",
    recipe: str | None = None,
    calibration: Any = None,
    evaluate: Any = None,
    metric: Any = None,
    progress: Progress = no_progress,
    **options: Any,
) -> BuildOutcome:
    """Compile a model for a device.

    Args:
        model: A module, or a model as named on the command line.
        example_args: Example inputs, for a module: a tensor or a tuple.
        profile: A profile's name or TOML file.
        recipe: A recipe's name or TOML file, or None: the profile's own.
        calibration: Calibration data: arrays, tensors, `(x, y)`, batches, or a data argument.
        evaluate: Evaluation data, likewise; or a metric function of (outputs, labels), which
            then judges the model's own evaluation data.
        metric: `top1`, `perplexity`, a function, or None: the model's own.
        progress: Called with (what, done, total).
        options: Other fields of `BuildOptions`.

    Raises:
        EdgeOptError: For anything that a user can act on.
    """
    known = {f.name for f in dataclasses.fields(BuildOptions)}
    for name in options:
        if name not in known:
            raise ConfigError(f"build: unknown option {name!r}{nearest(name, known)}")
    if callable(evaluate) and metric is None:
        evaluate, metric = None, evaluate
    if not isinstance(model, (str, LoadedModel)):
        model = from_module(model, example_args if example_args is not None else ())
    chosen = BuildOptions(
        model=model,
        profile=profile,
        recipe=recipe,
        calib=calibration,
        eval=evaluate,
        metric=metric,
        **options,
    )
    return run_build(chosen, progress=progress)


def run_build(options: BuildOptions, *, progress: Progress = no_progress) -> BuildOutcome:
    """Run a build and write its bundle.

    Raises:
        EdgeOptError: For anything that a user can act on; nothing is left half-written.
    """
    stage = Stages(progress)
    lock = read_lock(options.lock) if options.lock is not None else None
    with stage("load"):
        inputs = resolve(options, progress, lock)
    job = inputs.job
    out = options.out or Path("dist") / f"{job.loaded.name}-{job.profile.name}"
    with atomic_folder(out) as folder:
        with stage("compile"):
            trunk = run_trunk(job)
            branches = [run_branch(job, trunk, target) for target in inputs.chosen.all]
            plugins = plugins_of(inputs.made_of.asked, branches)
        with stage("export"):
            written = write_files(folder, inputs, trunk, branches)
        judged = judge_files(options, inputs, folder, written, stage)
        with stage("report"):
            packing.write_states(folder, branches)
            files = packing.write_manifest(folder, inputs, written, plugins)
            packing.write_lock(folder, options, inputs, files, plugins)
            report = _report(options, inputs, trunk, branches, written, judged)
            unlike = unlike_files(lock, files) if lock is not None else []
            report = dataclasses.replace(
                report,
                bundle=str(out),
                warnings=(*report.warnings, *unlike),
                seconds=dict(stage.seconds),
            )
            packing.write_reports(folder, report)
    return BuildOutcome(report, out)


def _report(
    options: BuildOptions,
    inputs: Inputs,
    trunk: ModelState,
    branches: Sequence[Branch],
    written: Sequence[Written],
    judged: Judged,
) -> BuildReport:
    from edgeopt.devices.machine import machine

    job, shown = inputs.job, judged.shown
    main = found_for_verdict(written[0], judged, job.profile, wanted=options.latency)
    limits = judging.judge(inputs.limits, main)
    if not written[0].own:
        limits = judging.withheld(limits, "only a stand-in was built")
    rows = pass_rows(trunk, branches)
    return BuildReport(
        bundle="",
        edgeopt=__version__,
        model=job.loaded.source or job.loaded.name,
        profile=job.profile.name,
        profile_title=job.profile.title,
        recipe=job.recipe.name,
        build_key=inputs.made_of.build_key,
        verdict=combine([row.verdict for row in limits]),
        machine=machine(),
        tools=inputs.made_of.tools,
        artifacts=tuple(one.row for one in judged.inspected),
        accuracy=shown.accuracy,
        latency=shown.latency,
        comparisons=shown.comparisons,
        memory=shown.memory,
        limits=limits,
        passes=rows,
        plan={b.target.name: tuple(b.state.plan.lines()) for b in branches if b.state.plan},
        operators=tuple(row for one in judged.inspected for row in one.structure.operators),
        sizes=tuple(row for one in judged.inspected for row in one.sizes),
        drift=shown.drift,
        proof=shown.proof,
        contracts=tuple(row for one in judged.inspected for row in one.contracts),
        compile={
            one.row.name: one.structure.compile for one in judged.inspected if one.structure.compile
        },
        unmeasured=judged.unmeasured,
        warnings=tuple(dict.fromkeys([*inputs.warnings, *_noted(rows), *judged.warnings])),
    )


def _noted(rows: Sequence[PassRow]) -> list[str]:
    """Return what the passes warn of."""
    notes = [note for row in rows for note in row.notes]
    return [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)]
