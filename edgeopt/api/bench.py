"""Latency of a bundle or of a plain ONNX file, alone or against another, on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.bundle import Bundle
from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.results import BenchResult
from edgeopt.state import no_progress
from edgeopt.target import Protocol

FORMAT = "onnx"


@dataclasses.dataclass(frozen=True)
class _File:
    """What is timed: its name in the result, the file, the program's method, its inputs."""

    name: str
    path: Path
    method: str
    inputs: Mapping[str, Any]


def run_bench(
    path: Path,
    against: Path | None = None,
    protocol: Protocol | None = None,
    progress: Callable[[str, int, int | None], None] = no_progress,
    *,
    seed: int = 0,
) -> BenchResult:
    """Time `path`; with `against`, time both interleaved and judge the ratio.

    A bundle stands for its first ONNX artifact. Floating inputs are random numbers, integer inputs
    zeros, and a dynamic dimension is 1.

    Args:
        path: A bundle, or an `.onnx` file.
        against: The baseline, likewise.
        protocol: How to measure, or None: the usual way.
        progress: Called with (what, done, total).
        seed: Of the inputs and of the order.

    Raises:
        BundleError: If a file is missing, damaged, or of another format.
        RuntimeUnavailable: If ONNX Runtime is missing, or a bundle has no file for it.
    """
    from edgeopt.runtime_tests import latency
    from edgeopt.runtime_tests.onnxruntime_runner import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner()
    usual = protocol or Protocol()
    found = [_resolve(place) for place in (path, against) if place is not None]
    files = [_open(name, file, method, runner, seed) for name, file, method in _distinct(found)]
    used = dataclasses.replace(usual, batch=_batch(files[0]))
    subjects = [
        latency.subject(f.name, runner, [f.path], f.inputs, used, method=f.method) for f in files
    ]
    if len(subjects) == 1:
        only = latency.measure(subjects[0], used, seed=seed, progress=progress)
        return BenchResult(latency=(only,), comparisons=())
    pair = latency.compare(subjects[0], subjects[1], used, seed=seed, progress=progress)
    return BenchResult(latency=(pair.candidate, pair.baseline), comparisons=(pair.comparison,))


def _resolve(place: Path) -> tuple[str, Path, str]:
    """Return name, file and method of a bundle or plain file."""
    if place.is_dir():
        bundle = Bundle.open(place)
        artifact = next((a for a in bundle.manifest.artifacts if a.format == FORMAT), None)
        if artifact is None:
            formats = ", ".join(sorted({a.format for a in bundle.manifest.artifacts})) or "nothing"
            raise RuntimeUnavailable(
                f"{place}: holds {formats}, which this machine cannot time; a TensorRT file is "
                "timed on its device, by the bundle's script"
            )
        return artifact.name, bundle.file(artifact.model_file.path), artifact.methods[0].name
    if not place.is_file():
        raise BundleError(f"{place}: no such bundle or file")
    if place.suffix != ".onnx":
        raise BundleError(f"{place}: is neither a bundle nor an .onnx file")
    return place.stem, place, "forward"


def _distinct(found: list[tuple[str, Path, str]]) -> list[tuple[str, Path, str]]:
    """Tell two files of one name apart by their paths; a file against itself stays what it is."""
    if len({name for name, _, _ in found}) == len(found):
        return found
    if len({path for _, path, _ in found}) == len(found):
        return [(path.as_posix(), path, method) for _, path, method in found]
    return [(f"{name} ({i})", path, method) for i, (name, path, method) in enumerate(found, 1)]


def _open(name: str, path: Path, method: str, runner: Any, seed: int) -> _File:
    """Load a file once, which refuses a damaged one early, and make inputs that it takes."""
    from edgeopt.runtime_tests.base import LoadOptions

    session = runner.load([path], LoadOptions())
    try:
        inputs = session.example_inputs(seed=seed)
        session.run(method, inputs)
    finally:
        session.close()
    return _File(name, path, method, inputs)


def _batch(file: _File) -> int:
    shapes = [array.shape for array in file.inputs.values()]
    return int(shapes[0][0]) if shapes and shapes[0] else 1
