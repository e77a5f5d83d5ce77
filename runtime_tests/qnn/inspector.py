"""Files for Qualcomm's NPU: what its compiler takes whole, and the numbers of its simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import ExportError
from edgeopt.exporters.onnx.macs import Product, multiplications
from edgeopt.exporters.qnn import hexagon
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.structure import OperatorRow, ProofResult
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.inspection import Structure
from edgeopt.runtime_tests.onnxruntime.inspector import OnnxInspector, counted

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SAMPLES = 64
"""A call takes the simulator 0.05 to 3 s."""
SIMULATORS = 4
"""Each takes 0.2 GB and, for most of a call, one core."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


class QnnInspector(OnnxInspector):
    """Context binaries: the HTP simulator runs them, and they tell what the compiler took."""

    format: ClassVar[str] = "qnn"
    runtime: ClassVar[str] = "qnn"
    times_here: ClassVar[bool] = False
    sample_limit: ClassVar[int | None] = SAMPLES
    sessions: ClassVar[int] = SIMULATORS

    def untimed(self) -> str:
        return "a simulator's time is not the NPU's"

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        plain = counted(folder, artifact)
        contexts = _contexts(artifact)
        if not contexts:
            reason = next(
                (note for note in artifact.notes if note.startswith("not compiled")),
                "not compiled for the NPU",
            )
            return dataclasses.replace(plain, warnings=(f"{artifact.name}: {reason}",))
        compiled = [hexagon.read_context(folder / path) for path in contexts]
        worst = max(compiled, key=lambda c: (len(c.left), c.partitions))
        path = folder / artifact.model_file.path
        operators, wide = _operators(path), _wide(path)
        products = multiplications(path)
        rows = tuple(_row(product, artifact, worst, wide) for product in products)
        warnings: tuple[str, ...] = ()
        if any(product.node in wide for product in products):
            warnings = (
                f"{artifact.name}: activations have 16 bits; int8_macs counts their products too",
            )
        outside = {name: op for name, op in worst.left.items() if op not in _CONVERSIONS}
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
                "delegated_share": max(0.0, 1.0 - len(outside) / max(operators, 1)),
                "outside": outside,
                "archs": {
                    c.chip.version: {
                        "chip": f"{c.chip.name} ({c.chip.title})",
                        "bytes": sum(path.stat().st_size for path in c.binaries),
                    }
                    for c in compiled
                },
                "measured": "no: compiled and simulated; the simulator's time is not the NPU's",
            },
            warnings=warnings,
        )

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        from edgeopt.runtime_tests.qnn.proof import not_compared, prove

        contexts = _contexts(artifact)
        if not contexts:
            return None
        chip = hexagon.read_context(folder / contexts[0]).chip
        try:
            return prove(artifact.name, folder / artifact.model_file.path, chip, inputs)
        except ExportError as failure:  # it compiles the file, and not with its values as outputs
            return not_compared(artifact.name, f"not compared: {failure}")

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        return None  # of the simulator, it says nothing of the NPU


def _contexts(artifact: Artifact) -> list[str]:
    """Return the compiled files of an artifact, the one that is judged first."""
    from edgeopt.runtime_tests.qnn.runner import version_of

    return [entry.path for entry in artifact.files if version_of(Path(entry.path))]


def _operators(path: Path) -> int:
    """Count the operators of a file that compute or move something."""
    import onnx

    return sum(node.op_type not in _CONVERSIONS for node in onnx.load(path).graph.node)


def _wide(path: Path) -> set[str]:
    """Return the nodes whose first operand is 16-bit codes."""
    import onnx

    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producers = {out: node for node in graph.node for out in node.output}
    found = set()
    for node in graph.node:
        source = producers.get(node.input[0]) if node.input else None
        if source is None or source.op_type != "DequantizeLinear" or len(source.input) < 3:
            continue
        if types.get(source.input[2]) in (onnx.TensorProto.UINT16, onnx.TensorProto.INT16):
            found.add(node.name)
    return found


def _row(
    product: Product, artifact: Artifact, compiled: hexagon.Compiled, wide: set[str]
) -> OperatorRow:
    # ONNX Runtime renames what it fuses and keeps the first name in the new one.
    left = any(name and product.node in name for name in compiled.left)
    reason = "the NPU's compiler left it to the CPU" if left else ""
    precision = "int8" if product.quantized else "float16"
    if product.quantized and product.node in wide:
        precision = "w8a16" if product.weight else "int16"
        reason = reason or "the plan's activations have 16 bits"
    return OperatorRow(
        artifact=artifact.name,
        operator=product.operator,
        site=product.site,
        precision=precision,
        where="CPU" if left else f"HTP {compiled.chip.version}",
        macs=product.macs,
        reason=reason,
    )
