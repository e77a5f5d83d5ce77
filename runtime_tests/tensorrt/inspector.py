"""What can be found out about TensorRT files on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import ExportError, RuntimeUnavailable
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.inspection import Structure
from edgeopt.runtime_tests.onnxruntime.inspector import OnnxInspector, counted, open_sizes

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class TensorRTInspector(OnnxInspector):
    """TensorRT's ONNX files: ONNX Runtime runs the same program, TensorRT-RTX compiles it."""

    format: ClassVar[str] = "tensorrt"
    stands_in: ClassVar[bool] = True
    times_here: ClassVar[bool] = False

    def untimed(self) -> str:
        missing = find_spec("tensorrt") is None
        return "TensorRT is not installed" if missing else "edgeopt has no runner for TensorRT"

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        plain = counted(folder, artifact)
        compile_for = str(target.options.get("compile_for", ""))
        # The yardstick is compiled only where it is run: its types are its file's.
        if not compile_for or artifact.precision != "int8":
            return plain
        from edgeopt.runtime_tests.tensorrt.rtx_compiler import (
            ShapeRange,
            compile_report,
            unavailable,
        )

        reason = unavailable()
        if reason is not None:
            note = f"{artifact.name}: not compiled: {reason}; types are counted in the file instead"
            return dataclasses.replace(plain, warnings=(note,))
        sizes = open_sizes(artifact) or {}
        profiles = {name: ShapeRange(shape, shape, shape) for name, shape in sizes.items()}
        path = folder / artifact.model_file.path
        try:
            report = compile_report(path, compile_for, artifact=artifact.name, profiles=profiles)
        except RuntimeUnavailable as failure:
            note = f"{artifact.name}: not compiled: {failure}"
            return dataclasses.replace(plain, warnings=(note,))
        except ExportError as failure:
            raise ExportError(
                f"{artifact.name}: the TensorRT-RTX compiler refuses it: {failure}"
            ) from None
        return Structure(
            report.macs, report.int8_macs, plain.float_gemms, report.operators, report.summary()
        )

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        return None  # what stands in has another arithmetic

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        return None
