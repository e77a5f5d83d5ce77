"""The bundle: a folder that an app or a robot can load, and that says what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.artifacts.artifact import SCHEMA_VERSION, FileEntry, Manifest
from edgeopt.errors import BundleError
from edgeopt.files import inside, read_json, sha256, to_json, write_text
from edgeopt.results.reports import BuildReport, Check

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MANIFEST = "manifest.json"
REPORT = "report.json"
REPORT_HTML = "report.html"
LOCK = "edgeopt.lock"
UNLISTED = frozenset({MANIFEST, REPORT, REPORT_HTML, LOCK})
"""Reports hold timings; the lock and the manifest name the others."""
_SITES = ".sites.json"


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
        FileEntry(path.relative_to(folder).as_posix(), sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in UNLISTED
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    write_text(folder / MANIFEST, to_json(manifest))


def write_golden(
    folder: Path,
    method: str,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    outputs: Mapping[str, np.ndarray[Any, Any]],
) -> str:
    """Write golden vectors as `golden/<method>.npz` and return the relative path.

    Arrays are called `input:NAME` and `output:NAME`; the first dimension counts the vectors where
    it is larger than the file's batch.
    """
    path = folder / "golden" / f"{method}.npz"
    arrays: dict[str, Any] = {f"input:{name}": value for name, value in inputs.items()}
    arrays |= {f"output:{name}": value for name, value in outputs.items()}
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as failure:
        raise BundleError(f"{path}: cannot be written: {failure.strerror or failure}") from None
    return path.relative_to(folder).as_posix()


def read_golden(
    path: Path,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Read golden inputs and outputs by name.

    Raises:
        BundleError: If the file is damaged or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except Exception as failure:  # zip, header and decompression errors are unrelated types
        raise BundleError(f"{path}: is not a file of golden vectors: {failure}") from None
    inputs = {n.removeprefix("input:"): a for n, a in arrays.items() if n.startswith("input:")}
    outputs = {n.removeprefix("output:"): a for n, a in arrays.items() if n.startswith("output:")}
    if not inputs or not outputs:
        raise BundleError(f"{path}: holds no golden inputs and outputs")
    return inputs, outputs


def write_state(
    folder: Path,
    plan_name: str,
    *,
    programs: Mapping[str, Any],
    plan: Any,
    statistics: Any,
    contracts: Sequence[Any],
) -> None:
    """Write `state/<plan>/`: programs without pickled members, plan, statistics, contracts."""
    import io

    import torch

    from edgeopt.ir.edges import LastingSites
    from edgeopt.ir.program import without_traces

    place = folder / "state" / plan_name
    place.mkdir(parents=True, exist_ok=True)
    for method, exported in programs.items():
        if not _readable(exported):
            continue  # modules with odd names: verify says that there is no program
        buffer = io.BytesIO()
        torch.export.save(without_traces(exported), buffer)
        try:
            (place / f"{method}.pt2").write_bytes(buffer.getvalue())
        except OSError as failure:
            raise BundleError(f"{place}: cannot be written: {failure.strerror}") from None
        write_text(place / f"{method}{_SITES}", to_json(LastingSites.of(exported.graph)))
    if plan is not None:
        write_text(place / "plan.json", to_json(plan))
    if statistics is not None:
        write_text(place / "statistics.json", to_json(statistics))
    write_text(place / "contracts.json", to_json([c.to_json() for c in contracts]))


def _readable(exported: ExportedProgram) -> bool:
    """Say whether `read_program` takes the program's names."""
    from edgeopt.ir import edges, program

    names = all(edges.is_plain(fqn) and "/" not in fqn for fqn in program.tensors(exported))
    return names and all(site.plain for _, site in edges.sites(exported.graph))


def read_contracts(bundle: Bundle, plan_name: str) -> tuple[Any, ...]:
    """Read the contracts of one plan.

    Raises:
        BundleError: If they are missing or damaged.
    """
    import json

    from edgeopt.contracts.contract import from_json

    path = bundle.file(f"state/{plan_name}/contracts.json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise BundleError(f"{path}: cannot be read: {failure}") from None
    if not isinstance(rows, list):
        raise BundleError(f"{path}: is no list of contracts")
    return from_json(rows)


def read_programs(bundle: Bundle, plan_name: str) -> dict[str, ExportedProgram]:
    """Read the programs of one plan, by method; none where the bundle was stripped of them.

    Raises:
        BundleError: If the sites are missing or damaged.
        ModelError: If a program is damaged, or holds what could run.
    """
    from edgeopt.ir.edges import LastingSites
    from edgeopt.models.from_program import read_program

    programs = {}
    folder = f"state/{plan_name}/"
    for name in sorted(entry.path for entry in bundle.manifest.files):
        method, suffix = name.removeprefix(folder).removesuffix(".pt2"), ".pt2"
        if name != f"{folder}{method}{suffix}" or "/" in method:
            continue
        programs[method] = read_program(bundle.file(name))
        path = bundle.file(f"{folder}{method}{_SITES}")
        sites = read_json(path, LastingSites)
        if sites.schema != 1 or not all(row.site.plain for row in sites.rows):
            raise BundleError(f"{path}: is damaged, or of a newer edgeopt")
        sites.restore(programs[method].graph)
    return programs
