"""Golden vectors, and whether a file computes the program that it was written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeopt.api.building.file_inputs import named_inputs
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts import golden, io_forms
from edgeopt.artifacts.artifact import Artifact
from edgeopt.data import Samples
from edgeopt.errors import CheckFailed
from edgeopt.ir import program
from edgeopt.ir.calls import FORWARD, MethodExample
from edgeopt.ir.trees import leaves
from edgeopt.numerics.snr import snr_db
from edgeopt.runtime_tests.base import Arrays

GOLDEN_VECTORS = 4
SAME_PROGRAM_DB = {"float32": 60.0, "float16": 20.0, "int8": 8.0}
"""Below this a file computes something else than its program. Runtimes differ in rounding, and a
deep INT8 transformer multiplies that: 17 dB were seen between two right ones; garbage is near 0."""


def write_golden_vectors(
    folder: Path,
    runnable: Sequence[Written],
    methods: Mapping[str, MethodExample],
    samples: Samples,
) -> tuple[str, ...]:
    """Run each file on its first samples, hold it against its program, and keep what it gave.

    Args:
        folder: Where the files are, and the vectors go.
        runnable: The files that run here.
        methods: Examples of the methods beside the first.
        samples: What the first method runs on.

    Returns:
        What the user should know.

    Raises:
        CheckFailed: If a file's outputs are another function's.
    """
    warnings: list[str] = []
    for written in runnable:
        artifact = written.artifact
        inputs = named_inputs(artifact, samples, GOLDEN_VECTORS)
        outputs = _run(folder, artifact, artifact.methods[0].name, inputs)
        warnings += _disagreement(folder, written, methods, inputs, outputs)
        golden.write_golden(folder, artifact.name, inputs, outputs)
    return tuple(warnings)


def _run(folder: Path, artifact: Artifact, method: str, inputs: Arrays) -> Arrays:
    session = inspector_for(artifact.format).load(folder, artifact)
    try:
        return dict(session.run(method, inputs))
    finally:
        session.close()


def _disagreement(
    folder: Path,
    written: Written,
    methods: Mapping[str, MethodExample],
    inputs: Arrays,
    outputs: Arrays,
) -> tuple[str, ...]:
    """Hold what a file computes against the program that it was written from.

    Some runtimes take a file and compute garbage from it in silence.

    Raises:
        CheckFailed: If the outputs are another function's.
    """
    artifact, branch = written.artifact, written.branch
    inputs = io_forms.model_inputs(artifact.methods[0], inputs)
    outputs = io_forms.model_outputs(artifact.methods[0], outputs)
    state = branch.state if artifact.precision == "int8" else branch.before
    snr = _snr_against_program(state.carrier_programs[FORWARD], inputs, outputs)
    for method, example in methods.items():
        values = leaves((example.args, dict(example.kwargs)))
        given = {n: v.numpy() for n, v in zip(example.input_names, values, strict=True)}
        got = _run(folder, artifact, method, given)
        snr = min(snr, _snr_against_program(state.carrier_programs[method], given, got))
    floor = SAME_PROGRAM_DB[artifact.precision]
    if snr >= floor:
        return ()
    message = (
        f"{artifact.name}: the file does not compute its program: {snr:.1f} dB, at least "
        f"{floor:g} dB are expected of {artifact.precision}"
    )
    if branch.target.float_type != "float16":
        raise CheckFailed(message)
    return (f"{message}; values beyond float16 do that",)


def _snr_against_program(exported: ExportedProgram, inputs: Arrays, outputs: Arrays) -> float:
    """Return the SNR in dB of a file's outputs against the program that it was written from.

    Args:
        exported: The program.
        inputs: One call's inputs, in the program's order.
        outputs: What the file gave, in the program's order.
    """
    args, kwargs = program.unflattened(exported, [torch.from_numpy(v) for v in inputs.values()])
    wanted = leaves(program.run(exported, args, kwargs))
    return snr_db(wanted, [torch.from_numpy(np.asarray(value)) for value in outputs.values()])
