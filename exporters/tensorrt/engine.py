"""The engine build description: what the on-device script needs to know, `NAME.engine.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import IOSpec
from edgeopt.errors import ConfigError
from edgeopt.exporters.base import ExportRequest

SCHEMA_VERSION = 1
# Largest error on the device, as a share of the largest golden output. INT8 kernels may differ by
# a code at each rescale; float16 and TF32 by their 11-bit significands, over many layers.
_TOLERANCE = {"int8": 0.05, "float16": 0.02, "float32": 0.02}


@dataclasses.dataclass(frozen=True)
class Range:
    """Sizes that a dynamic dimension may have."""

    minimum: int
    optimum: int
    maximum: int


@dataclasses.dataclass(frozen=True)
class ProfileInput:
    """Shapes of one input in the optimization profile."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of the engine."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class EngineDescription:
    """What to build, how to check it and how to time it.

    Attributes:
        artifact: The artifact's name.
        onnx: The model file, beside this one.
        sha256: Its hash; the script refuses any other file.
        minimum_tensorrt: Oldest version that takes the file.
        flags: Options of trtexec for the build.
        profiles: Shapes of dynamic inputs; empty where all are static.
        timing_cache: File that the builder keeps its kernel timings in.
        method: The program's method.
        golden: Golden inputs and outputs, relative to this file.
        tolerance: Largest error allowed, as a share of the largest golden output.
        inputs: In order.
        outputs: In order.
        warmup: Calls that are not counted.
        samples: Calls that are.
        build_key: Of the build that wrote the file.
        schema: Version.
    """

    artifact: str
    onnx: str
    sha256: str
    minimum_tensorrt: str
    flags: tuple[str, ...]
    profiles: tuple[ProfileInput, ...]
    timing_cache: str
    method: str
    golden: str
    tolerance: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    warmup: int
    samples: int
    build_key: str
    schema: int = SCHEMA_VERSION


def parse_profile(text: str) -> dict[str, Range]:
    """Read `batch=1:4:8, tokens=16:64:128`.

    Raises:
        ConfigError: For any other form, or sizes that do not rise.
    """
    found: dict[str, Range] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, sizes = part.partition("=")
        try:
            minimum, optimum, maximum = (int(s) for s in sizes.split(":"))
        except ValueError:
            raise ConfigError(
                f"optimization_profile is NAME=MIN:OPT:MAX, ..., not {part!r}"
            ) from None
        if not 1 <= minimum <= optimum <= maximum:
            raise ConfigError(f"optimization_profile {part!r}: sizes must rise from at least 1")
        found[name.strip()] = Range(minimum, optimum, maximum)
    return found


def describe_engine(artifact: Artifact, request: ExportRequest) -> EngineDescription:
    """Return the description of an artifact's engine.

    Raises:
        ConfigError: If a dynamic dimension has no optimization profile.
    """
    target = request.target
    method = artifact.methods[0]
    profile = parse_profile(str(target.options.get("optimization_profile", "")))
    flags = ["--stronglyTyped", "--profilingVerbosity=detailed"]
    if target.options.get("sparse_weights"):
        flags.insert(1, "--sparsity=enable")
    tolerance = target.options.get("golden_tolerance", _TOLERANCE[artifact.precision])
    return EngineDescription(
        artifact=artifact.name,
        onnx=artifact.model_file.path,
        sha256=artifact.model_file.sha256,
        minimum_tensorrt=target.minimum_runtime or "10.0",
        flags=tuple(flags),
        profiles=tuple(_profiles(method.inputs, profile)),
        timing_cache=f"{artifact.name}.timing.cache",
        method=method.name,
        golden=f"golden/{artifact.name}.npz",
        tolerance=float(tolerance),
        inputs=tuple(_tensor(spec) for spec in method.inputs),
        outputs=tuple(_tensor(spec) for spec in method.outputs),
        warmup=target.protocol.warmup,
        samples=target.protocol.samples,
        build_key=request.build_key,
    )


def _tensor(spec: IOSpec) -> Tensor:
    return Tensor(spec.name, spec.dtype, spec.shape)


def _profiles(inputs: tuple[IOSpec, ...], profile: Mapping[str, Range]) -> list[ProfileInput]:
    if not any(isinstance(size, str) for spec in inputs for size in spec.shape):
        return []
    found = []
    for spec in inputs:
        ranges = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                ranges.append(Range(size, size, size))
                continue
            # torch names dimensions by symbols of its own; the first one is the batch.
            name = "batch" if axis == 0 and size not in profile else size
            if name not in profile:
                raise ConfigError(
                    f"input {spec.name}: dimension {name!r} is dynamic and has no optimization "
                    f'profile; set optimization_profile = "{name}=MIN:OPT:MAX"'
                )
            ranges.append(profile[name])
        found.append(
            ProfileInput(
                spec.name,
                tuple(r.minimum for r in ranges),
                tuple(r.optimum for r in ranges),
                tuple(r.maximum for r in ranges),
            )
        )
    return found
