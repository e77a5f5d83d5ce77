"""ExecuTorch files: what XNNPACK takes, what stays outside, and why."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.contracts.contract import FileTensors
from edgeopt.devices.profile import Target
from edgeopt.errors import BundleError
from edgeopt.exporters.executorch.file import (
    ExecuTorchFile,
    FileMethod,
    FileTensor,
    Kernel,
    read_file,
)
from edgeopt.exporters.executorch.xnnpack_graph import XnnGraph, XnnNode
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.structure import OperatorRow, ProofResult
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.inspection import Inspector, Structure

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OUTSIDE = "ExecuTorch CPU kernel"
BOOKKEEPING = ("executorch_prim::", "aten::sym_")
"""Sizes and views of dynamic shapes: numbers are computed, no tensor is read."""
INSIDE = "XNNPACK"
LARGEST_BUFFERS = 5
SLOWEST_KERNELS = 8
BATCH = "batch"
NOTHING = "nothing is quantized in this file"
_MOVES = ("Static", "Concatenate", "Copy")
_WITH_CODES = frozenset(
    {"Add", "Subtract", "Multiply", "GlobalAvgPooling2d", "MaxPooling2d", "Clamp"}
)
"""Operators that XNNPACK has integer kernels for."""


@dataclasses.dataclass(frozen=True)
class Sites:
    """What the file beside a `.pte` says: which operator of the model a number stands for.

    Attributes:
        handles: Method -> debug handle -> address.
        kernels: Method -> (kernel, address) in order of the calls outside the delegates.
        reasons: Method -> address -> why the delegate did not take it.
    """

    handles: Mapping[str, Mapping[int, str]]
    kernels: Mapping[str, tuple[tuple[str, str], ...]]
    reasons: Mapping[str, Mapping[str, str]]

    @staticmethod
    def read(folder: Path, artifact: Artifact) -> Sites:
        """Read it; empty where the artifact has none.

        Raises:
            BundleError: If it is damaged.
        """
        entry = next((f for f in artifact.files if f.path.endswith(".sites.json")), None)
        if entry is None:
            return Sites({}, {}, {})
        path = folder / entry.path
        try:
            methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
            return Sites(
                {m: {int(h): str(s) for h, s in x["handles"].items()} for m, x in methods.items()},
                {m: tuple((str(k), str(s)) for k, s in x["kernels"]) for m, x in methods.items()},
                {m: dict(x["reasons"]) for m, x in methods.items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
            raise BundleError(f"{path}: cannot be read: {failure}") from None

    def of_node(self, method: str, node: XnnNode) -> str:
        """Return the address of a delegate's node, or empty: XNNPACK's lowering put it there."""
        return self.handles.get(method, {}).get(node.handle, "")

    def of_kernels(self, method: FileMethod) -> list[str]:
        """Return the address of each kernel outside the delegates, in order."""
        listed = self.kernels.get(method.name, ())
        found, start = [], 0
        for kernel in method.kernels:
            rest = range(start, len(listed))
            at = next((i for i in rest if listed[i][0] == kernel.name), None)
            found.append(listed[at][1] if at is not None else "")
            start = at + 1 if at is not None else start
        return found


class ExecuTorchInspector(Inspector):
    """ExecuTorch files: their own runtime runs them, their payload tells what XNNPACK does."""

    format: ClassVar[str] = "executorch"
    runtime: ClassVar[str] = "executorch"
    proof_reads_programs: ClassVar[bool] = True

    def interface(self, path: Path) -> tuple[tuple[Method, ...], tuple[str, ...]]:
        methods = read_file(path).methods
        found = (Method(n, _specs(m.inputs), _specs(m.outputs)) for n, m in methods.items())
        return tuple(found), ()

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        file = read_file(folder / artifact.model_file.path)
        sites = Sites.read(folder, artifact)
        rows: list[OperatorRow] = []
        for method in file.methods.values():
            rows += _rows(artifact, method, sites)
        rows = _at_one_sample(rows, artifact)
        products = [row for row in rows if row.macs]
        macs = sum(row.macs for row in products)
        int8 = sum(row.macs for row in products if row.precision == "int8")
        inside = sum(row.where == INSIDE for row in rows)
        version = artifact.tools.get("executorch", "")
        return Structure(
            macs=macs,
            int8_macs=int8 / macs if macs else None,
            float_gemms=sum(_weighted_float(m) for m in file.methods.values()),
            operators=tuple(rows),
            compile={
                "compiler": f"executorch {version} (XNNPACK)",
                "partitions": sum(len(m.delegates) for m in file.methods.values()),
                "delegated_share": inside / len(rows) if rows else 0.0,
                "delegated_macs": (
                    sum(r.macs for r in products if r.where == INSIDE) / macs if macs else 1.0
                ),
                "kernels": _kernel_counts(file),
                "outside": _outside(file, sites),
                "memory_plan": {n: _memory_plan(m) for n, m in file.methods.items()},
                **self._profile(folder, artifact, target),
            },
        )

    def _profile(self, folder: Path, artifact: Artifact, target: Target) -> dict[str, Any]:
        """Return where the time goes on this machine, if its runtime is here."""
        from edgeopt.runtime_tests.executorch.profile import profile

        if self.runner().unavailable() is not None:
            return {}
        path, method = folder / artifact.model_file.path, artifact.methods[0].name
        kernels = profile(path, method=method, threads=target.protocol.threads)[:SLOWEST_KERNELS]
        return {
            "slowest_here": [
                f"{k.kernel}: {k.calls} calls, {k.microseconds:.0f} us, {100 * k.share:.0f} %"
                for k in kernels
            ]
        }

    def tensors(self, folder: Path, artifact: Artifact) -> FileTensors:
        from edgeopt.exporters.executorch.tensors import ExecuTorchTensors

        return ExecuTorchTensors(folder / artifact.model_file.path, artifact)

    def stored(self, path: Path) -> Iterable[tuple[str, str, int]]:
        from edgeopt.exporters.executorch.tensors import stored_tensors

        return stored_tensors(path)

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        method = artifact.methods[0]
        if programs is None or method.name not in programs:
            return None  # a file does not show its codes; its program does
        from edgeopt.artifacts.program_interface import as_described
        from edgeopt.exporters.executorch.exporter import ExecuTorchExporter
        from edgeopt.runtime_tests.executorch.proof import prove

        integer = ExecuTorchExporter.integer_pixels
        exported = as_described(programs[method.name], method, integer=integer)
        path = folder / artifact.model_file.path
        return prove(artifact.name, path, inputs, exported, method=method.name)

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        from edgeopt.runtime_tests.executorch.runner import peak_memory

        method = artifact.methods[0].name
        return peak_memory(artifact.name, folder / artifact.model_file.path, method=method)


def _specs(tensors: Sequence[FileTensor]) -> tuple[IOSpec, ...]:
    """Return what a plain file tells of its inputs or outputs; it has no names for them."""
    return tuple(
        IOSpec("", t.dtype, (BATCH, *t.shape[1:]) if t.dynamic else t.shape) for t in tensors
    )


def _at_one_sample(rows: list[OperatorRow], artifact: Artifact) -> list[OperatorRow]:
    """Count the products of a dynamic batch once: the file holds its largest size."""
    sizes = {size for spec in artifact.methods[0].inputs for size in spec.shape}
    if BATCH not in sizes:
        return rows
    largest = int(artifact.options.get(f"max_{BATCH}", 1))
    return [dataclasses.replace(row, macs=row.macs // largest) for row in rows]


def _rows(artifact: Artifact, method: FileMethod, sites: Sites) -> Iterator[OperatorRow]:
    """Yield one row an operator, in the order that the method runs them."""
    outside = iter(zip(method.kernels, sites.of_kernels(method), strict=True))
    reasons = sites.reasons.get(method.name, {})
    for step in method.steps:
        if isinstance(step, Kernel):
            kernel, site = next(outside)
            if kernel.name.startswith(BOOKKEEPING):
                continue
            yield OperatorRow(
                artifact=artifact.name,
                operator=kernel.name,
                site=site or kernel.name,
                precision=_float_type(kernel),
                where=OUTSIDE,
                macs=kernel.multiplications,
                reason=reasons.get(site, "") or f"XNNPACK does not take {kernel.name}",
            )
            continue
        graph = method.delegates[step].graph
        for node in graph.nodes if graph is not None else ():
            assert graph is not None
            yield OperatorRow(
                artifact=artifact.name,
                operator=node.operator,
                site=sites.of_node(method.name, node) or f"{node.operator} (XNNPACK's layout)",
                precision=graph.precision(node),
                where=INSIDE,
                macs=graph.multiplications(node),
                reason=_why_float(graph, node) if artifact.precision == "int8" else NOTHING,
            )


def _float_type(kernel: Kernel) -> str:
    first = next((a for a in kernel.arguments if a is not None), None)
    return first.dtype if first is not None else "float32"


def _why_float(graph: XnnGraph, node: XnnNode) -> str:
    if graph.precision(node) == "int8":
        return ""
    if node.operator == "Convert":
        return "between codes and floats"
    if node.operator.startswith(_MOVES):
        return "moves floats between float operators"
    if node.operator == "BatchMatrixMultiply":
        return "XNNPACK multiplies two activations in float"
    if graph.multiplications(node):
        return "the plan keeps it in float"
    if node.operator in _WITH_CODES:
        return "an operand of it is not quantized"
    return "XNNPACK computes it in float, between two conversions"


def _weighted_float(method: FileMethod) -> int:
    """Count the products with a stored weight that run in float, inside delegates or outside."""
    count = 0
    for delegate in method.delegates:
        graph = delegate.graph
        for node in graph.nodes if graph is not None else ():
            assert graph is not None
            stored = len(node.inputs) > 1 and graph.values[node.inputs[1]].data_key
            if stored and graph.multiplications(node) and graph.precision(node) != "int8":
                count += 1
    for kernel in method.kernels:
        if kernel.multiplications and any(a is not None and a.data for a in kernel.arguments):
            count += 1
    return count


def _kernel_counts(file: ExecuTorchFile) -> dict[str, dict[str, int]]:
    """Return precision -> operator -> count, inside the delegates; and those outside."""
    found: dict[str, Counter[str]] = {}
    for method in file.methods.values():
        for delegate in method.delegates:
            graph = delegate.graph
            for node in graph.nodes if graph is not None else ():
                assert graph is not None
                found.setdefault(graph.precision(node), Counter())[node.operator] += 1
        for kernel in method.kernels:
            found.setdefault("outside", Counter())[kernel.name] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.items())}


def _outside(file: ExecuTorchFile, sites: Sites) -> dict[str, str]:
    """Return address -> why, for each operator that no delegate took."""
    found: dict[str, str] = {}
    for method in file.methods.values():
        reasons = sites.reasons.get(method.name, {})
        for kernel, site in zip(method.kernels, sites.of_kernels(method), strict=True):
            if kernel.name.startswith(BOOKKEEPING):
                continue
            why = reasons.get(site, "") or f"XNNPACK does not take {kernel.name}"
            found.setdefault(site or kernel.name, why)
    return found


def _memory_plan(method: FileMethod) -> dict[str, Any]:
    largest = sorted(method.planned, key=lambda t: -t.size_bytes)[:LARGEST_BUFFERS]
    return {
        "arena_bytes": list(method.arenas),
        "tensors": len(method.planned),
        "largest": [f"{t.dtype} {'x'.join(map(str, t.shape))}: {t.size_bytes}" for t in largest],
        "not_counted": "XNNPACK's workspace and packed weights",
    }
