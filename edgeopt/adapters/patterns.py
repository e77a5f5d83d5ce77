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


@functools.lru_cache(maxsize=4096)
def compile_pattern(expression: str) -> re.Pattern[str]:
    """Compile an expression that cannot take forever on a module's name.

    Backtracking is exponential in a repeated group that repeats inside, `(a+)+`, and in a chain of
    optional parts; it is a polynomial of as many repeats as stand side by side. Configurations
    need few of either.

    Raises:
        ConfigError: If it is too long, repeats a group, or repeats too often.
        re.error: If it is no regular expression.
    """
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"a pattern of {len(expression)} characters is refused")
    if _REPEATED_GROUP.search(expression):
        raise ConfigError(f"pattern {expression!r} repeats a group, which can take forever")
    many = len(_REPEAT.findall(expression)) > MAX_REPEATS
    if many or len(_OPTIONAL.findall(expression)) > MAX_OPTIONALS:
        raise ConfigError(f"pattern {expression!r} repeats too often, which can take forever")
    return re.compile(expression)
