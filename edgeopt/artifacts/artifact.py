"""What exporters write: an artifact, its files, and where its tensors are in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.artifacts.interface import Method
from edgeopt.errors import BundleError
from edgeopt.files import sha256


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file, relative to the bundle's folder."""

    path: str
    sha256: str
    size_bytes: int

    @staticmethod
    def of(path: Path, folder: Path | None = None) -> FileEntry:
        """Describe a file that is there.

        Args:
            path: The file.
            folder: The bundle's; the file's own if left out.

        Raises:
            BundleError: If it cannot be read.
        """
        name = path.relative_to(folder or path.parent).as_posix()
        try:
            return FileEntry(name, sha256(path), path.stat().st_size)
        except OSError as failure:
            raise BundleError(f"{path}: cannot be read: {failure.strerror or failure}") from None


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a weight went.

    Attributes:
        name: The tensor's name in the file.
        transform: `identity` or `transpose` (the stored tensor is the model's, transposed).
    """

    name: str
    transform: str = "identity"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported form of the model.

    Attributes:
        name: Unique in the bundle: `tensorrt`, `onnxruntime`, `onnxruntime-float32`.
        target: The profile's target that it is for.
        format: The exporter.
        precision: `float32`, `float16` or `int8`.
        plan: The rule set of its plan; empty where nothing is quantized. Artifacts with the same
            value share a plan.
        files: The model file first.
        methods: The entry points.
        tensor_map: FQN -> tensor in the file.
        edge_map: Quantized edge id -> tensor of its codes in the file.
        tools: Name -> version of what wrote it.
        options: What the exporter was told.
        notes: What a user should know: islands, fallbacks, rewrites.
        lengths: Dynamic dimension -> the size at which its products are counted; 1 if left out.
    """

    name: str
    target: str
    format: str
    precision: str
    plan: str
    files: tuple[FileEntry, ...]
    methods: tuple[Method, ...]
    tensor_map: Mapping[str, TensorEntry]
    edge_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tools: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def model_file(self) -> FileEntry:
        """The file that a runtime loads."""
        return self.files[0]
