"""The main job: compile, export, run, judge, bundle."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import edgeopt
from edgeopt import bundle as bundles
from edgeopt.api import compile as compiling
from edgeopt.api import limits as judging
from edgeopt.api.compile import Branch, Job
from edgeopt.api.judgement import Judgement, Wishes, Written
from edgeopt.api.lock import Lock, key_of, locked_options, options_from_lock
from edgeopt.api.options import BuildOptions
from edgeopt.artifact import Artifact, Manifest, Preprocessing
from edgeopt.bundle import Bundle
from edgeopt.data import Samples
from edgeopt.errors import ConfigError, PreconditionError, nearest
from edgeopt.files import atomic_folder, to_json, write_text
from edgeopt.models import LoadedModel, check_finite, from_module, load_model
from edgeopt.recipe import Recipe, load_recipe
from edgeopt.reference import FloatReference
from edgeopt.results import BuildReport, combine
from edgeopt.state import ModelState, no_progress
from edgeopt.target import DeviceProfile, Limit, Target, load_profile, load_rules

__all__ = ["BuildOptions", "BuildOutcome", "build", "options_from_lock", "run_build"]

Progress = Callable[[str, int, int | None], None]


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
    """One build: what it has loaded, and what it has found so far."""

    def __init__(self, options: BuildOptions, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.profile: DeviceProfile = load_profile(options.profile)
        self.recipe: Recipe = load_recipe(options.recipe or self.profile.default_recipe)
        self.limits: tuple[Limit, ...] = judging.merged(self.profile, options.limits)
        self.targets, self.stand_ins, self.extra = _chosen(self.profile, options.formats)
        settings = [*options.settings, *self._vnni_settings()]
        self.passes = self.recipe.instantiate(settings)
        with self._stage("load"):
            self.loaded = (
                load_model(options.model) if isinstance(options.model, str) else options.model
            )
            check_finite(self.loaded.module)
            self.calibration, self.evaluation = self._data()
        self.job = Job(
            loaded=self._with_real_example(),
            profile=self.profile,
            recipe=self.recipe,
            passes=self.passes,
            calibration=self.calibration,
            reference=FloatReference(self.loaded.module),
            keep_float=(*self.recipe.keep_float, *options.keep_float),
            batch=options.batch or self.targets[0].protocol.batch,
            dynamic=options.dynamic,
            seed=options.seed,
            verify=options.verify,
            progress=progress,
        )
        self.hashes = self._hashes()
        self.tools = _tools()
        self.build_key = key_of(
            {
                "options": locked_options(options),
                "hashes": self.hashes,
                "tools": self.tools,
                "machine": self._machine_facts(),
            }
        )

    def run(self) -> BuildOutcome:
        out = self.options.out or Path("dist") / f"{self.loaded.name}-{self.profile.name}"
        with atomic_folder(out) as folder:
            with self._stage("compile"):
                trunk = compiling.run_trunk(self.job)
                branches = [
                    compiling.run_branch(self.job, trunk, t)
                    for t in (*self.targets, *self.stand_ins)
                ]
            with self._stage("export"):
                written = self._export(folder, trunk, branches)
            report = self._judge(folder, trunk, branches, written)
            report = dataclasses.replace(report, bundle=str(out))
            with self._stage("report"):
                self._write(folder, report, branches, written)
        return BuildOutcome(report, out)

    # --- what goes in ---------------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, None)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _vnni_settings(self) -> list[str]:
        """Choose 7-bit weights where the CPU would saturate u8 x s8 sums."""
        found = []
        for target in self.targets:
            rules = load_rules(target.rules)
            runs_here = target.runtime == "onnxruntime" and rules.isa.startswith("x86")
            given = any(s.startswith("plan.weight_bits") for s in self.options.settings)
            if runs_here and not given and not _has_vnni() and self._plans():
                found.append(f"plan.weight_bits={rules.weight_bits_without_vnni}")
                self.warnings.append(
                    "this CPU has no VNNI and would saturate u8 x s8 sums: weights take "
                    f"{rules.weight_bits_without_vnni} bits"
                )
                break
        return found

    def _plans(self) -> bool:
        return any(step.name == "plan" for step in self.recipe.passes)

    def _data(self) -> tuple[Samples | None, Samples | None]:
        options = self.options
        calibration = self.loaded.calibration
        if options.calib is not None:
            calibration = self.loaded.data(options.calib, name="calibration")
        evaluation = self.loaded.evaluation
        if options.eval is not None:
            evaluation = self.loaded.data(options.eval, name="evaluation")
        needs = [p.name for p in self.passes if p.needs_calibration]
        if needs and calibration is None:
            raise PreconditionError(
                f"{needs[0]}: needs calibration data and the model brings none; pass --calib"
            )
        same_data = options.calib is not None and (
            options.eval == options.calib or (options.eval is None and evaluation is None)
        )
        if calibration is not None and needs:
            everything = calibration
            calibration = everything.take(options.calib_samples, options.seed)
            if same_data and everything.count > options.calib_samples:
                evaluation = everything.without(calibration)
                self.warnings.append(
                    f"calibration and evaluation are one data set: {calibration.count} samples "
                    f"calibrate, the other {evaluation.count} judge"
                )
        if evaluation is None:
            self.warnings.append(
                "there are no evaluation data, so accuracy was not measured; pass --eval"
            )
        elif options.eval_samples is not None:
            evaluation = evaluation.take(options.eval_samples, options.seed)
        return calibration, evaluation

    def _with_real_example(self) -> LoadedModel:
        """Take the first real samples as example, so that each pass's drift means something."""
        samples = self.calibration or self.evaluation
        loaded = self.loaded
        if samples is None:
            return loaded
        batch = next(samples.batches(2))
        mine = [tuple(t.shape) for t in loaded.example.args if isinstance(t, torch.Tensor)]
        theirs = [tuple(t.shape) for t in batch.args]
        if mine != theirs or batch.kwargs or loaded.example_kwargs:
            return loaded
        return dataclasses.replace(loaded, example_args=batch.args)

    def _hashes(self) -> dict[str, str]:
        profile = {
            "profile": self.profile,
            "rules": [load_rules(t.rules) for t in (*self.targets, *self.stand_ins)],
        }
        structure = "\n".join(
            f"{name} {type(m).__qualname__}" for name, m in self.loaded.module.named_modules()
        )
        found = {
            "weights": self.job.reference.digest,
            "structure": key_of({"modules": structure}),
            "recipe": key_of({"passes": [[p.name, p.options()] for p in self.passes]}),
            "profile": key_of(profile),
        }
        if self.calibration is not None:
            found["calibration"] = self.calibration.digest()
        return found

    def _preprocessing(self) -> Preprocessing | None:
        """Return how pictures really became inputs: the data's own description comes first."""
        for samples in (self.evaluation, self.calibration):
            if samples is not None and samples.preprocessing is not None:
                return samples.preprocessing
        return self.loaded.preprocessing

    def _machine_facts(self) -> dict[str, str]:
        return {"vnni": str(_has_vnni()).lower()}

    # --- files ----------------------------------------------------------------------------------

    def _export(self, folder: Path, trunk: ModelState, branches: list[Branch]) -> list[Written]:
        """Write each branch's file and its float yardstick, the first target's first."""
        found: list[Written] = []
        for branch in branches:
            own = branch.target in self.targets
            target = branch.target
            precision = "int8" if self.job.quantizes else target.float_type
            main = self._file(folder, branch.state, target, target.name, precision)
            found.append(Written(main, branch, own))
            if self.job.quantizes:
                # The yardstick is the trunk: the same weights, nothing quantized.
                name = f"{target.name}-{target.float_type}"
                plain = self._file(folder, trunk, target, name, target.float_type)
                found.append(Written(plain, branch, own))
        for precision in self.extra:
            branch = branches[0]
            target = dataclasses.replace(
                branch.target, name="onnx", format="onnx", runtime="onnxruntime"
            )
            name = f"onnx-{precision}"
            found.append(
                Written(self._file(folder, trunk, target, name, precision), branch, own=True)
            )
        return found

    def _file(
        self, folder: Path, state: ModelState, target: Target, name: str, precision: str
    ) -> Artifact:
        self.progress(f"export {name}", 0, None)
        return compiling.export(
            self.job, state, target, folder, name=name, precision=precision,
            build_key=self.build_key,
        )  # fmt: skip

    # --- judgement ------------------------------------------------------------------------------

    def _judge(
        self,
        folder: Path,
        trunk: ModelState,
        branches: list[Branch],
        written: list[Written],
    ) -> BuildReport:
        from edgeopt.runtime_tests.machine import machine

        wishes = Wishes(
            evaluation=self.evaluation,
            metric=self.options.metric if self.options.metric is not None else self.loaded.metric,
            latency=self.options.latency,
            samples=self.options.samples,
            drift=self.options.drift,
            seed=self.options.seed,
        )
        judgement = Judgement(self.job, wishes, folder, written, self._stage)
        judgement.collect()
        main = judgement.found_for_verdict()
        limit_rows = judging.judge(self.limits, main)
        if not written[0].own:
            limit_rows = judging.withheld(limit_rows, "only a stand-in was built")
        return BuildReport(
            bundle="",
            edgeopt=edgeopt.__version__,
            model=self.loaded.source or self.loaded.name,
            profile=self.profile.name,
            profile_title=self.profile.title,
            recipe=self.recipe.name,
            build_key=self.build_key,
            verdict=combine([row.verdict for row in limit_rows]),
            machine=machine(),
            tools=self.tools,
            artifacts=tuple(judgement.rows.values()),
            accuracy=tuple(judgement.accuracy),
            latency=tuple(judgement.latency),
            comparisons=tuple(judgement.comparisons),
            memory=tuple(judgement.memory),
            limits=limit_rows,
            passes=compiling.pass_rows(trunk, branches),
            plan={
                b.target.name: tuple(b.state.plan.lines())
                for b in branches
                if b.state.plan is not None
            },
            operators=tuple(judgement.operators),
            sizes=tuple(judgement.sizes),
            drift=tuple(judgement.drift),
            proof=tuple(judgement.proof),
            contracts=tuple(judgement.contracts),
            compile=judgement.compile,
            warnings=tuple(dict.fromkeys([*self.warnings, *judgement.warnings])),
            seconds=self.seconds,
        )

    # --- the bundle -----------------------------------------------------------------------------

    def _write(
        self,
        folder: Path,
        report: BuildReport,
        branches: list[Branch],
        written: list[Written],
    ) -> None:
        from edgeopt.report.html import render

        for branch in branches:
            bundles.write_state(
                folder,
                branch.target.name,
                programs=branch.state.carrier_programs,
                plan=branch.state.plan,
                statistics=branch.state.statistics,
                contracts=branch.state.contracts,
            )
        files = bundles.entries(folder)
        golden = {
            w.artifact.name: f"golden/{w.artifact.name}.npz"
            for w in written
            if (folder / f"golden/{w.artifact.name}.npz").is_file()
        }
        manifest = Manifest(
            edgeopt=edgeopt.__version__,
            model=self.loaded.source or self.loaded.name,
            profile=self.profile.name,
            recipe=self.recipe.name,
            build_key=self.build_key,
            hashes=self.hashes,
            seed=self.options.seed,
            tools=self.tools,
            artifacts=tuple(w.artifact for w in written),
            files=files,
            preprocessing=self._preprocessing(),
            labels=self.loaded.labels,
            minimum_runtime={
                t.runtime: t.minimum_runtime for t in self.targets if t.minimum_runtime
            },
            golden=golden,
        )
        bundles.write_manifest(folder, manifest)
        lock = Lock(
            options=locked_options(self.options),
            limits=self.options.limits,
            hashes=self.hashes,
            tools=self.tools,
            machine=self._machine_facts(),
            files={entry.path: entry.sha256 for entry in files},
            build_key=self.build_key,
        )
        write_text(folder / bundles.LOCK, to_json(lock))
        write_text(folder / bundles.REPORT, to_json(report))
        write_text(folder / bundles.REPORT_HTML, render(report))


def _chosen(
    profile: DeviceProfile, formats: tuple[str, ...]
) -> tuple[tuple[Target, ...], tuple[Target, ...], tuple[str, ...]]:
    """Return targets, stand-ins and extra ONNX precisions that `--format` asks for.

    Raises:
        ConfigError: If no target of the profile has the format.
    """
    if not formats:
        return profile.targets, profile.stand_ins, ()
    known = {t.format for t in (*profile.targets, *profile.stand_ins)}
    plain = [f for f in formats if ":" not in f]
    extra = []
    for text in formats:
        format_, colon, precision = text.partition(":")
        if not colon:
            if format_ not in known:
                raise ConfigError(
                    f"--format {format_}: profile {profile.name} has no such target"
                    f"{nearest(format_, known)}"
                )
            continue
        if format_ != "onnx" or precision not in ("float32", "float16"):
            raise ConfigError(
                f"--format {text}: takes onnx:float32 or onnx:float16 beside {sorted(known)}"
            )
        extra.append(precision)
    if not plain:
        return profile.targets, profile.stand_ins, tuple(extra)
    targets = tuple(t for t in profile.targets if t.format in plain)
    stand_ins = tuple(t for t in profile.stand_ins if t.format in plain)
    return targets or stand_ins, stand_ins if targets else (), tuple(extra)


def _has_vnni() -> bool:
    from edgeopt.runtime_tests.machine import has_vnni

    return has_vnni()


def _tools() -> dict[str, str]:
    import importlib.metadata as metadata
    import platform

    found = {"python": platform.python_version(), "edgeopt": edgeopt.__version__}
    for name in ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
