"""ONNX files in ONNX Runtime, and TensorRT's ONNX files through TensorRT-RTX's compiler."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import Method
from edgeopt.contracts.contract import FileTensors
from edgeopt.devices.profile import Target
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.inspection import Inspector, Structure

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class OnnxInspector(Inspector):
    """ONNX files: ONNX Runtime runs them, and its saved optimized graph tells what it does."""

    format: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnxruntime"

    def interface(self, path: Path) -> tuple[tuple[Method, ...], tuple[str, ...]]:
        from edgeopt.exporters.onnx.signature import read_signature

        signature = read_signature(path)
        return (signature.method,), signature.external

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        from edgeopt.runtime_tests.onnxruntime.placement import placement
        from edgeopt.runtime_tests.onnxruntime.runner import save_optimized

        plain = counted(folder, artifact)
        runner = self.runner()
        reason = runner.unavailable()
        if reason is not None:
            return dataclasses.replace(plain, warnings=(f"{artifact.name}: {reason}",))
        path = folder / artifact.model_file.path
        with tempfile.TemporaryDirectory() as work:
            optimized = Path(work) / "optimized.onnx"
            save_optimized(path, optimized)
            sizes = open_sizes(artifact) or {}
            made = {
                s.name: np.ones(sizes[s.name], s.dtype) for s in artifact.methods[0].inputs if sizes
            }
            placed = placement(
                artifact.name, path, optimized, tensor_map=artifact.tensor_map, inputs=made or None
            )
        return Structure(
            plain.macs,
            placed.int8_share,
            len(placed.float_weighted),
            placed.rows,
            {
                "compiler": runner.version(),
                "operators": {p: dict(c) for p, c in placed.counts.items()},
            },
        )

    def tensors(self, folder: Path, artifact: Artifact) -> FileTensors:
        from edgeopt.exporters.onnx.tensors import OnnxTensors

        return OnnxTensors(folder / artifact.model_file.path, artifact)

    def stored(self, path: Path) -> Iterable[tuple[str, str, int]]:
        from edgeopt.exporters.onnx.tensors import stored_tensors

        return stored_tensors(path)

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        from edgeopt.runtime_tests.onnxruntime.proof import prove

        return prove(artifact.name, folder / artifact.model_file.path, inputs)

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        from edgeopt.runtime_tests.onnxruntime.memory import peak_memory

        return peak_memory(artifact.name, folder / artifact.model_file.path)


def counted(folder: Path, artifact: Artifact) -> Structure:
    """Count the products of an ONNX file by its own types, without any runtime."""
    from edgeopt.exporters.onnx.macs import multiplications

    products = multiplications(folder / artifact.model_file.path, open_sizes(artifact))
    macs = sum(p.macs for p in products)
    floats = sum(1 for p in products if p.weight and not p.quantized)
    share = sum(p.macs for p in products if p.quantized) / macs if macs else None
    return Structure(macs, share, floats, ())


def open_sizes(artifact: Artifact) -> dict[str, tuple[int, ...]] | None:
    """Return the inputs' shapes at the artifact's own lengths, or None where all are fixed."""
    inputs = artifact.methods[0].inputs
    if all(isinstance(d, int) for spec in inputs for d in spec.shape):
        return None
    return {spec.name: tuple(d if isinstance(d, int) else 1 for d in spec.shape) for spec in inputs}
