"""The bundle: a folder that an app or a robot can load, and that says what it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeopt.artifacts.artifact import FileEntry
from edgeopt.artifacts.manifest import SCHEMA_VERSION, Manifest
from edgeopt.errors import BundleError
from edgeopt.files import inside, read_json, sha256, to_json, write_text
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import Check

MANIFEST = "manifest.json"


REPORT = "report.json"


REPORT_HTML = "report.html"


LOCK = "edgeopt.lock"


UNLISTED = frozenset({MANIFEST, REPORT, REPORT_HTML, LOCK})
"""Reports hold timings; the lock and the manifest name the others."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read a bundle's manifest.

        Raises:
            BundleError: If the folder or manifest is missing, damaged, or of another schema, or
                names a file outside the folder.
        """
        if not path.is_dir():
            what = "a file" if path.exists() else "no such folder"
            raise BundleError(f"{path}: is not a bundle ({what})")
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path}: is not a bundle (no {MANIFEST})")
        manifest = read_json(path / MANIFEST, Manifest)
        if manifest.schema != SCHEMA_VERSION:
            raise BundleError(
                f"{path / MANIFEST}: schema {manifest.schema}; this edgeopt reads {SCHEMA_VERSION}"
            )
        for entry in manifest.files:
            inside(path, entry.path)
        for artifact in manifest.artifacts:
            for entry in artifact.files:
                inside(path, entry.path)
        return Bundle(path, manifest)

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle.

        Raises:
            BundleError: If it is missing or leaves the folder.
        """
        path = inside(self.path, name)
        if not path.is_file():
            raise BundleError(f"{self.path}: {name} is missing; build the bundle again")
        return path

    def report(self) -> BuildReport:
        """Read `report.json`."""
        return read_json(self.file(REPORT), BuildReport)

    def checksums(self) -> list[Check]:
        """Compare every listed file with its SHA-256, and name files that are not listed."""
        found = []
        listed = {entry.path for entry in self.manifest.files}
        for entry in self.manifest.files:
            path = inside(self.path, entry.path)
            if not path.is_file():
                found.append(Check(f"file {entry.path}", False, "is missing"))
            elif path.stat().st_size != entry.size_bytes:
                size = path.stat().st_size
                found.append(
                    Check(f"file {entry.path}", False, f"{size} bytes, not {entry.size_bytes}")
                )
            elif sha256(path) != entry.sha256:
                found.append(Check(f"file {entry.path}", False, "SHA-256 differs"))
            else:
                found.append(Check(f"file {entry.path}", True))
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = path.relative_to(self.path).as_posix()
            if name not in listed and name not in UNLISTED and not name.startswith("measured"):
                found.append(Check(f"file {name}", False, "is not in the manifest"))
        return found


def entries(folder: Path) -> tuple[FileEntry, ...]:
    """Describe every file of a folder that the manifest lists, sorted by path."""
    return tuple(
        FileEntry.of(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in UNLISTED
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    write_text(folder / MANIFEST, to_json(manifest))
