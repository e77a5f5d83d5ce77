"""The pipeline that checks, runs and records passes."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

from edgeopt.errors import ConfigError, EdgeOptError, PassError, PipelineError, PreconditionError
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import ModelState, PassRecord, Phase, Stage


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run. Order is checked before any model is touched.

    Raises:
        PipelineError: If a pass stands where its stage, phase or predecessors do not fit.
    """

    passes: tuple[Pass[Any], ...]
    start: Stage = Stage.MODULE
    start_phase: Phase = Phase.FLOAT
    already: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        stage, phase = self.start, self.start_phase
        seen = set(self.already)
        for pass_ in self.passes:
            if pass_.stage is not stage:
                hint = (
                    "it changes modules, so put it before capture"
                    if pass_.stage < stage
                    else "put capture before it"
                )
                raise PipelineError(
                    f"{pass_.name} runs at {pass_.stage.name}, but stands where the model is at "
                    f"{stage.name}; {hint}"
                )
            if stage is not Stage.MODULE and pass_.from_phase is not phase:
                raise PipelineError(
                    f"{pass_.name} needs a {pass_.from_phase.name} graph, but the graph is "
                    f"{phase.name} there"
                )
            missing = sorted(pass_.must_follow - seen)
            if missing:
                raise PipelineError(f"{pass_.name} must come after {', '.join(missing)}")
            seen.add(pass_.name)
            stage = pass_.produces if pass_.produces is not None else stage
            phase = pass_.to_phase if pass_.stage is not Stage.MODULE else phase

    def run(
        self,
        state: ModelState,
        ctx: PassContext,
        *,
        verify: str = "full",
        in_place: bool = False,
    ) -> ModelState:
        """Run the passes.

        Args:
            state: Where to start. A module is copied once, so the caller's stays as it is.
            ctx: What passes may read.
            verify: `full`, `edited` (cheap checks, no forward passes) or `off`.
            in_place: Edit the caller's module.

        Raises:
            PassError: Named after the pass, with those that had run before it.
        """
        import copy

        from edgeopt.pipeline.verifier.check import Level, check_step

        levels = [level.value for level in Level]
        if verify not in levels:
            raise ConfigError(f"verify is {', '.join(levels)}, not {verify!r}")
        if state.stage is not self.start:
            raise PipelineError(
                f"the pipeline starts at {self.start.name}, the state is at {state.stage.name}"
            )
        if any(p.needs_calibration for p in self.passes) and ctx.calibration is None:
            name = next(p.name for p in self.passes if p.needs_calibration)
            raise PreconditionError(
                f"{name}: needs calibration data; pass --calib (or calibration=...)"
            )
        if state.module is not None and not in_place:
            state = dataclasses.replace(state, module=copy.deepcopy(state.module))
        level = Level(verify)
        for index, pass_ in enumerate(self.passes):
            ctx.progress(pass_.name, index, len(self.passes))
            state = self._step(pass_, state, ctx, level, check_step)
        return state

    def _step(
        self,
        pass_: Pass[Any],
        state: ModelState,
        ctx: PassContext,
        level: Any,
        check_step: Any,
    ) -> ModelState:
        from edgeopt.pipeline.verifier.check import snapshot

        scoped = dataclasses.replace(
            ctx, scope=f"{pass_.name} {json.dumps(pass_.options(), sort_keys=True, default=str)}"
        )
        doing = "the model does not run on the example before it"
        try:
            pass_.requires(state, scoped)
            taken = snapshot(state, scoped, level)
            doing = ""
            started = time.perf_counter()
            result = pass_.run(state, scoped)
            seconds = time.perf_counter() - started
            pass_.ensures(state, result.state, scoped)
            doing = "the model does not run on the example after it"
            drift_db = check_step(pass_, taken, result, scoped, level)
        except PassError as failure:
            raise type(failure)(f"{failure}{_ran_before(state)}") from failure
        except EdgeOptError:
            raise
        except Exception as failure:
            raise PassError(
                f"{pass_.name}: {doing + ': ' if doing else ''}{type(failure).__name__}: "
                f"{_one_line(failure)}{_ran_before(state)}"
            ) from failure
        record = PassRecord(
            name=pass_.name,
            config=pass_.options(),
            changes=dict(result.changes),
            skipped=dict(result.skipped),
            drift_db=drift_db,
            seconds=seconds,
            notes=result.notes,
        )
        return dataclasses.replace(result.state, history=(*state.history, record))


def _ran_before(state: ModelState) -> str:
    return f" (passes that ran before: {', '.join(r.name for r in state.history) or 'none'})"


def _one_line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else "no message"
