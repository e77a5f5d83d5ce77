"""The error tree. Each class says which exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgeOptError(Exception):
    """Base of every error that edgeopt raises on purpose.

    The message is one line: what, where, and what to do.
    """

    exit_code: ClassVar[int] = 2


class ConfigError(EdgeOptError):
    """An option, recipe or pattern that cannot be meant."""


class ProfileError(ConfigError):
    """A device profile that cannot be read, or asks for what does not exist."""


class PluginError(ConfigError):
    """A plug-in that does not import, or is not what its entry point says."""


class ModelError(EdgeOptError):
    """A model that cannot be loaded, or whose weights are unusable."""


class AdapterError(EdgeOptError):
    """An adapter that cannot be read, cannot be fused, or belongs to another base."""


class DataError(EdgeOptError):
    """Calibration or evaluation data that is missing, empty or of the wrong shape."""


class PipelineError(EdgeOptError):
    """An order of passes that cannot work; raised before any model is touched."""


class PassError(EdgeOptError):
    """A pass that could not do its work."""


class PreconditionError(PassError):
    """The state is not what the pass needs."""


class PostconditionError(PassError):
    """The result breaks the pass's own promise."""


class InvariantError(PassError):
    """The verifier found a broken invariant after a pass."""


class CaptureError(PassError):
    """The module could not be captured as a graph."""


class ExportError(EdgeOptError):
    """A target that cannot take the program, or a written file that is not what it should be."""


class BundleError(EdgeOptError):
    """A bundle, manifest or output folder that cannot be read or written."""


class CheckFailed(EdgeOptError):
    """A check ran and failed: damaged contents, a broken contract, a missed limit."""

    exit_code = 1


class RuntimeUnavailable(EdgeOptError):
    """This machine lacks the runtime that was asked for."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)`, or the known words where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else ""
