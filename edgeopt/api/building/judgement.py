"""Collect everything that a build is judged by."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.api.building import measure
from edgeopt.api.building.branches import Branch
from edgeopt.api.building.exporting import export
from edgeopt.api.building.job import Job
from edgeopt.api.building.judging import DEVICE_ONLY, Found
from edgeopt.api.building.shapes import has_dynamic_batch
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts import golden, io_forms
from edgeopt.artifacts.artifact import Artifact
from edgeopt.data import Samples
from edgeopt.devices.profile import Protocol
from edgeopt.devices.rules import Compute, load_rules
from edgeopt.errors import CheckFailed, RuntimeUnavailable
from edgeopt.ir.calls import FORWARD
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult, MemoryResult
from edgeopt.results.reports import ArtifactRow, FileRole
from edgeopt.results.structure import ContractResult, DriftRow, OperatorRow, ProofResult, SizeRow
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.inspection import Structure

if TYPE_CHECKING:
    from edgeopt.runtime_tests.latency import Subject

STAND_IN_BATCH = 32  # as the float reference: what it lacks is filled up
SAME_PROGRAM_DB = {"float32": 60.0, "float16": 20.0, "int8": 8.0}
"""Below this a file computes something else than its program. Runtimes differ in rounding, and a
deep INT8 transformer multiplies that: 17 dB were seen between two right ones; garbage is near 0."""


@dataclasses.dataclass(frozen=True)
class Written:
    """One written file and where it comes from.

    Attributes:
        artifact: The artifact.
        branch: The branch that it belongs to.
        own: Its target is one of the profile's own, not a stand-in.
        yardstick: It is the float file that the branch's own file is compared with.
    """

    artifact: Artifact
    branch: Branch
    own: bool
    yardstick: bool = False

    @property
    def role(self) -> FileRole:
        """What the report calls it."""
        if self.yardstick:
            return FileRole.YARDSTICK
        return FileRole.TARGET if self.own else FileRole.STAND_IN


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is to be measured.

    Attributes:
        evaluation: Evaluation samples, or None.
        metric: How answers are judged, or None: drift only.
        latency: Measure latency and memory.
        samples: Latency samples, or None: the protocol's.
        drift: Rank layers.
        seed: Of bootstraps and orders.
    """

    evaluation: Samples | None
    metric: Any
    latency: bool
    samples: int | None
    drift: bool
    seed: int


Stage = Callable[[str], AbstractContextManager[None]]


class Judgement:
    """Run the written files and keep what they show, for the report and for the limits."""

    def __init__(
        self, job: Job, wishes: Wishes, folder: Path, written: Sequence[Written], stage: Stage
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._folder = folder
        self._written = list(written)
        self._stage = stage
        self._runnable: list[Written] = []
        self._structure: dict[str, Structure] = {}
        self._unavailable: dict[str, str] = {}
        self.rows: dict[str, ArtifactRow] = {}
        self.operators: list[OperatorRow] = []
        self.sizes: list[SizeRow] = []
        self.contracts: list[ContractResult] = []
        self.compile: dict[str, Mapping[str, Any]] = {}
        self.accuracy: list[AccuracyResult] = []
        self.latency: list[LatencyResult] = []
        self.comparisons: list[Comparison] = []
        self.memory: list[MemoryResult] = []
        self.drift: tuple[DriftRow, ...] = ()
        self.proof: list[ProofResult] = []
        self.warnings: list[str] = []

    def collect(self) -> None:
        """Do everything that this machine can do.

        Raises:
            CheckFailed: If a contract does not hold in a written file.
        """
        with self._stage("inspect files"):
            self._inspect()
        self._find_runtimes()
        if not self._runnable:
            return
        with self._stage("golden vectors"):
            self._golden()
        with self._stage("accuracy"):
            self._measure_accuracy()
        with self._stage("integer proof"):
            self._prove()
        if self._wishes.drift and self._job.quantizes and self._samples() is not None:
            with self._stage("drift ranking"):
                self._rank()
        if self._wishes.latency and self._samples() is not None:
            with self._stage("latency"):
                self._measure_latency()
            with self._stage("memory"):
                self._measure_memory()

    def found_for_verdict(self) -> Found:
        """Return what the first target's own file showed."""
        main = self._written[0]
        name = main.artifact.name
        here = self._job.profile.runs_here == "any-cpu"
        missing = {}
        if not here:
            reason = f"needs the device ({self._job.profile.title})"
            if main.artifact.format == "tensorrt":
                reason += "; run build_engine.py there and attach what it writes"
            missing = {limit: reason for limit in DEVICE_ONLY}
        elif not self._wishes.latency:
            missing = {limit: "latency was switched off" for limit in DEVICE_ONLY}
        accuracy = next((a for a in self.accuracy if a.artifact == name), None)
        if accuracy is None:
            for limit in ("drop", "agreement", "snr_db"):
                missing[limit] = "there are no evaluation data, or no runtime here"
        return Found(
            artifact=self.rows[name],
            float_gemms=self._structure[name].float_gemms,
            compile=self._structure[name].compile,
            accuracy=accuracy,
            latency=next((x for x in self.latency if x.artifact == name and here), None),
            comparison=next((c for c in self.comparisons if c.candidate == name and here), None),
            memory=next((m for m in self.memory if m.artifact == name and here), None),
            missing=missing,
        )

    def why_untimed(self) -> dict[str, str]:
        """Return artifact -> why its latency was not measured, of those where it was not."""
        timed = {result.artifact for result in self.latency}
        return {
            written.artifact.name: self._why_untimed(written)
            for written in self._written
            if written.artifact.name not in timed
        }

    def _why_untimed(self, written: Written) -> str:
        format_ = written.artifact.format
        if not inspector_for(format_).times_here:
            return f"needs the device ({self._job.profile.title})"
        if format_ in self._unavailable:
            return self._unavailable[format_]
        if not self._wishes.latency:
            return "latency was switched off"
        if self._samples() is None:
            return "there are no samples to run it on"
        return "only INT8 files are timed, each against its float yardstick"

    def _samples(self) -> Samples | None:
        # Calibration first: golden vectors must not change with how many samples judge.
        return self._job.calibration or self._wishes.evaluation

    def _find_runtimes(self) -> None:
        """Keep the files that run here; say of the others why not."""
        reasons: dict[str, str | None] = {}
        for written in self._written:
            format_ = written.artifact.format
            if format_ not in reasons:
                reasons[format_] = inspector_for(format_).runner().unavailable()
            if reasons[format_] is None:
                self._runnable.append(written)
        for format_, reason in reasons.items():
            if reason is not None:
                self._unavailable[format_] = reason
                self.warnings.append(f"no {format_} file was run: {reason}")

    def _inspect(self) -> None:
        broken = []
        for written in self._written:
            artifact = written.artifact
            inspector = inspector_for(artifact.format)
            found = inspector.structure(self._folder, artifact, written.branch.target)
            self._structure[artifact.name] = found
            self.rows[artifact.name] = measure.artifact_row(artifact, found, written.role)
            self.operators += _with_reasons(found.operators, written)
            self.warnings += found.warnings
            if found.compile:
                self.compile[artifact.name] = found.compile
            self.sizes += inspector.sizes(self._folder, artifact)
            checked = measure.check_contracts(
                self._folder, artifact, written.branch.state.contracts
            )
            self.contracts += checked
            broken += [c for c in checked if not c.holds]
        if broken:
            first = broken[0]
            raise CheckFailed(
                f"{first.artifact}: contract {first.kind} of {first.site} does not hold in the "
                f"file: {first.message}" + (f" (and {len(broken) - 1} more)" * (len(broken) > 1))
            )

    def _golden(self) -> None:
        samples = self._samples()
        if samples is None:
            return
        for written in self._runnable:
            inputs, outputs = measure.golden(self._folder, written.artifact, samples)
            self._agrees(written, inputs, outputs)
            golden.write_golden(self._folder, written.artifact.name, inputs, outputs)

    def _agrees(self, written: Written, inputs: Arrays, outputs: Arrays) -> None:
        """Hold what a file computes against the program that it was written from.

        Some runtimes take a file and compute garbage from it in silence.

        Raises:
            CheckFailed: If the outputs are another function's.
        """
        artifact, branch = written.artifact, written.branch
        inputs = io_forms.model_inputs(artifact.methods[0], inputs)
        outputs = io_forms.model_outputs(artifact.methods[0], outputs)
        state = branch.state if artifact.precision == "int8" else branch.before
        snr = measure.snr_against_program(state.carrier_programs[FORWARD], inputs, outputs)
        for method, example in self._job.loaded.methods.items():
            exported = state.carrier_programs[method]
            given, got = measure.run_example(self._folder, artifact, method, example)
            snr = min(snr, measure.snr_against_program(exported, given, got))
        floor = SAME_PROGRAM_DB[artifact.precision]
        if snr >= floor:
            return
        message = (
            f"{artifact.name}: the file does not compute its program: {snr:.1f} dB, at least "
            f"{floor:g} dB are expected of {artifact.precision}"
        )
        if branch.target.float_type != "float16":
            raise CheckFailed(message)
        self.warnings.append(f"{message}; values beyond float16 do that")

    def _measure_accuracy(self) -> None:
        evaluation = self._wishes.evaluation
        if evaluation is None:
            return
        from edgeopt.runtime_tests.accuracy import ReferenceOutputs, overlap_warning

        warning = overlap_warning(
            self._job.calibration if self._job.quantizes else None, evaluation
        )
        if warning:
            self.warnings.append(warning)
        references: dict[int | None, ReferenceOutputs] = {}
        for written in self._runnable:
            if written.artifact.precision != "int8" and self._job.quantizes:
                continue  # the yardstick's answers are the float model's
            limit = inspector_for(written.artifact.format).sample_limit
            if limit not in references:
                judged = evaluation.take(limit, self._wishes.seed) if limit else evaluation
                references[limit] = ReferenceOutputs(self._job.reference, judged)
            reference = references[limit]
            with self._judged_file(written, evaluation) as (folder, artifact):
                self.accuracy.append(
                    measure.accuracy(
                        folder,
                        artifact,
                        reference,
                        self._wishes.metric,
                        warning=warning,
                        seed=self._wishes.seed,
                    )
                )

    @contextmanager
    def _judged_file(
        self, written: Written, evaluation: Samples
    ) -> Iterator[tuple[Path, Artifact]]:
        """Yield the file whose answers are judged.

        The file's own runtime runs the very file. Where ONNX Runtime stands in, it dequantizes
        every weight anew at each call, so it gets the same program at a larger batch.
        """
        artifact, state = written.artifact, written.branch.state
        batch = min(STAND_IN_BATCH, evaluation.count)
        fixed = measure.static_batch(artifact)
        can_grow = has_dynamic_batch(state.carrier_programs[FORWARD])
        own = not inspector_for(artifact.format).stands_in
        if own or fixed is None or fixed >= batch or not can_grow:
            yield self._folder, artifact
            return
        job = dataclasses.replace(self._job, batch=batch)
        with tempfile.TemporaryDirectory() as work:
            yield (
                Path(work),
                export(
                    job,
                    state,
                    written.branch.target,
                    Path(work),
                    name=artifact.name,
                    precision=artifact.precision,
                    build_key="",
                ),
            )

    def _prove(self) -> None:
        samples = self._samples()
        for written in self._runnable:
            if samples is None or written.artifact.precision != "int8":
                continue
            found = measure.proof(self._folder, written.artifact, written.branch, samples)
            if found is not None:
                self.proof.append(found)

    def _rank(self) -> None:
        samples = self._samples()
        assert samples is not None
        first = self._written[0]
        own = [w.branch for w in self._written if w.own] or [first.branch]
        branches = {id(branch): branch for branch in own}.values()
        self.drift = tuple(
            row for branch in branches for row in measure.drift_ranking(branch, samples)
        )

    def _measure_latency(self) -> None:
        from edgeopt.runtime_tests.latency import compare

        for int8, plain in self._pairs():
            protocol = self._protocol(int8)
            pair = compare(
                self._subject(int8, protocol),
                self._subject(plain, protocol),
                protocol,
                seed=self._wishes.seed,
                progress=self._job.progress,
            )
            self.latency += [pair.candidate, pair.baseline]
            self.comparisons.append(pair.comparison)

    def _subject(self, written: Written, protocol: Protocol) -> Subject:
        from edgeopt.runtime_tests.latency import subject

        samples = self._samples()
        assert samples is not None
        artifact = written.artifact
        return subject(
            artifact.name,
            inspector_for(artifact.format).runner(),
            [self._folder / artifact.model_file.path],
            measure.named_inputs(artifact, samples, measure.static_batch(artifact) or 1),
            protocol,
            method=artifact.methods[0].name,
            stand_in=self._job.profile.runs_here != "any-cpu",
        )

    def _pairs(self) -> list[tuple[Written, Written]]:
        """Return the INT8 files that run here, each with its float yardstick."""
        found = []
        for written in self._runnable:
            format_ = written.artifact.format
            if written.artifact.precision != "int8" or not inspector_for(format_).times_here:
                continue
            for other in self._runnable:
                same = other.branch is written.branch and other.artifact.format == format_
                if same and other.artifact.precision == written.branch.target.float_type:
                    found.append((written, other))
                    break
        return found

    def _protocol(self, written: Written) -> Protocol:
        protocol = written.branch.target.protocol
        if self._wishes.samples is None:
            return protocol
        return dataclasses.replace(
            protocol,
            samples=self._wishes.samples,
            block=min(protocol.block, self._wishes.samples),
        )

    def _measure_memory(self) -> None:
        for written in self._runnable:
            inspector = inspector_for(written.artifact.format)
            try:
                found = inspector.memory(self._folder, written.artifact)
            except RuntimeUnavailable as failure:
                self.warnings.append(f"memory was not measured: {failure}")
                return
            if found is not None:
                self.memory.append(found)


def _with_reasons(rows: Sequence[OperatorRow], written: Written) -> list[OperatorRow]:
    """Say why an operator is not INT8 where its runtime does not, by the target's rules."""
    rules = load_rules(written.branch.target.rules)
    found = []
    for row in rows:
        if row.precision != "int8" and not row.reason:
            operator = row.site.rpartition(":")[2].partition("#")[0]
            reason = rules.rule(operator).note if operator in rules.operators else ""
            moves = operator in rules.operators and (rules.rule(operator).compute is Compute.FOLLOW)
            if moves:
                reason = "moves floats between float operators"
            elif not reason:
                reason = f"the rules of {rules.name} keep it in float"
            row = dataclasses.replace(row, reason=reason)
        found.append(row)
    return found
