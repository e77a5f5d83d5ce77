"""What exporters write, and the manifest that describes a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class IOQuantization:
    """Affine parameters of a quantized input or output."""

    dtype: str
    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class Pixels:
    """8-bit pixels in place of normalized floats: `float = (pixel / 255 - mean) / std`.

    Attributes:
        mean: Per channel.
        std: Per channel.
        layout: Of the pixels; the floats are NCHW.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NHWC"


@dataclasses.dataclass(frozen=True)
class IOSpec:
    """One input or output.

    Attributes:
        name: Its name in the file.
        dtype: `float32`, `int64`, ...
        shape: Sizes; a string names a dynamic dimension.
        role: `image`, `tokens`, `mask`, `position`, `cache`, `logits` or `tensor`.
        path: Where the leaf stands in the model's own arguments or outputs.
        quantization: Set where the file itself takes or gives codes.
        pixels: Set where the file takes 8-bit pixels and normalizes them itself.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: str = "tensor"
    path: str = ""
    quantization: IOQuantization | None = None
    pixels: Pixels | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry point of a file."""

    name: str
    inputs: tuple[IOSpec, ...]
    outputs: tuple[IOSpec, ...]


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file, relative to the bundle's folder."""

    path: str
    sha256: str
    size_bytes: int


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


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input, so that an app can repeat it.

    Pixels are scaled to [0, 1], then `(x - mean) / std` per channel.

    Attributes:
        resize: Short side after resizing, or 0: none.
        crop: Side of the centre crop, or 0: none.
        mean: Per channel.
        std: Per channel.
        channels: `RGB`, `BGR` or `L`.
        layout: `NCHW` or `NHWC`.
        interpolation: How pictures are resized.
    """

    resize: int = 0
    crop: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a bundle holds; `manifest.json`.

    Attributes:
        edgeopt: Version that wrote it.
        model: The model as named on the command line, and its adapters.
        profile: The profile's name.
        recipe: The recipe's name.
        build_key: Hash of source, recipe, profile, data, seed and tool versions.
        hashes: The parts of the build key: `weights`, `recipe`, `profile`, `calibration`, ...
        seed: The seed.
        tools: Tool versions.
        artifacts: The exported forms.
        files: Every file but the reports, the lock and the manifest itself.
        preprocessing: For picture models, or None.
        labels: Class names, or empty.
        adapters: Names of fused adapters.
        minimum_runtime: Runtime -> oldest version that takes the files.
        golden: Method -> file with golden inputs and outputs.
        schema: Version of this schema.
    """

    edgeopt: str
    model: str
    profile: str
    recipe: str
    build_key: str
    hashes: Mapping[str, str]
    seed: int
    tools: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    files: tuple[FileEntry, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    minimum_runtime: Mapping[str, str] = dataclasses.field(default_factory=dict)
    golden: Mapping[str, str] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def artifact(self, name: str) -> Artifact:
        """Return an artifact by name.

        Raises:
            BundleError: If there is none.
        """
        from edgeopt.errors import BundleError, nearest

        found = {a.name: a for a in self.artifacts}
        if name not in found:
            raise BundleError(f"artifact {name!r} is not in the bundle{nearest(name, found)}")
        return found[name]
