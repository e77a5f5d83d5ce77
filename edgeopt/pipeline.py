"""Passes, and the pipeline that checks, runs and records them."""

from __future__ import annotations

import abc
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from edgeopt.errors import ConfigError, EdgeOptError, PassError, PipelineError, PreconditionError
from edgeopt.state import Effect, ModelState, PassContext, PassRecord, Phase, Stage

ConfigT = TypeVar("ConfigT")

WARNING = "warning: "
"""A pass's note that begins so is shown at the top of the report."""


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        state: The new state, without a new history line (the pipeline writes it).
        changes: Site -> what happened, in words.
        skipped: Site -> why not.
        notes: Findings that belong to no single site.
        moved: Old edge id -> new edge id.
        untied: Pairs of weights that the pass separated on purpose.
    """

    state: ModelState
    changes: Mapping[str, str]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    moved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    untied: tuple[tuple[str, str], ...] = ()

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.changes)


class Pass(abc.ABC, Generic[ConfigT]):
    """One transformation. Subclasses set the class variables and write `run`.

    Attributes:
        name: The name in recipes; also the file's name.
        config_type: The frozen dataclass of its options.
        stage: Where it runs.
        effect: Whether outputs stay equal or drift.
        produces: The stage it leads to; only `capture` and `lower_integer` set it.
        from_phase: The phase that it needs on a GRAPH.
        to_phase: The phase that it leads to.
        must_follow: Names of passes that must stand before it.
        needs_calibration: Whether it reads calibration data; an instance may need none by its
            options.
    """

    name: ClassVar[str]
    config_type: ClassVar[type]
    stage: ClassVar[Stage]
    effect: ClassVar[Effect]
    produces: ClassVar[Stage | None] = None
    from_phase: ClassVar[Phase] = Phase.FLOAT
    to_phase: ClassVar[Phase] = Phase.FLOAT
    must_follow: ClassVar[frozenset[str]] = frozenset()
    needs_calibration: bool = False

    def __init__(self, config: ConfigT | None = None) -> None:
        self.config: ConfigT = self.config_type() if config is None else config
        if not isinstance(self.config, self.config_type):
            raise ConfigError(
                f"{self.name}: options are a {self.config_type.__name__}, "
                f"not {type(self.config).__name__}"
            )

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        """Raise PreconditionError if the pass cannot run on `state`."""

    @abc.abstractmethod
    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        """Return the new state with what changed and what was skipped, per site."""

    def ensures(self, before: ModelState, after: ModelState, ctx: PassContext) -> None:
        """Raise PostconditionError if the result breaks the pass's own promise."""

    def options(self) -> dict[str, Any]:
        """Return the options as plain data."""
        from edgeopt.files import to_plain

        plain: dict[str, Any] = to_plain(self.config)
        return plain


class Observer(Protocol):
    """Instrumentation: timing, progress, dumping. It never changes the state."""

    def before(self, pass_: Pass[Any], state: ModelState) -> None:
        """Called before a pass runs."""

    def after(self, pass_: Pass[Any], state: ModelState, record: PassRecord) -> None:
        """Called after a pass ran and was verified."""


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
                    else f"put {'capture' if pass_.stage is Stage.GRAPH else 'lower_integer'} "
                    "before it"
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
        observers: Sequence[Observer] = (),
        in_place: bool = False,
    ) -> ModelState:
        """Run the passes.

        Args:
            state: Where to start. A module is copied once, so the caller's stays as it is.
            ctx: What passes may read.
            verify: `full`, `edited` (cheap checks, no forward passes) or `off`.
            observers: Instrumentation.
            in_place: Edit the caller's module.

        Raises:
            PassError: Named after the pass, with those that had run before it.
        """
        import copy

        from edgeopt.verify import Level, check_step

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
            state = self._step(pass_, state, ctx, level, observers, check_step)
        return state

    def _step(
        self,
        pass_: Pass[Any],
        state: ModelState,
        ctx: PassContext,
        level: Any,
        observers: Sequence[Observer],
        check_step: Any,
    ) -> ModelState:
        from edgeopt.verify import snapshot

        scoped = dataclasses.replace(
            ctx, scope=f"{pass_.name} {json.dumps(pass_.options(), sort_keys=True, default=str)}"
        )
        for observer in observers:
            observer.before(pass_, state)
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
            moved=dict(result.moved),
        )
        after = dataclasses.replace(result.state, history=(*state.history, record))
        for observer in observers:
            observer.after(pass_, after, record)
        return after


def _ran_before(state: ModelState) -> str:
    return f" (passes that ran before: {', '.join(r.name for r in state.history) or 'none'})"


def _one_line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else "no message"
