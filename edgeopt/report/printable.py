"""Names come from files of others: what is shown must not steer a terminal or reorder a page."""

from __future__ import annotations

_INSTEAD = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """Replace control and direction characters, but for line ends and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else _INSTEAD for c in text)
