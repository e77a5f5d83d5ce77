"""How exporters put checked files into a folder: all of them whole, or none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgeopt.artifacts.artifact import FileEntry
from edgeopt.files import atomic_file


def publish(folder: Path, contents: Mapping[str, bytes | str | Path]) -> tuple[FileEntry, ...]:
    """Write files that belong together, and describe them.

    All are written in full before the first takes its name. The first, the model, takes it last:
    where that file is there, the others are.

    Args:
        folder: Where; it is made if it is missing.
        contents: File name -> bytes, text, or a file to copy.

    Raises:
        BundleError: If the folder is read-only, or the disk is full; older files of these names
            stay as they were.
    """
    with contextlib.ExitStack() as stack:  # leaves in reverse order
        for name, content in contents.items():
            partial = stack.enter_context(atomic_file(folder / name))
            if isinstance(content, Path):
                shutil.copyfile(content, partial)
            else:
                partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return tuple(FileEntry.of(folder / name) for name in contents)
