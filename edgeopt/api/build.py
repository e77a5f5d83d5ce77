"""The main job: compile, export, run, judge, bundle."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.api.building import exporting, judging, packing
from edgeopt.api.building.branches import Branch, pass_rows, run_branch, run_trunk
from edgeopt.api.building.inputs import resolve
from edgeopt.api.building.judgement import Judgement, Wishes, Written
from edgeopt.api.building.lock import options_from_lock, read_lock
from edgeopt.api.building.options import BuildOptions
from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.bundle import Bundle
from edgeopt.devices.profile import Target
from edgeopt.errors import ConfigError, nearest
from edgeopt.files import atomic_folder, write_text
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel
from edgeopt.pipeline.compiler_pass import WARNING
from edgeopt.pipeline.state import ModelState
from edgeopt.progress import Progress, no_progress
from edgeopt.results.reports import BuildReport
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
    return _Build(options, progress).run()


class _Build:
    """One build: load, compile, export, judge, pack."""

    def __init__(self, options: BuildOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._lock = read_lock(options.lock) if options.lock is not None else None
        with self._stage("load"):
            self._inputs = resolve(options, progress, self._lock)

    def run(self) -> BuildOutcome:
        """Do it; the bundle takes its place only when everything is written."""
        job = self._inputs.job
        out = self._options.out or Path("dist") / f"{job.loaded.name}-{job.profile.name}"
        with atomic_folder(out) as folder:
            with self._stage("compile"):
                trunk = run_trunk(job)
                targets = (*self._inputs.targets, *self._inputs.stand_ins)
                branches = [run_branch(job, trunk, target) for target in targets]
            with self._stage("export"):
                written = self._export(folder, trunk, branches)
            report = self._judge(folder, trunk, branches, written)
            with self._stage("report"):
                packing.write_states(folder, branches)
                files = packing.write_manifest(folder, self._inputs, written)
                packing.write_lock(folder, self._options, self._inputs, files)
                differing = self._unlike_lock({f.path: f.sha256 for f in files})
                report = dataclasses.replace(
                    report, bundle=str(out), warnings=(*report.warnings, *differing)
                )
                packing.write_reports(folder, report)
        return BuildOutcome(report, out)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._progress(name, 0, None)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed

    def _unlike_lock(self, files: dict[str, str]) -> list[str]:
        """Say which files are not the bytes that the lock names."""
        if self._lock is None:
            return []
        locked = self._lock.files
        unlike = sorted(n for n in set(locked) | set(files) if locked.get(n) != files.get(n))
        return [f"not the bytes of the lock: {', '.join(unlike)}"] if unlike else []

    def _export(self, folder: Path, trunk: ModelState, branches: list[Branch]) -> list[Written]:
        """Write each branch's file and its float yardstick, the first target's first."""
        found: list[Written] = []
        job = self._inputs.job
        for branch in branches:
            own = branch.target in job.profile.targets
            target = branch.target
            precision = "int8" if job.quantizes else target.float_type
            main = self._file(folder, branch.state, target, target.name, precision)
            found.append(Written(main, branch, own))
            if job.quantizes and target.yardstick:
                # The same weights in the same form, nothing quantized.
                name = f"{target.name}-{target.float_type}"
                plain = self._file(folder, branch.before, target, name, target.float_type)
                found.append(Written(plain, branch, own, yardstick=True))
        for precision in self._inputs.extra:
            target = dataclasses.replace(
                branches[0].target, name="onnx", format="onnx", runtime="onnxruntime"
            )
            artifact = self._file(folder, trunk, target, f"onnx-{precision}", precision)
            found.append(Written(artifact, branches[0], own=True))
        return found

    def _file(
        self, folder: Path, state: ModelState, target: Target, name: str, precision: str
    ) -> Artifact:
        self._progress(f"export {name}", 0, None)
        return exporting.export(
            self._inputs.job, state, target, folder, name=name, precision=precision,
            build_key=self._inputs.build_key,
        )  # fmt: skip

    def _judge(
        self, folder: Path, trunk: ModelState, branches: list[Branch], written: list[Written]
    ) -> BuildReport:
        from edgeopt.devices.machine import machine

        options, inputs, job = self._options, self._inputs, self._inputs.job
        wishes = Wishes(
            evaluation=inputs.evaluation,
            metric=options.metric if options.metric is not None else job.loaded.metric,
            latency=options.latency,
            samples=options.samples,
            drift=options.drift,
            seed=options.seed,
        )
        judgement = Judgement(job, wishes, folder, written, self._stage)
        judgement.collect()
        limits = judging.judge(inputs.limits, judgement.found_for_verdict())
        if not written[0].own:
            limits = judging.withheld(limits, "only a stand-in was built")
        rows = pass_rows(trunk, branches)
        noted = [
            note.removeprefix(WARNING)
            for row in rows
            for note in row.notes
            if note.startswith(WARNING)
        ]
        return BuildReport(
            bundle="",
            edgeopt=__version__,
            model=job.loaded.source or job.loaded.name,
            profile=job.profile.name,
            profile_title=job.profile.title,
            recipe=job.recipe.name,
            build_key=inputs.build_key,
            verdict=combine([row.verdict for row in limits]),
            machine=machine(),
            tools=inputs.tools,
            artifacts=tuple(judgement.rows.values()),
            accuracy=tuple(judgement.accuracy),
            latency=tuple(judgement.latency),
            comparisons=tuple(judgement.comparisons),
            memory=tuple(judgement.memory),
            limits=limits,
            passes=rows,
            plan={b.target.name: tuple(b.state.plan.lines()) for b in branches if b.state.plan},
            operators=tuple(judgement.operators),
            sizes=tuple(judgement.sizes),
            drift=tuple(judgement.drift),
            proof=tuple(judgement.proof),
            contracts=tuple(judgement.contracts),
            compile=judgement.compile,
            unmeasured=judgement.why_untimed(),
            warnings=tuple(dict.fromkeys([*inputs.warnings, *noted, *judgement.warnings])),
            seconds=self._seconds,
        )
