"""Resolve what a build is told: from options to a job, and everything beside it."""

from __future__ import annotations

import dataclasses

from edgeopt.api.building import judging
from edgeopt.api.building.adapters import adapters_of, fuse
from edgeopt.api.building.data import (
    Data,
    check_lengths,
    choose_data,
    pixels_of,
    with_real_example,
)
from edgeopt.api.building.job import Job
from edgeopt.api.building.lock import Lock
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.plugins import check_plugins, entries_of
from edgeopt.api.building.provenance import Provenance, check_lock, provenance_of
from edgeopt.api.building.targets import Chosen, choose_targets
from edgeopt.artifacts.interface import Preprocessing
from edgeopt.devices.machine import has_vnni
from edgeopt.devices.profile import load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.errors import ConfigError
from edgeopt.limits.limit import Limit
from edgeopt.models.load import load_model
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.weights import check_finite
from edgeopt.pipeline.reference import FloatReference
from edgeopt.progress import Progress
from edgeopt.recipes.recipe import Recipe, load_recipe


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that goes into a build, loaded and checked.

    Attributes:
        job: What the compile needs.
        chosen: What is written.
        limits: What is judged.
        data: What calibrates and judges.
        made_of: Hashes, versions and the build key.
        warnings: What the user should know.
        adapters: Names of the fused adapters.
    """

    job: Job
    chosen: Chosen
    limits: tuple[Limit, ...]
    data: Data
    made_of: Provenance
    warnings: tuple[str, ...]
    adapters: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures really became inputs: the data's own description comes first."""
        return self.data.preprocessing or self.job.loaded.preprocessing


def resolve(options: BuildOptions, progress: Progress, lock: Lock | None) -> Inputs:
    """Load and check everything that a build is told.

    Raises:
        EdgeOptError: For the first thing that cannot be meant or read.
        CheckFailed: If a lock is given and a part is not what was locked.
    """
    unlike = check_plugins(lock) if lock is not None else ()
    profile = load_profile(options.profile)
    recipe = load_recipe(options.recipe or profile.default_recipe)
    limits, notes = judging.merged(profile, options.limits)
    chosen = choose_targets(profile, options.formats)
    bits = _bits_here(options, recipe, chosen)
    passes = recipe.instantiate([*options.settings, *bits.settings])
    loaded = _model(options)
    quantizes = any(p.name == "quantize" for p in passes)
    _check_methods(loaded, recipe, quantizes=quantizes)
    data = choose_data(options, loaded, next((p.name for p in passes if p.needs_calibration), None))
    loaded = with_real_example(loaded, data.first)
    adapters, passes = adapters_of(options.adapters, passes)
    fused = fuse(loaded, adapters, profile, verify=options.verify, progress=progress)
    job = Job(
        loaded=fused.loaded,
        profile=profile,
        recipe=recipe,
        passes=passes,
        calibration=data.calibration,
        reference=FloatReference(fused.loaded.module),
        keep_float=(*recipe.keep_float, *options.keep_float),
        batch=options.batch or chosen.targets[0].protocol.batch,
        dynamic=options.dynamic,
        seed=options.seed,
        verify=options.verify,
        progress=progress,
        history=fused.history,
        pixels=pixels_of(options, loaded, data),
        quantized_io=options.quantized_io,
    )
    check_lengths(job.loaded, job.dynamic, data.calibration, "calibration data")
    check_lengths(job.loaded, job.dynamic, data.evaluation, "evaluation data")
    asked = entries_of(options, job, chosen, limits, fused.families)
    made_of = provenance_of(options, job, chosen.all, data.evaluation, fused.hashes, asked)
    unlike += check_lock(lock, made_of) if lock is not None else ()
    warnings = (*notes, *bits.warnings, *data.warnings, *unlike)
    return Inputs(job, chosen, limits, data, made_of, warnings, fused.names)


@dataclasses.dataclass(frozen=True)
class _Bits:
    """Settings that this machine's CPU asks for, and why."""

    settings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _bits_here(options: BuildOptions, recipe: Recipe, chosen: Chosen) -> _Bits:
    """Choose 7-bit weights where this CPU would saturate u8 x s8 sums."""
    plans = any(step.name == "plan" for step in recipe.passes)
    given = any(s.startswith("plan.weight_bits") for s in options.settings)
    for target in chosen.targets:
        rules = load_rules(target.rules)
        own_kernels = target.runtime == rules.runtime
        if plans and rules.x86 and own_kernels and not given and not has_vnni():
            bits = rules.weight_bits_without_vnni
            why = f"this CPU has no VNNI and would saturate u8 x s8 sums: weights take {bits} bits"
            return _Bits((f"plan.weight_bits={bits}",), (why,))
    return _Bits()


def _model(options: BuildOptions) -> LoadedModel:
    """Load the model, unless it is at hand.

    Raises:
        EdgeOptError: If it cannot be loaded, or a weight is not finite.
    """
    loaded = load_model(options.model) if isinstance(options.model, str) else options.model
    check_finite(loaded.module)
    return loaded


def _check_methods(loaded: LoadedModel, recipe: Recipe, *, quantizes: bool) -> None:
    """Refuse to quantize what data cannot calibrate.

    Raises:
        ConfigError: If the model has several methods.
    """
    if loaded.methods and quantizes:
        raise ConfigError(
            f"{loaded.source}: has the methods forward, {', '.join(loaded.methods)}; recipe "
            f"{recipe.name} quantizes, and data calibrate one method only; use --recipe float"
        )
