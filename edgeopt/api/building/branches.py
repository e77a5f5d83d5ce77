"""From a loaded model to legalized programs: one trunk, a branch for each target."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgeopt.api.building.job import Job
from edgeopt.api.building.shapes import has_dynamic_batch, leading_size
from edgeopt.devices.profile import Target
from edgeopt.devices.rules import load_rules
from edgeopt.errors import PipelineError
from edgeopt.ir.calls import FORWARD
from edgeopt.passes import by_name
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState, PassRecord, Phase, Stage
from edgeopt.recipes.recipe import Recipe
from edgeopt.results.reports import PassRow
from edgeopt.results.verdicts import finite_db

TRUNK = "trunk"


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
    fixed = None if dynamic else leading_size(*example)
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
