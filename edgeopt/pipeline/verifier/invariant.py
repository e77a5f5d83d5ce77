"""What an invariant of the verifier is: a function of one step of a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import ModelState


@dataclasses.dataclass(frozen=True)
class Violation:
    """A broken invariant."""

    invariant: str
    site: str
    message: str


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What is remembered of a state before a pass edits it.

    Attributes:
        state: The state; its module may be edited in place by the pass.
        outputs: Outputs on the example, or None below `full`.
        digest: Hash of weights and structure.
        names: FQNs of modules and tensors, and addresses of graph sites.
        tied: Groups of parameter names that share storage.
        residue: Hooks, parametrizations and the like, by module.
        ranges: The graph's dynamic-shape constraints as text.
    """

    state: ModelState
    outputs: list[Tensor] | None
    digest: str
    names: frozenset[str]
    tied: frozenset[frozenset[str]]
    residue: frozenset[str]
    ranges: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass, seen by the invariants."""

    pass_: Pass[Any]
    before: Snapshot
    result: PassResult
    after: Snapshot
    ctx: PassContext
    drift_db: float | None

    @property
    def state(self) -> ModelState:
        """The state after the pass."""
        return self.result.state


Invariant = Callable[[Step], Iterator[Violation]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    check: Invariant
    outputs: bool = False
