"""Which sites a glob names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from edgeopt.errors import ConfigError


def select(names: Iterable[str], patterns: Iterable[str], *, who: str, what: str) -> set[str]:
    """Return the names that any glob selects, or something below it.

    Args:
        names: What there is.
        patterns: Globs; each must select something.
        who: What an error begins with: the pass.
        what: What the names are, for the error.

    Raises:
        ConfigError: If a glob selects nothing; the nearest name is suggested.
    """
    every = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        hit = {
            n
            for n in every
            if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")
        }
        if not hit:
            near = nearest_name(pattern, every)
            raise ConfigError(f"{who}: pattern {pattern!r} matches no {what}{near}")
        chosen |= hit
    return chosen


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return `; the nearest is X`, or nothing where none is near: a model has too many to list."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.3)
    return f"; the nearest is {close[0]!r}" if close else ""
