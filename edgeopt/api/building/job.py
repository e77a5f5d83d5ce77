"""From a loaded model to exported files: one trunk, a branch for each target."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeopt.api.formats import exporter_for
from edgeopt.artifacts.artifact import Artifact, Pixels
from edgeopt.artifacts.program_interface import Interface, with_codes, with_pixels
from edgeopt.data import Samples
from edgeopt.devices.profile import DeviceProfile, Target, load_rules
from edgeopt.errors import ConfigError, ExportError, PipelineError, nearest
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.ir import program
from edgeopt.ir.trees import BATCH, Dimension, export_shapes
from edgeopt.models.loaded import LoadedModel
from edgeopt.passes import by_name
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.reference import FloatReference, leaves
from edgeopt.pipeline.state import FORWARD, ModelState, PassContext, PassRecord, Phase, Stage
from edgeopt.recipes.recipe import Recipe
from edgeopt.results.reports import PassRow, finite_db

CALIBRATION_BATCH = 16
TRUNK = "trunk"


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a compile needs, resolved.

    Attributes:
        loaded: The model.
        profile: The device.
        recipe: The recipe.
        passes: The recipe's passes with their options.
        calibration: Calibration samples, or None.
        reference: The float reference.
        keep_float: Address globs that stay float.
        batch: Batch size of the files.
        dynamic: Names of the dimensions that stay dynamic.
        seed: The seed.
        verify: The verifier's level.
        progress: Called with (what, done, total).
        history: Passes that ran before the reference was taken (adapter fusion).
        pixels: How 8-bit pixels become the picture input's floats, or None: files take floats.
        quantized_io: Whether INT8 files take and give codes.
    """

    loaded: LoadedModel
    profile: DeviceProfile
    recipe: Recipe
    passes: tuple[Pass[Any], ...]
    calibration: Samples | None
    reference: FloatReference
    keep_float: tuple[str, ...]
    batch: int
    dynamic: tuple[str, ...]
    seed: int
    verify: str
    progress: Callable[[str, int, int | None], None]
    history: tuple[PassRecord, ...] = ()
    pixels: Pixels | None = None
    quantized_io: bool = False

    def context(self, target: Target, batch: int | None = None) -> PassContext:
        """Return what passes may read, for one target.

        Args:
            target: The target.
            batch: The batch that the captured program fixes, or None.
        """
        return PassContext(
            profile=self.profile,
            target=target,
            example_args=self.loaded.example_args,
            example_kwargs=self.loaded.example_kwargs,
            dynamic_shapes=self.loaded.dynamic_shapes,
            input_names=self.loaded.input_names,
            output_names=self.loaded.output_names,
            methods=self.loaded.methods,
            calibration=(
                self.calibration.as_batches(batch or CALIBRATION_BATCH)
                if self.calibration
                else None
            ),
            reference=self.reference,
            seed=self.seed,
            keep_float=self.keep_float,
            progress=self.progress,
        )

    @property
    def lengths(self) -> dict[str, int]:
        """The example's size in each free dimension but the batch, by name."""
        example = (self.loaded.example_args, dict(self.loaded.example_kwargs))
        return {
            dimension.name: value.shape[axis]
            for value, free in zip(leaves(example), self.loaded.dimensions, strict=True)
            for axis, dimension in free.items()
            if axis > 0
        }

    @property
    def quantizes(self) -> bool:
        """Whether the recipe quantizes at all."""
        return any(p.name == "quantize" for p in self.passes)


@dataclasses.dataclass(frozen=True)
class Branch:
    """One target's program.

    Attributes:
        target: The target.
        state: The state after its last legalization, at the captured shapes.
        before: The float state as prepared for the target, nothing quantized.
    """

    target: Target
    state: ModelState
    before: ModelState


def split_passes(
    passes: Sequence[Pass[Any]], recipe: Recipe
) -> tuple[tuple[Pass[Any], ...], tuple[Pass[Any], ...]]:
    """Return the trunk's passes (up to capture) and the branches'.

    Raises:
        PipelineError: If the recipe does not capture.
    """
    names = [p.name for p in passes]
    if "capture" not in names:
        raise PipelineError(f"recipe {recipe.name}: has no capture, so nothing can be exported")
    cut = names.index("capture") + 1
    return tuple(passes[:cut]), tuple(passes[cut:])


def run_trunk(job: Job) -> ModelState:
    """Run the module passes and the capture, once for all targets."""
    trunk, rest = split_passes(job.passes, job.recipe)
    # A wrong order in the branch must fail before the model is touched.
    Pipeline(rest, start=Stage.GRAPH, start_phase=Phase.FLOAT, already=tuple(p.name for p in trunk))
    context = job.context(job.profile.targets[0])
    state = ModelState(module=job.loaded.module, history=job.history)
    return Pipeline(trunk).run(state, context, verify=job.verify)


def run_branch(job: Job, trunk: ModelState, target: Target) -> Branch:
    """Prepare the float graph for one target, then plan, calibrate, quantize and legalize it."""
    front, rest = split_passes(job.passes, job.recipe)
    rules = load_rules(target.rules)
    prepare = tuple(by_name(name)() for name in rules.prepare)
    legalize = tuple(by_name(name)() for name in rules.legalize) if job.quantizes else ()
    example = (job.loaded.example_args, job.loaded.example_kwargs)
    dynamic = has_dynamic_batch(trunk.carrier_programs[FORWARD])
    fixed = None if dynamic else _leading(*example)
    context = job.context(target, fixed)
    already = tuple(p.name for p in front)
    before = _graph_passes(prepare, already).run(trunk, context, verify=job.verify)
    already += tuple(p.name for p in prepare)
    state = _graph_passes((*rest, *legalize), already).run(before, context, verify=job.verify)
    return Branch(target, state, before)


def _graph_passes(passes: tuple[Pass[Any], ...], already: tuple[str, ...]) -> Pipeline:
    return Pipeline(passes, start=Stage.GRAPH, start_phase=Phase.FLOAT, already=already)


def pass_rows(trunk: ModelState, branches: Sequence[Branch]) -> tuple[PassRow, ...]:
    """Return the history as rows: the trunk's once, then each branch's own."""
    rows = [_row(record, TRUNK) for record in trunk.history]
    for branch in branches:
        own = branch.state.history[len(trunk.history) :]
        rows += [_row(record, branch.target.name) for record in own]
    return tuple(rows)


def _row(record: PassRecord, branch: str) -> PassRow:
    return PassRow(
        name=record.name,
        branch=branch,
        config=record.config,
        changes=record.changes,
        skipped=record.skipped,
        drift_db=None if record.drift_db is None else finite_db(record.drift_db),
        seconds=record.seconds,
        notes=record.notes,
    )


_SHAPED: weakref.WeakKeyDictionary[
    ExportedProgram, dict[tuple[int, tuple[str, ...]], ExportedProgram]
] = weakref.WeakKeyDictionary()


def _shaped(job: Job, exported: ExportedProgram) -> ExportedProgram:
    """Return `at_shapes`, once a program and shape: several files are written from one trunk."""
    known = _SHAPED.setdefault(exported, {})
    key = (job.batch, job.dynamic)
    if key not in known:
        shaped = at_shapes(job, exported)
        if shaped is exported:
            return exported  # a value that is its own weak key would never be freed
        known[key] = shaped
    return known[key]


def at_shapes(job: Job, exported: ExportedProgram) -> ExportedProgram:
    """Return the program at the shapes that the files are to have.

    It is captured again: dimensions that `job.dynamic` names stay dynamic, the batch is
    `job.batch`, and every other size is the example's.

    Raises:
        ConfigError: If the model cannot take the batch, or has no such dynamic dimension.
    """
    free = dimensions(job, exported)
    names = {dimension.name for leaf in free for dimension in leaf.values()}
    unknown = next((name for name in job.dynamic if name not in names), None)
    if unknown is not None:
        if unknown == BATCH:
            raise ConfigError("--dynamic batch: the model fixes its batch")
        raise ConfigError(f"--dynamic {unknown}: no such dimension{nearest(unknown, names)}")
    args, kwargs = job.loaded.example_args, dict(job.loaded.example_kwargs)
    leading = {leaf[0].name for leaf in free if 0 in leaf}
    if not leading:
        fixed = _leading(args, kwargs)
        if fixed != job.batch and fixed is not None:
            raise ConfigError(
                f"--batch {job.batch}: the model fixes its batch; pass --batch {fixed} (`len(x)` "
                "in a forward fixes it, `x.shape[0]` does not)"
            )
    elif not leading & set(job.dynamic):
        args, kwargs = resized(args, kwargs, job.batch)
    if not names:
        return exported
    kept = [
        {axis: found.size for axis, found in leaf.items() if found.name in job.dynamic}
        for leaf in free
    ]
    forward = program.runnable(exported).forward
    shapes = export_shapes(args, kwargs, kept, forward) if any(kept) else None
    return program.retrace(exported, args, kwargs, shapes)


def dimensions(job: Job, exported: ExportedProgram) -> list[dict[int, Dimension]]:
    """Return the dimensions of each input that the captured program really leaves free."""
    declared = job.loaded.dimensions
    found = []
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    for position, name in enumerate(program.tensor_input_names(exported)):
        shape = getattr(values[name], "shape", ())
        named = declared[position] if position < len(declared) else {}
        if job.loaded.dynamic_shapes is None:  # then capture left the batch open where it could
            named = {0: Dimension(BATCH, torch.export.Dim.DYNAMIC)}
        found.append(
            {
                axis: dimension
                for axis, dimension in named.items()
                if axis < len(shape) and not isinstance(shape[axis], int)
            }
        )
    return found


def has_dynamic_batch(exported: ExportedProgram) -> bool:
    """Say whether the first dimension of an input of the program is dynamic."""
    names = set(program.tensor_input_names(exported))
    return any(
        not isinstance(size, int)
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in names
        for size in node.meta["val"].shape[:1]
    )


def _leading(args: Any, kwargs: Any) -> int | None:
    leaves = [x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
    return leaves[0].shape[0] if leaves and leaves[0].dim() else None


def resized(args: Any, kwargs: Mapping[str, Any], batch: int) -> tuple[Any, dict[str, Any]]:
    """Return the example inputs with the first dimension set to `batch`, by repetition."""
    size = _leading(args, kwargs)

    def leaf(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != size:
            return x
        return x[torch.arange(batch) % x.shape[0]]

    return pytree.tree_map(leaf, args), pytree.tree_map(leaf, dict(kwargs))


def export(
    job: Job,
    state: ModelState,
    target: Target,
    folder: Path,
    *,
    name: str,
    precision: str,
    build_key: str,
) -> Artifact:
    """Write one file of a state for a target.

    Raises:
        ExportError: If the exporter cannot take the program.
    """
    exporter = exporter_for(target.format)
    shaped = {  # further methods have their examples' shapes since capture
        m: p if m in job.loaded.methods else _shaped(job, p)
        for m, p in state.carrier_programs.items()
    }
    faces = _interfaces(job, shaped, exporter, precision)
    programs = {method: face.exported for method, face in faces.items()}
    request = ExportRequest(
        name=name,
        programs=programs,
        target=target,
        precision=precision,
        plan=state.plan.rules if state.plan is not None and precision == "int8" else "",
        input_names=job.loaded.input_names,
        output_names=job.loaded.output_names,
        input_roles=job.loaded.input_roles,
        build_key=build_key,
        dynamic=job.dynamic,
        dimensions=_dimension_names(job, state),
        further=job.loaded.methods,
    )
    problems = exporter.unsupported(request)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ExportError(f"target {name}: {problems[0]}{more}")
    artifact = exporter.export(request, folder)
    artifact = faces[FORWARD].described(artifact)
    open_ = {d for m in artifact.methods for spec in m.inputs for d in spec.shape}
    lengths = {name: size for name, size in job.lengths.items() if name in open_}
    return dataclasses.replace(artifact, lengths=lengths)


def _interfaces(
    job: Job, programs: Mapping[str, ExportedProgram], exporter: Exporter, precision: str
) -> dict[str, Interface]:
    """Give the programs the inputs and outputs that the user asked for."""
    faces = {method: Interface(exported) for method, exported in programs.items()}
    wanted = job.pixels is not None or job.quantized_io
    if not wanted:
        return faces
    if not exporter.own_interface:
        note = f"inputs and outputs are floats: {exporter.format} files take no other form here"
        return {m: dataclasses.replace(face, notes=(note,)) for m, face in faces.items()}
    if len(faces) != 1:
        raise ConfigError("--input and --quantized-io: the model has several methods")
    ((method, face),) = faces.items()
    if job.quantized_io and not job.quantizes:
        raise ConfigError(f"--quantized-io: recipe {job.recipe.name} quantizes nothing")
    if job.pixels is not None:
        roles = job.loaded.input_roles
        position = roles.index("image") if "image" in roles else 0
        face = with_pixels(face, position, job.pixels, integer=exporter.integer_pixels)
        if roles.count("image") > 1:
            note = "only the first picture is taken as pixels; the others stay normalized floats"
            face = dataclasses.replace(face, notes=(*face.notes, note))
    if job.quantized_io and precision == "int8":
        face = with_codes(face)
    return {method: face}


def _dimension_names(job: Job, state: ModelState) -> tuple[dict[int, str], ...]:
    captured = state.carrier_programs[FORWARD]
    return tuple(
        {axis: found.name for axis, found in leaf.items() if found.name in job.dynamic}
        for leaf in dimensions(job, captured)
    )
