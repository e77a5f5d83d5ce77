"""Regular expressions out of files that others wrote."""

from __future__ import annotations

import functools
import re

from edgeopt.errors import ConfigError

MAX_LENGTH = 2000
MAX_REPEATS = 5
MAX_OPTIONALS = 10
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")
_REPEAT = re.compile(r"(?<!\\)(?:[*+]|\{\d*,)")
_OPTIONAL = re.compile(r"(?<![\\(*+}?])\?")


def too_involved(expression: str) -> str:
    """Say why matching an expression with a module's name could take forever, or nothing.

    Backtracking is exponential in a repeated group that repeats inside, `(a+)+`, and in a chain of
    optional parts; it is a polynomial of as many repeats as stand side by side.
    """
    shown = f"pattern {expression[:80]!r}"
    if len(expression) > MAX_LENGTH:
        return f"{shown} has {len(expression)} characters"
    if _REPEATED_GROUP.search(expression):
        return f"{shown} repeats a group, which can take forever"
    many = len(_REPEAT.findall(expression)) > MAX_REPEATS
    if many or len(_OPTIONAL.findall(expression)) > MAX_OPTIONALS:
        return f"{shown} repeats too often, which can take forever"
    return ""


@functools.lru_cache(maxsize=4096)
def compile_pattern(expression: str) -> re.Pattern[str]:
    """Compile an expression that is not too involved.

    Raises:
        ConfigError: If it is.
        re.error: If it is no regular expression.
    """
    if involved := too_involved(expression):
        raise ConfigError(involved)
    return re.compile(expression)
