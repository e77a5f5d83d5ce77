"""Where the files of this package are."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def profile() -> Path:
    """Return the path of `sample-device`."""
    return HERE / "device.toml"


def recipe() -> Path:
    """Return the path of `sample-recipe`."""
    return HERE / "recipe.toml"


def rules() -> Path:
    """Return the path of `sample-rules`."""
    return HERE / "rules.toml"
