"""Run exported files in their runtimes and collect what they show."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.api.compile import Branch
from edgeopt.artifact import Artifact
from edgeopt.contracts import Contract
from edgeopt.data import Samples
from edgeopt.errors import ExportError, RuntimeUnavailable
from edgeopt.results import (
    AccuracyResult,
    ArtifactRow,
    ContractResult,
    DriftRow,
    OperatorRow,
    ProofResult,
    SizeRow,
)
from edgeopt.runtime_tests.base import LoadOptions, Session
from edgeopt.state import Batch

if TYPE_CHECKING:
    from edgeopt.runtime_tests.accuracy import ReferenceOutputs

DRIFT_SAMPLES = 16
GOLDEN_VECTORS = 4


@dataclasses.dataclass(frozen=True)
class Structure:
    """What can be read off a file without running it on its device.

    Attributes:
        macs: Multiply-accumulates of one call.
        int8_macs: Share of them that are INT8, or None where nothing is multiplied.
        float_gemms: Weighted operators that stay float.
        operators: Where each runs.
        compile: What a real compiler said, or empty.
        warnings: What the user should know.
    """

    macs: int
    int8_macs: float | None
    float_gemms: int
    operators: tuple[OperatorRow, ...]
    compile: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def onnxruntime_session(
    folder: Path, artifact: Artifact, *, threads: int = 1, optimize: bool = True
) -> Session:
    """Load an ONNX artifact in ONNX Runtime.

    Raises:
        RuntimeUnavailable: If ONNX Runtime is missing.
        BundleError: If the file cannot be loaded.
    """
    from edgeopt.runtime_tests.onnxruntime_runner import OnnxRuntimeRunner

    path = folder / artifact.model_file.path
    return OnnxRuntimeRunner().load([path], LoadOptions(threads=threads, optimize=optimize))


def caller(
    session: Session, artifact: Artifact
) -> Callable[[Sequence[np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]:
    """Return a function from flat inputs to flat outputs, both in the model's order."""
    method = artifact.methods[0]

    def call(inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        named = {spec.name: value for spec, value in zip(method.inputs, inputs, strict=True)}
        return list(session.run(method.name, named).values())

    return call


def static_batch(artifact: Artifact) -> int | None:
    """Return the batch size that a file fixes, or None where it is dynamic."""
    shape = artifact.methods[0].inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


def accuracy(
    folder: Path,
    artifact: Artifact,
    reference: ReferenceOutputs,
    metric: Any,
    *,
    warning: str,
    stand_in: bool,
    seed: int,
) -> AccuracyResult:
    """Judge an artifact's answers by running the file in ONNX Runtime.

    A TensorRT file is the same ONNX program; ONNX Runtime stands in for its numerics, without
    graph optimization, and the result says so.
    """
    from edgeopt.runtime_tests.accuracy import judge
    from edgeopt.runtime_tests.onnxruntime_runner import OnnxRuntimeRunner

    session = onnxruntime_session(folder, artifact, optimize=not stand_in)
    runtime = OnnxRuntimeRunner().version()
    if stand_in:
        runtime += f" (the same program, standing in for {artifact.format})"
    try:
        return judge(
            artifact.name,
            runtime,
            caller(session, artifact),
            reference,
            metric,
            batch=static_batch(artifact),
            warning=warning,
            seed=seed,
        )
    finally:
        session.close()


def structure(
    folder: Path,
    artifact: Artifact,
    *,
    compile_for: str,
    lengths: Mapping[str, int] | None = None,
) -> Structure:
    """Read off a file what runs in INT8, by its runtime's own graph or a real compiler.

    Args:
        folder: Where the files are.
        artifact: Which of them.
        compile_for: The target of the real compiler, or empty.
        lengths: What a dynamic dimension counts as, by name; else 1.
    """
    from edgeopt.exporters.onnx_macs import multiplications

    path = folder / artifact.model_file.path
    sizes = {
        spec.name: tuple(d if isinstance(d, int) else (lengths or {}).get(d, 1) for d in spec.shape)
        for spec in artifact.methods[0].inputs
    }
    dynamic = any(not isinstance(d, int) for s in artifact.methods[0].inputs for d in s.shape)
    products = multiplications(path, sizes if dynamic else None)
    macs = sum(p.macs for p in products)
    floats = sum(1 for p in products if p.weight and not p.quantized)
    share = sum(p.macs for p in products if p.quantized) / macs if macs else None
    plain = Structure(macs, share, floats, ())
    if artifact.format == "tensorrt" and compile_for:
        return _compiled(path, artifact, plain, compile_for, sizes if dynamic else {})
    if artifact.format == "onnx":
        return _placed(path, artifact, plain, sizes if dynamic else {})
    return plain


def _compiled(
    path: Path,
    artifact: Artifact,
    plain: Structure,
    compile_for: str,
    sizes: Mapping[str, tuple[int, ...]],
) -> Structure:
    from edgeopt.runtime_tests.tensorrt_rtx import ShapeRange, compile_report, unavailable

    reason = unavailable()
    if reason is not None:
        note = f"{artifact.name}: not compiled: {reason}; types are counted in the file instead"
        return dataclasses.replace(plain, warnings=(note,))
    profiles = {name: ShapeRange(shape, shape, shape) for name, shape in sizes.items()}
    try:
        report = compile_report(path, compile_for, artifact=artifact.name, profiles=profiles)
    except RuntimeUnavailable as failure:
        return dataclasses.replace(plain, warnings=(f"{artifact.name}: not compiled: {failure}",))
    except ExportError as failure:
        raise ExportError(
            f"{artifact.name}: the TensorRT-RTX compiler refuses it: {failure}"
        ) from None
    return Structure(
        report.macs, report.int8_macs, plain.float_gemms, report.operators, report.summary()
    )


def _placed(
    path: Path, artifact: Artifact, plain: Structure, sizes: Mapping[str, tuple[int, ...]]
) -> Structure:
    from edgeopt.runtime_tests.onnxruntime_runner import OnnxRuntimeRunner, save_optimized
    from edgeopt.runtime_tests.ort_graph import placement

    reason = OnnxRuntimeRunner().unavailable()
    if reason is not None:
        return dataclasses.replace(plain, warnings=(f"{artifact.name}: {reason}",))
    with tempfile.TemporaryDirectory() as work:
        optimized = Path(work) / "optimized.onnx"
        save_optimized(path, optimized)
        made = {
            spec.name: np.ones(sizes[spec.name], spec.dtype)
            for spec in artifact.methods[0].inputs
            if sizes
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
            "compiler": OnnxRuntimeRunner().version(),
            "operators": {p: dict(c) for p, c in placed.counts.items()},
        },
    )


def proof(folder: Path, artifact: Artifact, samples: Samples) -> ProofResult:
    """Compare ONNX Runtime's integer nodes with the reference executor on one real batch."""
    from edgeopt.runtime_tests.proof import prove

    return prove(
        artifact.name,
        folder / artifact.model_file.path,
        named_inputs(artifact, samples, static_batch(artifact) or 2),
    )


def named_inputs(
    artifact: Artifact, samples: Samples, batch: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the first `batch` samples by input name, repeated where there are fewer."""
    first = next(samples.batches(batch))
    method = artifact.methods[0]
    return {
        spec.name: value.numpy()[np.arange(batch) % len(value)] if value.dim() else value.numpy()
        for spec, value in zip(method.inputs, first.inputs, strict=True)
    }


def golden(
    folder: Path, artifact: Artifact, samples: Samples, *, optimize: bool
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Run the file on its first samples and return inputs and outputs by name."""
    session = onnxruntime_session(folder, artifact, optimize=optimize)
    try:
        inputs = named_inputs(artifact, samples, static_batch(artifact) or GOLDEN_VECTORS)
        return inputs, dict(session.run(artifact.methods[0].name, inputs))
    finally:
        session.close()


def check_contracts(
    folder: Path, artifact: Artifact, contracts: Sequence[Contract]
) -> tuple[ContractResult, ...]:
    """Check each contract again in the exported file."""
    from edgeopt.exporters.onnx_tensors import OnnxTensors

    tensors = OnnxTensors(folder / artifact.model_file.path, artifact)
    found = []
    for contract in contracts:
        if contract.kind == "quantized" and artifact.precision != "int8":
            continue  # the float file is of the same trunk
        message = contract.check_file(tensors)
        found.append(
            ContractResult(
                artifact.name,
                contract.kind,
                ", ".join(contract.sites),
                message is None,
                message or "",
            )
        )
    return tuple(found)


def weight_sizes(folder: Path, artifact: Artifact) -> tuple[SizeRow, ...]:
    """Return the bytes of each initializer, by the model's FQN where it has one."""
    from edgeopt.exporters.onnx_tensors import stored_tensors

    fqn_of = {entry.name: fqn for fqn, entry in sorted(artifact.tensor_map.items(), reverse=True)}
    return tuple(
        SizeRow(artifact.name, fqn_of.get(name, name), dtype, size)
        for name, dtype, size in stored_tensors(folder / artifact.model_file.path)
    )


def drift_ranking(branch: Branch, samples: Samples) -> tuple[DriftRow, ...]:
    """Rank the layers of a branch by what their quantization costs."""
    from edgeopt.quant.drift import rank

    first = next(samples.batches(min(DRIFT_SAMPLES, samples.count)))
    rows: list[DriftRow] = []
    for method, quantized in branch.state.carrier_programs.items():
        rows += rank(
            branch.before.carrier_programs[method], quantized, Batch(first.args, first.kwargs)
        )
    return tuple(rows)


def artifact_row(artifact: Artifact, found: Structure) -> ArtifactRow:
    """Describe an artifact in short."""
    return ArtifactRow(
        name=artifact.name,
        target=artifact.target,
        format=artifact.format,
        precision=artifact.precision,
        file=artifact.model_file.path,
        size_bytes=artifact.model_file.size_bytes,
        sha256=artifact.model_file.sha256,
        macs=found.macs,
        int8_macs=found.int8_macs,
        notes=artifact.notes,
    )
