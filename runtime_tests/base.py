"""What every runner is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How a file is loaded.

    Attributes:
        threads: Threads of the runtime.
        optimize: Whether the runtime may optimize the graph.
    """

    threads: int = 1
    optimize: bool = True


class Session(Protocol):
    """A loaded file."""

    def run(self, method: str, inputs: Arrays) -> Arrays:
        """Run one method; outputs by name, in the file's order."""
        ...

    def example_inputs(self, method: str, *, seed: int = 0) -> Arrays:
        """Make inputs that a method takes: normal floats, zero integers, 1 for a dynamic size."""
        ...

    def close(self) -> None:
        """Free what the session holds."""
        ...


@runtime_checkable
class RemoteSession(Session, Protocol):
    """A session in another process, which takes times itself: a message would be part of them."""

    def prepare(self, method: str, inputs: Arrays) -> None:
        """Keep the inputs of the calls that `timed` makes."""
        ...

    def holds(self, sessions: Sequence[Self]) -> bool:
        """Say whether this session's process holds all of them."""
        ...

    def timed(self, order: Sequence[Self]) -> list[float]:
        """Make one prepared call of each session, in this order, and return milliseconds."""
        ...


class Runner(Protocol):
    """One runtime."""

    @property
    def runtime(self) -> str:
        """The name in profiles."""
        ...

    def unavailable(self) -> str | None:
        """Return why it cannot run here, in words a user can act on, or None."""
        ...

    def version(self) -> str:
        """Return the runtime's name and version, `onnxruntime 1.31.1`."""
        ...

    def load(self, files: Sequence[Path], options: LoadOptions) -> Session:
        """Load a model file (the first of `files`).

        Raises:
            RuntimeUnavailable: If the runtime is missing.
            BundleError: If the file cannot be loaded.
        """
        ...
