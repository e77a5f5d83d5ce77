"""Python children: compilers that may abort run in a process of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""Where `edgeopt` is imported from in a checkout; in an installed copy, the package itself."""


def environment() -> dict[str, str]:
    """Return an environment in which a child imports what this process does, from any folder."""
    root = PACKAGE if (PACKAGE / "edgeopt").is_dir() else PACKAGE.parent
    places = [str(root), *(str(Path(place).resolve()) for place in sys.path if place)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
