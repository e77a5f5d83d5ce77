"""What mkdocs does besides building pages: files of the top folder as pages, and an offline check.

mkdocs calls `on_files` and `on_post_build` by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# page: the file of the top folder that it shows
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# What a browser fetches by itself when it opens a page. Links that a reader may follow are not.
_TAG = re.compile(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", re.I)
_PLACE = re.compile(r"""\b(?:src|href|srcset|data)\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)""", re.I)
_IN_STYLES = re.compile(
    r"""(?:url\(\s*["']?|@import\s+["'])\s*((?:https?:)?//[^"')\s]+)""", re.I
)  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the top folder as pages."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = as_page((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_post_build(config: Any) -> None:
    """Fail the build if a page fetches anything from another place."""
    from mkdocs.exceptions import PluginError

    found = [f"{path}: {place}" for path, place in fetched(Path(config["site_dir"]))]
    if found:
        raise PluginError("the site is not self-contained:\n" + "\n".join(found))


def as_page(text: str) -> str:
    """Turn the links of a file of the top folder into links between pages.

    A file that is no page (LICENSE, a source file) keeps its name and loses its link.
    """
    pages = {source: page for page, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        shown, place, anchor = match.groups(default="")
        if place in pages:
            return f"[{shown}]({pages[place]}{anchor})"
        if place.startswith("docs/"):
            return f"[{shown}]({place.removeprefix('docs/')}{anchor})"
        return shown

    return re.sub(r"\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def fetched(site: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, address) of each thing from elsewhere that a page or style sheet loads."""
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        places = [p for tag in _TAG.findall(text) for p in _PLACE.findall(tag)]
        for place in (*places, *_IN_STYLES.findall(text)):
            yield path.relative_to(site), place
    for path in sorted(site.rglob("*.css")):
        for place in _IN_STYLES.findall(path.read_text(encoding="utf-8")):
            yield path.relative_to(site), place
