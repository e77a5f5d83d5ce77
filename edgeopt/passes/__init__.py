"""The passes. Each family is a folder and each pass a file: the listing is the catalogue."""

from __future__ import annotations

from typing import Any

from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.registry.kinds import PASSES
from edgeopt.registry.lookup import builtin, find

_NEEDS = ("config_type", "stage", "effect")


def by_name(name: str) -> type[Pass[Any]]:
    """Return a pass class, of edgeopt or of a plug-in.

    Raises:
        ConfigError: If there is none of that name; the nearest is suggested.
        PluginError: If a plug-in's pass does not import, or is none.
    """
    return find(PASSES, name).load_class(Pass, "name", needs=_NEEDS)


def shipped() -> tuple[type[Pass[Any]], ...]:
    """Return the passes that ship with edgeopt, by family and name."""
    return tuple(entry.load_class(Pass, "name") for entry in builtin(PASSES))
