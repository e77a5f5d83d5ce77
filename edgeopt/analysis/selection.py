"""Which sites a glob names."""

from __future__ import annotations

from collections.abc import Iterable


def select(names: Iterable[str], patterns: Iterable[str]) -> tuple[set[str], list[str]]:
    """Return the names that any glob selects, and the globs that select nothing."""
    import fnmatch

    every = list(names)
    chosen: set[str] = set()
    idle: list[str] = []
    for pattern in patterns:
        hit = {
            n
            for n in every
            if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")
        }
        if not hit:
            idle.append(pattern)
        chosen |= hit
    return chosen, idle
