"""Run the written files, and return everything that a build is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from edgeopt.api.building.accuracy import JudgedAnswers, judge_answers
from edgeopt.api.building.agreement import write_golden_vectors
from edgeopt.api.building.file_inputs import named_inputs
from edgeopt.api.building.inputs import Inputs
from edgeopt.api.building.inspection import Inspected, inspect
from edgeopt.api.building.judging import DEVICE_ONLY, Found
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.timing import (
    Latency,
    Memory,
    measure_memory,
    time_pairs,
    why_apart,
    why_untimed,
)
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.data import Samples
from edgeopt.devices.profile import DeviceProfile
from edgeopt.ir.calls import FORWARD, Batch
from edgeopt.limits.counted import Told
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult, MemoryResult
from edgeopt.results.structure import DriftRow, ProofResult

DRIFT_SAMPLES = 16
PROOF_BATCH = 2

Stage = Callable[[str], AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True)
class Runtimes:
    """Which files run on this machine.

    Attributes:
        runnable: Those whose runtime is here.
        unavailable: Format -> why its runtime is not here.
    """

    runnable: tuple[Written, ...]
    unavailable: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What files showed when they ran.

    Attributes:
        accuracy: How good the answers are.
        proof: Of the INT8 files whose runtime can be proven.
        drift: The layers' ranking per target, the verdict's target first.
        latency: Of the files that were timed.
        comparisons: Of each INT8 file with its yardstick.
        memory: Of the files whose runtime can tell.
        warnings: What the user should know.
    """

    accuracy: tuple[AccuracyResult, ...] = ()
    proof: tuple[ProofResult, ...] = ()
    drift: tuple[DriftRow, ...] = ()
    latency: tuple[LatencyResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    memory: tuple[MemoryResult, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judged:
    """Everything that a build is judged by.

    Attributes:
        inspected: What each file shows without being run, in the files' order.
        shown: What those that run here showed.
        unmeasured: Artifact -> why its latency was not measured.
        warnings: What the user should know.
    """

    inspected: tuple[Inspected, ...]
    shown: Shown
    unmeasured: Mapping[str, str]
    warnings: tuple[str, ...]


def judge_files(
    options: BuildOptions, inputs: Inputs, folder: Path, written: Sequence[Written], stage: Stage
) -> Judged:
    """Do everything that this machine can do with the files; write their golden vectors.

    Args:
        options: What is to be measured.
        inputs: What the files were made of.
        folder: Where they are.
        written: The files, the verdict's first.
        stage: Times a block by its name.

    Raises:
        CheckFailed: If a contract does not hold in a file, or a file computes another function
            than its program.
    """
    with stage("inspect files"):
        inspected = inspect(folder, written)
    runtimes = find_runtimes(written)
    samples = inputs.data.first
    if runtimes.runnable and samples is not None:
        shown = _run(options, inputs, folder, written, runtimes.runnable, samples, stage)
    else:
        shown = Shown()
    timed = {result.artifact for result in shown.latency}
    return Judged(
        inspected,
        shown,
        unmeasured={
            one.artifact.name: why_untimed(one, inputs.job.profile, samples, wanted=options.latency)
            for one in written
            if one.artifact.name not in timed
        },
        warnings=(
            *(warning for one in inspected for warning in one.structure.warnings),
            *(f"no {f} file was run: {reason}" for f, reason in runtimes.unavailable.items()),
            *shown.warnings,
        ),
    )


def find_runtimes(written: Sequence[Written]) -> Runtimes:
    """Return the files that run here, and of the others why not."""
    formats = dict.fromkeys(one.artifact.format for one in written)
    reasons = {f: inspector_for(f).runner().unavailable() for f in formats}
    return Runtimes(
        tuple(one for one in written if reasons[one.artifact.format] is None),
        {f: reason for f, reason in reasons.items() if reason is not None},
    )


def found_for_verdict(
    main: Written, judged: Judged, profile: DeviceProfile, *, wanted: bool
) -> Found:
    """Return what the first target's own file showed.

    Args:
        main: That file.
        judged: What all files showed.
        profile: The device.
        wanted: Whether latency and memory were to be measured.
    """
    name, shown = main.artifact.name, judged.shown
    inspected = next(one for one in judged.inspected if one.row.name == name)
    apart = why_apart(main, profile)
    reason = apart or ("" if wanted else "latency was switched off")
    missing = dict.fromkeys(DEVICE_ONLY, reason) if reason else {}
    accuracy = next((a for a in shown.accuracy if a.artifact == name), None)
    if accuracy is None:
        for limit in ("drop", "agreement", "snr_db"):
            missing[limit] = "there are no evaluation data, or no runtime here"
    return Found(
        artifact=inspected.row,
        float_gemms=inspected.structure.float_gemms,
        told=Told(inspected.structure.operators, inspected.sizes, inspected.structure.compile),
        accuracy=accuracy,
        latency=next((x for x in shown.latency if x.artifact == name and not apart), None),
        comparison=next((c for c in shown.comparisons if c.candidate == name and not apart), None),
        memory=next((m for m in shown.memory if m.artifact == name and not apart), None),
        missing=missing,
    )


def _run(
    options: BuildOptions,
    inputs: Inputs,
    folder: Path,
    written: Sequence[Written],
    runnable: Sequence[Written],
    samples: Samples,
    stage: Stage,
) -> Shown:
    job, answers, latency, memory = inputs.job, JudgedAnswers(), Latency(), Memory()
    drift: tuple[DriftRow, ...] = ()
    with stage("golden vectors"):
        disagreements = write_golden_vectors(folder, runnable, job.loaded.methods, samples)
    with stage("accuracy"):
        if inputs.data.evaluation is not None:
            metric = options.metric if options.metric is not None else job.loaded.metric
            answers = judge_answers(folder, runnable, job, inputs.data.evaluation, metric)
    with stage("integer proof"):
        proof = _proofs(folder, runnable, samples)
    if options.drift and job.quantizes:
        with stage("drift ranking"):
            drift = _drift(written, samples)
    if options.latency:
        with stage("latency"):
            latency = time_pairs(folder, runnable, samples, job, options.samples)
        with stage("memory"):
            memory = measure_memory(folder, runnable)
    return Shown(
        accuracy=answers.accuracy,
        proof=proof,
        drift=drift,
        latency=latency.results,
        comparisons=latency.comparisons,
        memory=memory.results,
        warnings=(*disagreements, *answers.warnings, *memory.warnings),
    )


def _proofs(folder: Path, runnable: Sequence[Written], samples: Samples) -> tuple[ProofResult, ...]:
    """Compare each runtime's integers with the reference executor on one real batch."""
    found = []
    for written in runnable:
        artifact = written.artifact
        if artifact.precision != "int8":
            continue
        given = named_inputs(artifact, samples, PROOF_BATCH)
        programs = written.branch.state.carrier_programs
        found.append(inspector_for(artifact.format).prove(folder, artifact, given, programs))
    return tuple(proof for proof in found if proof is not None)


def _drift(written: Sequence[Written], samples: Samples) -> tuple[DriftRow, ...]:
    """Rank the layers of each own branch by what their quantization costs."""
    from edgeopt.analysis.drift import rank

    own = [one.branch for one in written if one.own] or [written[0].branch]
    first = next(samples.batches(min(DRIFT_SAMPLES, samples.count)))
    found: list[DriftRow] = []
    for branch in {id(branch): branch for branch in own}.values():
        before, after = branch.before.carrier_programs, branch.state.carrier_programs
        rows = rank(before[FORWARD], after[FORWARD], Batch(first.args, first.kwargs))
        found += [dataclasses.replace(row, target=branch.target.name) for row in rows]
    return tuple(found)
