"""Run exported files in their runtimes and collect what they show."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeopt.api.building.branches import Branch
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts import io_forms
from edgeopt.artifacts.artifact import Artifact
from edgeopt.contracts.contract import Contract
from edgeopt.data import Samples
from edgeopt.ir import program
from edgeopt.ir.calls import FORWARD, Batch, MethodExample
from edgeopt.ir.trees import leaves
from edgeopt.numerics.snr import snr_db
from edgeopt.results.measurements import AccuracyResult
from edgeopt.results.reports import ArtifactRow, FileRole
from edgeopt.results.structure import ContractResult, DriftRow, ProofResult
from edgeopt.runtime_tests.base import Session
from edgeopt.runtime_tests.inspection import Structure

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeopt.runtime_tests.accuracy import ReferenceOutputs

DRIFT_SAMPLES = 16
GOLDEN_VECTORS = 4


def caller(
    session: Session, artifact: Artifact
) -> Callable[[Sequence[np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]:
    """Return a function from the model's flat inputs to its flat outputs, both in order.

    A file that takes pixels or codes gets them.
    """
    method = artifact.methods[0]

    def call(inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        named = {spec.name: value for spec, value in zip(method.inputs, inputs, strict=True)}
        outputs = session.run(method.name, io_forms.file_inputs(method, named))
        return list(io_forms.model_outputs(method, outputs).values())

    return call


def static_batch(artifact: Artifact) -> int | None:
    """Return the batch size that a file fixes, or None where it is dynamic."""
    shape = artifact.methods[0].inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


def largest_batch(artifact: Artifact) -> int | None:
    """Return the largest batch of a dynamic file whose memory is planned, or None: any."""
    size = artifact.options.get("max_batch")
    return int(size) if size is not None else None


def accuracy(
    folder: Path,
    artifact: Artifact,
    reference: ReferenceOutputs,
    metric: Any,
    *,
    warning: str,
    seed: int,
) -> AccuracyResult:
    """Judge an artifact's answers by running the file here.

    Where another runtime stands in for the file's own, the result says so.
    """
    from edgeopt.runtime_tests.accuracy import judge

    inspector = inspector_for(artifact.format)
    runtime = inspector.runner().version()
    if inspector.stands_in:
        runtime += f" (the same program, standing in for {artifact.format})"
    with contextlib.ExitStack() as opened:
        runs = []
        calls = math.ceil(reference.samples.count / (static_batch(artifact) or 1))
        for _ in range(min(inspector.sessions, os.cpu_count() or 1, calls)):
            session = inspector.load(folder, artifact)
            opened.callback(session.close)
            runs.append(caller(session, artifact))
        return judge(
            artifact.name,
            runtime,
            runs[0],
            reference,
            metric,
            beside=runs[1:],
            batch=static_batch(artifact) or largest_batch(artifact),
            warning=warning,
            seed=seed,
        )


def proof(folder: Path, written: Artifact, branch: Branch, samples: Samples) -> ProofResult | None:
    """Compare the runtime's integers with the reference executor on one real batch."""
    inputs = named_inputs(written, samples, static_batch(written) or 2)
    programs = branch.state.carrier_programs
    return inspector_for(written.format).prove(folder, written, inputs, programs)


def named_inputs(
    artifact: Artifact, samples: Samples, batch: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the first `batch` samples as the file takes them, repeated where there are fewer."""
    first = next(samples.batches(batch))
    method = artifact.methods[0]
    named = {
        spec.name: value.numpy()[np.arange(batch) % len(value)] if value.dim() else value.numpy()
        for spec, value in zip(method.inputs, first.inputs, strict=True)
    }
    return io_forms.file_inputs(method, named)


def golden(
    folder: Path, artifact: Artifact, samples: Samples
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Run the file on its first samples; return the file's own inputs and outputs by name."""
    session = inspector_for(artifact.format).load(folder, artifact)
    try:
        inputs = named_inputs(artifact, samples, static_batch(artifact) or GOLDEN_VECTORS)
        return inputs, dict(session.run(artifact.methods[0].name, inputs))
    finally:
        session.close()


def run_example(
    folder: Path, artifact: Artifact, method: str, example: MethodExample
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Run a further method of the file on its example; inputs and outputs by name."""
    values = leaves((example.args, dict(example.kwargs)))
    given = {n: v.numpy() for n, v in zip(example.input_names, values, strict=True)}
    session = inspector_for(artifact.format).load(folder, artifact)
    try:
        return given, dict(session.run(method, given))
    finally:
        session.close()


def snr_against_program(
    exported: ExportedProgram,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    outputs: Mapping[str, np.ndarray[Any, Any]],
) -> float:
    """Return the SNR in dB of a file's outputs against the program that it was written from.

    Args:
        exported: The program.
        inputs: One call's inputs, in the program's order.
        outputs: What the file gave, in the program's order.
    """
    args, kwargs = program.unflattened(exported, [torch.from_numpy(v) for v in inputs.values()])
    wanted = leaves(program.run(exported, args, kwargs))
    return snr_db(wanted, [torch.from_numpy(np.asarray(value)) for value in outputs.values()])


def check_contracts(
    folder: Path, artifact: Artifact, contracts: Sequence[Contract]
) -> tuple[ContractResult, ...]:
    """Check each contract again in the exported file."""
    tensors = inspector_for(artifact.format).tensors(folder, artifact)
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


def drift_ranking(branch: Branch, samples: Samples) -> tuple[DriftRow, ...]:
    """Rank the layers of a branch by what their quantization costs."""
    from edgeopt.analysis.drift import rank

    first = next(samples.batches(min(DRIFT_SAMPLES, samples.count)))
    before, after = branch.before.carrier_programs, branch.state.carrier_programs
    rows = rank(before[FORWARD], after[FORWARD], Batch(first.args, first.kwargs))
    return tuple(dataclasses.replace(row, target=branch.target.name) for row in rows)


def artifact_row(artifact: Artifact, found: Structure, role: FileRole) -> ArtifactRow:
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
        role=role,
        float_gemms=found.float_gemms,
    )
