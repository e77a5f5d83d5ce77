"""What a pass is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from edgeopt.errors import ConfigError
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage

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
        untied: Pairs of weights that the pass separated on purpose.
    """

    state: ModelState
    changes: Mapping[str, str]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    untied: tuple[tuple[str, str], ...] = ()


class Pass(abc.ABC, Generic[ConfigT]):
    """One transformation. Subclasses set the class variables and write `run`.

    Attributes:
        name: The name in recipes; also the file's name.
        config_type: The frozen dataclass of its options.
        stage: Where it runs.
        effect: Whether outputs stay equal or drift.
        produces: The stage it leads to; only `capture` sets it.
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
