"""What a folder of app assets holds; its `manifest.json`, and what `edgeopt assets` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgeopt.artifacts.artifact import FileEntry
from edgeopt.artifacts.interface import Method, Preprocessing
from edgeopt.errors import BundleError
from edgeopt.files import inside, read_json
from edgeopt.results.verdicts import Check

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
KIND = "edgeopt app assets"


@dataclasses.dataclass(frozen=True)
class AssetModel:
    """One model file, and how it is called.

    Attributes:
        name: The artifact's name in the bundle.
        format: The exporter.
        precision: `float32`, `float16` or `int8`.
        file: What the runtime loads.
        files: All its files, the model file first.
        runtime: What loads it.
        minimum_runtime: The oldest version that takes it, or empty: not known.
        methods: Entry points with inputs and outputs; `quantization` is set where the file itself
            takes or gives codes.
        golden: The index of its golden vectors, or empty.
        tools: Versions of what wrote it.
    """

    name: str
    format: str
    precision: str
    file: str
    files: tuple[str, ...]
    runtime: str
    minimum_runtime: str
    methods: tuple[Method, ...]
    golden: str
    tools: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class AppManifest:
    """What the folder holds.

    Attributes:
        kind: Always `edgeopt app assets`; a bundle's manifest has none.
        name: The model's name in the app.
        platform: `android`, `ios` or `jetson`.
        model: The model that was compiled, without the folders of whoever compiled it.
        profile: The device profile.
        recipe: The recipe.
        edgeopt: Version that built the bundle.
        build_key: The bundle's.
        tools: Tool versions of the build.
        models: The model files.
        files: Every file but this one.
        preprocessing: For picture models, also in `preprocessing.json`; or None.
        labels: File with one class name a line, or empty.
        adapters: Names of fused adapters.
        notices: File with sources and licences.
        schema: Version of this schema.
    """

    kind: str
    name: str
    platform: str
    model: str
    profile: str
    recipe: str
    edgeopt: str
    build_key: str
    tools: Mapping[str, str]
    models: tuple[AssetModel, ...]
    files: tuple[FileEntry, ...]
    preprocessing: Preprocessing | None = None
    labels: str = ""
    adapters: tuple[str, ...] = ()
    notices: str = ""
    schema: int = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class AssetsResult:
    """What `edgeopt assets` wrote.

    Attributes:
        path: The folder that the app loads.
        manifest: Its manifest.
        size_bytes: Of all files together.
        left_out: Artifact of the bundle -> why it is not there.
        checks: What was checked in the written folder.
        warnings: What a user should read first.
        schema: Version.
    """

    path: str
    manifest: AppManifest
    size_bytes: int
    left_out: Mapping[str, str]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION


def read_manifest(folder: Path) -> AppManifest:
    """Read a folder's manifest.

    Raises:
        BundleError: If it is missing, damaged, of another kind or schema, or names a file outside
            the folder.
    """
    path = folder / MANIFEST
    manifest = read_json(path, AppManifest)
    if manifest.kind != KIND:
        raise BundleError(f"{path}: is of kind {manifest.kind!r}, not {KIND!r}")
    if manifest.schema != SCHEMA_VERSION:
        raise BundleError(f"{path}: schema {manifest.schema}; this edgeopt reads {SCHEMA_VERSION}")
    for entry in manifest.files:
        inside(folder, entry.path)
    return manifest
