"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called with (what, done, total); the total is None where it is not known."""


def no_progress(_what: str, _done: int, _total: int | None) -> None:
    """Report to nobody."""
