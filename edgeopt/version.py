"""The versions of edgeopt and of what it works with."""

from __future__ import annotations

__version__ = "0.1.0"


def tool_versions(*distributions: str) -> dict[str, str]:
    """Return the versions of edgeopt and of distributions; one that is missing says so."""
    import importlib.metadata as metadata

    found = {"edgeopt": __version__}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
