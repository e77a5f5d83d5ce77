"""Resolve what a build is told: profile, recipe, model, data, and the key of it all."""

from __future__ import annotations

import dataclasses

from edgeopt.api.building import judging
from edgeopt.api.building.adapters import adapters_of, fuse
from edgeopt.api.building.job import Job
from edgeopt.api.building.lock import Lock, differences, locked_options
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.shapes import resized
from edgeopt.artifacts.interface import Pixels, Preprocessing
from edgeopt.data import Samples
from edgeopt.devices.profile import DeviceProfile, Target, load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.errors import CheckFailed, ConfigError, PreconditionError, nearest
from edgeopt.ir.digests import key_of
from edgeopt.ir.trees import leaves
from edgeopt.limits.limit import Limit
from edgeopt.models.load import load_model
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.weights import check_finite
from edgeopt.pipeline.reference import FloatReference
from edgeopt.progress import Progress
from edgeopt.recipes.recipe import Recipe, load_recipe
from edgeopt.version import __version__


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that goes into a build, loaded and checked.

    Attributes:
        job: What the compile needs.
        targets: The targets to build, the verdict's first.
        stand_ins: Runtimes that stand in for the device's on this machine.
        extra: Precisions of additional ONNX files.
        limits: What is judged.
        evaluation: Evaluation samples, or None.
        hashes: Part -> SHA-256.
        tools: Tool -> version.
        machine: What of the machine decides bytes.
        build_key: Hash of options, parts, tools and machine.
        warnings: What the user should know.
        adapters: Names of the fused adapters.
    """

    job: Job
    targets: tuple[Target, ...]
    stand_ins: tuple[Target, ...]
    extra: tuple[str, ...]
    limits: tuple[Limit, ...]
    evaluation: Samples | None
    hashes: dict[str, str]
    tools: dict[str, str]
    machine: dict[str, str]
    build_key: str
    warnings: tuple[str, ...]
    adapters: tuple[str, ...] = ()

    @property
    def samples(self) -> Samples | None:
        """What the files are run on: their golden vectors must not change with how many judge."""
        return self.job.calibration or self.evaluation

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures really became inputs: the data's own description comes first."""
        for samples in (self.evaluation, self.job.calibration):
            if samples is not None and samples.preprocessing is not None:
                return samples.preprocessing
        return self.job.loaded.preprocessing


def resolve(options: BuildOptions, progress: Progress, lock: Lock | None) -> Inputs:
    """Load and check everything that a build is told.

    Raises:
        EdgeOptError: For the first thing that cannot be meant or read.
        CheckFailed: If a lock is given and a part is not what was locked.
    """
    profile = load_profile(options.profile)
    recipe = load_recipe(options.recipe or profile.default_recipe)
    limits = judging.merged(profile, options.limits)
    targets, stand_ins, extra = _chosen(profile, options.formats)
    warnings: list[str] = []
    passes = recipe.instantiate(
        [*options.settings, *_vnni_settings(options, recipe, targets, warnings)]
    )
    loaded = load_model(options.model) if isinstance(options.model, str) else options.model
    check_finite(loaded.module)
    if loaded.methods and any(p.name == "quantize" for p in passes):
        raise ConfigError(
            f"{loaded.source}: has the methods forward, {', '.join(loaded.methods)}; recipe "
            f"{recipe.name} quantizes, and data calibrate one method only; use --recipe float"
        )
    needs = next((p.name for p in passes if p.needs_calibration), None)
    calibration, evaluation = _data(options, loaded, needs, warnings)
    loaded = _with_real_example(loaded, calibration or evaluation)
    adapters, passes = adapters_of(options.adapters, passes)
    fused = fuse(loaded, adapters, profile, verify=options.verify, progress=progress)
    job = Job(
        loaded=fused.loaded,
        profile=profile,
        recipe=recipe,
        passes=passes,
        calibration=calibration,
        reference=FloatReference(fused.loaded.module),
        keep_float=(*recipe.keep_float, *options.keep_float),
        batch=options.batch or targets[0].protocol.batch,
        dynamic=options.dynamic,
        seed=options.seed,
        verify=options.verify,
        progress=progress,
        history=fused.history,
        pixels=_pixels(options, loaded, evaluation, calibration),
        quantized_io=options.quantized_io,
    )
    _check_lengths(job, calibration, "calibration data")
    _check_lengths(job, evaluation, "evaluation data")
    hashes = {**_hashes(job, (*targets, *stand_ins), evaluation), **fused.hashes}
    tools = tool_versions() | _compilers((*targets, *stand_ins))
    machine = {"vnni": str(_has_vnni()).lower()}
    if lock is not None:
        warnings += _against_lock(lock, hashes, tools)
    parts = {
        "options": locked_options(options),
        "hashes": hashes,
        "tools": tools,
        "machine": machine,
    }
    return Inputs(
        job, targets, stand_ins, extra, limits, evaluation, hashes, tools, machine,
        key_of(parts), tuple(warnings), fused.names,
    )  # fmt: skip


def _pixels(options: BuildOptions, loaded: LoadedModel, *data: Samples | None) -> Pixels | None:
    """Return how pixels become the model's input, if the file is to do that.

    Raises:
        ConfigError: If nobody says how pictures are normalized, or the model is NHWC itself.
    """
    if options.input_form == "float":
        return None
    described = [s.preprocessing for s in data if s is not None and s.preprocessing is not None]
    known = described[0] if described else loaded.preprocessing
    if known is None:
        raise ConfigError(
            "--input uint8-nhwc: neither the model nor its data say how pictures are normalized; "
            "give data with ?mean=..&std=.., or a preprocessing.toml beside them"
        )
    if known.layout != "NCHW":
        raise ConfigError("--input uint8-nhwc: the model takes channels last already")
    return Pixels(known.mean, known.std)


def _against_lock(lock: Lock, hashes: dict[str, str], tools: dict[str, str]) -> list[str]:
    changed, other_tools = differences(lock, hashes, tools)
    if changed:
        raise CheckFailed(
            f"the lock cannot be met: {', '.join(changed)} changed since it was written"
        )
    if other_tools:
        return [f"not the tools of the lock, so bytes may differ: {'; '.join(other_tools)}"]
    return []


def _vnni_settings(
    options: BuildOptions, recipe: Recipe, targets: tuple[Target, ...], warnings: list[str]
) -> list[str]:
    """Choose 7-bit weights where this CPU would saturate u8 x s8 sums."""
    plans = any(step.name == "plan" for step in recipe.passes)
    given = any(s.startswith("plan.weight_bits") for s in options.settings)
    for target in targets:
        rules = load_rules(target.rules)
        runs_here = target.runtime == "onnxruntime" and rules.isa.startswith("x86")
        if plans and runs_here and not given and not _has_vnni():
            bits = rules.weight_bits_without_vnni
            warnings.append(
                f"this CPU has no VNNI and would saturate u8 x s8 sums: weights take {bits} bits"
            )
            return [f"plan.weight_bits={bits}"]
    return []


def _data(
    options: BuildOptions, loaded: LoadedModel, needs: str | None, warnings: list[str]
) -> tuple[Samples | None, Samples | None]:
    """Return the calibration and the evaluation samples.

    Where both are one data set, the samples that calibrate are left out of the evaluation.
    """
    calibration, evaluation = loaded.calibration, loaded.evaluation
    if options.calib is not None:
        calibration = loaded.data(options.calib, name="calibration")
    if options.eval is not None:
        evaluation = loaded.data(options.eval, name="evaluation")
    if needs is not None and calibration is None:
        raise PreconditionError(
            f"{needs}: needs calibration data and the model brings none; pass --calib"
        )
    one_set = isinstance(options.calib, str) and options.eval == options.calib
    if calibration is not None and needs is not None:
        everything = calibration
        calibration = everything.take(options.calib_samples, options.seed)
        only = options.calib is not None and evaluation is None
        if (one_set or only) and everything.count > calibration.count:
            evaluation = everything.without(calibration)
            warnings.append(
                f"calibration and evaluation are one data set: {calibration.count} samples "
                f"calibrate, the other {evaluation.count} judge"
            )
    if evaluation is None:
        warnings.append("there are no evaluation data, so accuracy was not measured; pass --eval")
    elif options.eval_samples is not None:
        evaluation = evaluation.take(options.eval_samples, options.seed)
    return calibration, evaluation


def _with_real_example(loaded: LoadedModel, samples: Samples | None) -> LoadedModel:
    """Take the first real samples as example, so that each pass's drift means something.

    The files' static sizes are the example's, so a free dimension gets the size that the data have.
    """
    if samples is None:
        return loaded
    mine = leaves((loaded.example_args, dict(loaded.example_kwargs)))
    batch = next(samples.batches(len(mine[0])))
    if batch.size != len(mine[0]):
        args, kwargs = resized(batch.args, batch.kwargs, len(mine[0]))
        batch = dataclasses.replace(batch, args=args, kwargs=kwargs)
    for value, real, free in zip(mine, batch.inputs, loaded.dimensions, strict=True):
        pairs = enumerate(zip(value.shape, real.shape, strict=True))
        if any(size != found and axis not in free for axis, (size, found) in pairs):
            return loaded
    return dataclasses.replace(loaded, example_args=batch.args, example_kwargs=batch.kwargs)


def _check_lengths(job: Job, samples: Samples | None, what: str) -> None:
    """Refuse data that the files, whose sizes are static unless named, could not be run on.

    Raises:
        ConfigError: Naming the input, its sizes, and the option.
    """
    if samples is None:
        return
    mine = leaves((job.loaded.example_args, dict(job.loaded.example_kwargs)))
    first = next(samples.batches(1)).inputs
    for value, real, free, name in zip(
        mine, first, job.loaded.dimensions, job.loaded.input_names, strict=True
    ):
        for axis, dimension in free.items():
            fixed = axis > 0 and dimension.name not in job.dynamic
            if fixed and value.shape[axis] != real.shape[axis]:
                raise ConfigError(
                    f"{what}: {name} is {real.shape[axis]} long in {dimension.name}, the model is "
                    f"compiled for {value.shape[axis]}; pass --dynamic {dimension.name}, or data "
                    "of one length"
                )


def _hashes(job: Job, targets: tuple[Target, ...], evaluation: Samples | None) -> dict[str, str]:
    modules = [f"{name} {type(m).__qualname__}" for name, m in job.loaded.module.named_modules()]
    profile = {"profile": job.profile, "rules": [load_rules(t.rules) for t in targets]}
    found = {
        "weights": job.reference.digest,
        "structure": key_of({"modules": modules}),
        "recipe": key_of({"passes": [[p.name, p.options()] for p in job.passes]}),
        "profile": key_of(profile),
    }
    if job.calibration is not None:
        found["calibration"] = job.calibration.digest()
    elif evaluation is not None:  # golden vectors are taken from it
        found["evaluation"] = evaluation.digest()
    return found


def _chosen(
    profile: DeviceProfile, formats: tuple[str, ...]
) -> tuple[tuple[Target, ...], tuple[Target, ...], tuple[str, ...]]:
    """Return targets, stand-ins and extra ONNX precisions that `--format` asks for.

    Raises:
        ConfigError: If no target of the profile has the format.
    """
    known = {t.format for t in (*profile.targets, *profile.stand_ins)}
    plain: list[str] = []
    extra: list[str] = []
    for text in formats:
        format_, colon, precision = text.partition(":")
        if not colon and format_ not in known:
            raise ConfigError(
                f"--format {format_}: profile {profile.name} has no such target"
                f"{nearest(format_, known)}"
            )
        if colon and (format_ != "onnx" or precision not in ("float32", "float16")):
            raise ConfigError(
                f"--format {text}: takes onnx:float32 or onnx:float16 beside "
                f"{', '.join(sorted(known))}"
            )
        if colon:
            extra.append(precision)
        else:
            plain.append(format_)
    if not plain:
        return profile.targets, profile.stand_ins, tuple(extra)
    targets = tuple(t for t in profile.targets if t.format in plain)
    stand_ins = tuple(t for t in profile.stand_ins if t.format in plain)
    return targets or stand_ins, stand_ins if targets else (), tuple(extra)


def tool_versions() -> dict[str, str]:
    """Return the versions of what decides an artifact's bytes."""
    import importlib.metadata as metadata
    import platform

    found = {"python": platform.python_version(), "edgeopt": __version__}
    for name in ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _compilers(targets: tuple[Target, ...]) -> dict[str, str]:
    """Return the versions of compilers whose output is part of the bundle."""
    if all(target.format != "qnn" for target in targets):
        return {}
    from edgeopt.exporters.qnn import hexagon

    name = "onnxruntime-qnn"
    return {name: hexagon.tool_versions().get(name, "not installed")}


def _has_vnni() -> bool:
    from edgeopt.devices.machine import has_vnni

    return has_vnni()
