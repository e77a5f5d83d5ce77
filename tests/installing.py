"""Install packages by hand, as pip would leave them: quick, and as broken as a test wants."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping
from pathlib import Path

from edgeopt.registry import plugins


def install(
    site: Path,
    name: str,
    points: Mapping[str, Mapping[str, str]] | str,
    files: Mapping[str, str] | None = None,
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
) -> None:
    """Put a package into a folder of `sys.path`.

    Args:
        site: The folder.
        name: The package's name on the index.
        points: Group -> name -> place; or the text of `entry_points.txt`.
        files: Path -> content.
        version: Its version.
        requires: What it requires.
    """
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not isinstance(points, str):
        points = "\n".join(
            line
            for group, rows in points.items()
            for line in (f"[{group}]", *(f"{key} = {place}" for key, place in rows.items()))
        )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    for path, content in (files or {}).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(textwrap.dedent(content), encoding="utf-8")
    importlib.invalidate_caches()
    plugins.installed.cache_clear()
