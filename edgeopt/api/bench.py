"""Latency of a bundle or of a plain model file, alone or against another, on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.api.formats import format_of, inspector_for
from edgeopt.artifacts.bundle import Bundle
from edgeopt.devices.profile import Protocol
from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.progress import Progress, no_progress
from edgeopt.results.reports import BenchResult


@dataclasses.dataclass(frozen=True)
class _File:
    """What is timed: its name in the result, format, file, the program's method, its inputs."""

    name: str
    format: str
    path: Path
    method: str
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run_bench(
    path: Path,
    against: Path | None = None,
    protocol: Protocol | None = None,
    progress: Progress = no_progress,
    *,
    seed: int = 0,
) -> BenchResult:
    """Time `path`; with `against`, time both interleaved and judge the ratio.

    A bundle stands for its first artifact whose own runtime this machine has. Floating inputs are
    random numbers, integer inputs zeros, and a dynamic dimension is 1.

    Args:
        path: A bundle, or an `.onnx` or `.pte` file.
        against: The baseline, likewise.
        protocol: How to measure, or None: the usual way.
        progress: Called with (what, done, total).
        seed: Of the inputs and of the order.

    Raises:
        BundleError: If a file is missing, damaged, or of another format.
        RuntimeUnavailable: If a runtime is missing, or a bundle has no file for those here.
    """
    from edgeopt.runtime_tests import latency

    usual = protocol or Protocol()
    found = [_resolve(place) for place in (path, against) if place is not None]
    files = [_open(file, seed) for file in _distinct(found)]
    used = dataclasses.replace(usual, batch=_batch(files[0]))
    subjects = [
        latency.subject(
            f.name, inspector_for(f.format).runner(), [f.path], f.inputs, used, method=f.method
        )
        for f in files
    ]
    if len(subjects) == 1:
        only = latency.measure(subjects[0], used, seed=seed, progress=progress)
        return BenchResult(latency=(only,), comparisons=())
    pair = latency.compare(subjects[0], subjects[1], used, seed=seed, progress=progress)
    return BenchResult(latency=(pair.candidate, pair.baseline), comparisons=(pair.comparison,))


def _resolve(place: Path) -> _File:
    """Return what stands for a bundle or plain file."""
    if place.is_dir():
        return _of_bundle(Bundle.open(place), place)
    if not place.is_file():
        raise BundleError(f"{place}: no such bundle or file")
    return _File(place.stem, format_of(place), place, "forward")


def _of_bundle(bundle: Bundle, place: Path) -> _File:
    reasons: dict[str, str] = {}
    for artifact in bundle.manifest.artifacts:
        inspector = inspector_for(artifact.format)
        if not inspector.times_here:
            reasons[artifact.format] = "is timed on its device"
        elif reason := inspector.runner().unavailable():
            reasons[artifact.format] = reason
        else:
            method = artifact.methods[0].name
            path = bundle.file(artifact.model_file.path)
            return _File(artifact.name, artifact.format, path, method)
    told = "; ".join(f"{name}: {why}" for name, why in sorted(reasons.items())) or "no file"
    raise RuntimeUnavailable(f"{place}: this machine cannot time what it holds ({told})")


def _distinct(found: list[_File]) -> list[_File]:
    """Tell two files of one name apart by their paths; a file against itself stays what it is."""
    if len({f.name for f in found}) == len(found):
        return found
    if len({f.path for f in found}) == len(found):
        return [dataclasses.replace(f, name=f.path.as_posix()) for f in found]
    return [dataclasses.replace(f, name=f"{f.name} ({i})") for i, f in enumerate(found, 1)]


def _open(file: _File, seed: int) -> _File:
    """Load a file once, which refuses a damaged one early, and make inputs that it takes."""
    from edgeopt.runtime_tests.base import LoadOptions

    session = inspector_for(file.format).runner().load([file.path], LoadOptions())
    try:
        inputs = session.example_inputs(file.method, seed=seed)
        session.run(file.method, inputs)
    finally:
        session.close()
    return dataclasses.replace(file, inputs=inputs)


def _batch(file: _File) -> int:
    shapes = [array.shape for array in file.inputs.values()]
    return int(shapes[0][0]) if shapes and shapes[0] else 1
