"""The stages of a build: each is announced, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgeopt.progress import Progress


class Stages:
    """Announce each stage as it begins, and keep how long it took.

    Attributes:
        seconds: Stage -> seconds, of those that ended.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the block as a stage; of a stage that comes twice the times are added."""
        self._progress(name, 0, None)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
