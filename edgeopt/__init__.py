"""edgeopt compiles a torch model for a device: passes, export, run, judge, bundle."""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from edgeopt.version import __version__

# The sibling folders install as edgeopt.exporters etc. (see pyproject.toml).
# In a source checkout they sit beside this one, so look there as well.
if (_root := _Path(__file__).resolve().parent.parent).joinpath("pyproject.toml").is_file():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from edgeopt.api.build import BuildOutcome, build

__all__ = ["BuildOutcome", "__version__", "build"]


def __getattr__(name: str) -> Any:
    # torch is imported only when something is built.
    if name in ("build", "BuildOutcome"):
        from edgeopt.api import build as module

        return getattr(module, name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
