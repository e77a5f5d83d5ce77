"""Files for Qualcomm's NPU: what its compiler takes whole, and the numbers of its simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeopt.artifact import Artifact
from edgeopt.exporters import hexagon
from edgeopt.exporters.onnx_macs import Product, multiplications
from edgeopt.results import MemoryResult, OperatorRow, ProofResult
from edgeopt.runtime_tests.base import Arrays, Runner
from edgeopt.runtime_tests.inspect_onnx import OnnxInspector, counted
from edgeopt.runtime_tests.inspection import Structure
from edgeopt.target import Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SAMPLES = 64
"""A call takes the simulator 0.05 to 3 s."""


class QnnInspector(OnnxInspector):
    """Context binaries: the HTP simulator runs them, and they tell what the compiler took."""

    format: ClassVar[str] = "qnn"
    times_here: ClassVar[bool] = False
    sample_limit: ClassVar[int | None] = SAMPLES

    def runner(self) -> Runner:
        from edgeopt.runtime_tests.qnn_runner import QnnRunner

        return QnnRunner()

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        from edgeopt.runtime_tests.qnn_runner import version_of

        plain = counted(folder, artifact)
        contexts = [f.path for f in artifact.files if version_of(Path(f.path))]
        if not contexts:
            reason = next(
                (note for note in artifact.notes if note.startswith("not compiled")),
                "not compiled for the NPU",
            )
            return dataclasses.replace(plain, warnings=(f"{artifact.name}: {reason}",))
        compiled = [hexagon.read_context(folder / path) for path in contexts]
        worst = max(compiled, key=lambda c: (len(c.left), c.partitions))
        operators = _operators(folder / artifact.model_file.path)
        rows = tuple(
            _row(product, artifact, worst)
            for product in multiplications(folder / artifact.model_file.path)
        )
        version = artifact.tools.get("onnxruntime-qnn", "")
        return Structure(
            macs=plain.macs,
            int8_macs=plain.int8_macs,
            float_gemms=plain.float_gemms,
            operators=rows,
            compile={
                "compiler": f"onnxruntime-qnn {version} (HTP simulator)",
                "sdk": worst.sdk,
                "partitions": worst.partitions,
                "delegated_share": 1.0 - len(worst.left) / max(operators, len(worst.left), 1),
                "outside": dict(worst.left),
                "archs": {
                    c.chip.version: {
                        "chip": f"{c.chip.name} ({c.chip.title})",
                        "bytes": sum(path.stat().st_size for path in c.binaries),
                    }
                    for c in compiled
                },
                "measured": "no: compiled and simulated; the simulator's time is not the NPU's",
            },
        )

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        return None

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        return None  # of the simulator, it says nothing of the NPU


def _operators(path: Path) -> int:
    """Count the operators of a file that compute or move something."""
    import onnx

    conversions = ("QuantizeLinear", "DequantizeLinear")
    return sum(node.op_type not in conversions for node in onnx.load(path).graph.node)


def _row(product: Product, artifact: Artifact, compiled: hexagon.Compiled) -> OperatorRow:
    # ONNX Runtime renames what it fuses and keeps the first name in the new one.
    left = any(name and product.node in name for name in compiled.left)
    return OperatorRow(
        artifact=artifact.name,
        operator=product.operator,
        site=product.site,
        precision="int8" if product.quantized else "float16",
        where="CPU" if left else f"HTP {compiled.chip.version}",
        macs=product.macs,
        reason="the NPU's compiler left it to the CPU" if left else "",
    )
