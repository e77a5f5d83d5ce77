"""Judge the answers of the files that run here."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.api.building.exporting import export
from edgeopt.api.building.file_inputs import largest_batch, static_batch
from edgeopt.api.building.job import Job
from edgeopt.api.building.shapes import has_dynamic_batch
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts import io_forms
from edgeopt.artifacts.artifact import Artifact
from edgeopt.data import Samples
from edgeopt.ir.calls import FORWARD
from edgeopt.results.measurements import AccuracyResult
from edgeopt.runtime_tests.base import Session

if TYPE_CHECKING:
    from edgeopt.runtime_tests.accuracy import ReferenceOutputs

STAND_IN_BATCH = 32  # as the float reference: what it lacks is filled up


@dataclasses.dataclass(frozen=True)
class JudgedAnswers:
    """How good the files' answers are.

    Attributes:
        accuracy: Of each judged file.
        warnings: What to doubt about the data.
    """

    accuracy: tuple[AccuracyResult, ...] = ()
    warnings: tuple[str, ...] = ()


def judge_answers(
    folder: Path, runnable: Sequence[Written], job: Job, evaluation: Samples, metric: Any
) -> JudgedAnswers:
    """Judge each file that answers for itself; a float yardstick's answers are the float model's.

    Args:
        folder: Where the files are.
        runnable: The files that run here.
        job: The build's.
        evaluation: The samples.
        metric: How answers are judged, or None: drift only.
    """
    from edgeopt.runtime_tests.accuracy import ReferenceOutputs, overlap_warning

    warning = overlap_warning(job.calibration if job.quantizes else None, evaluation)
    references: dict[int | None, ReferenceOutputs] = {}
    found = []
    for written in runnable:
        if written.artifact.precision != "int8" and job.quantizes:
            continue
        limit = inspector_for(written.artifact.format).sample_limit
        if limit not in references:
            judged = evaluation.take(limit, job.seed) if limit else evaluation
            references[limit] = ReferenceOutputs(job.reference, judged)
        with _judged_file(folder, written, job, evaluation) as (place, artifact):
            found.append(
                _accuracy(place, artifact, references[limit], metric, warning, seed=job.seed)
            )
    return JudgedAnswers(tuple(found), (warning,) if warning else ())


@contextlib.contextmanager
def _judged_file(
    folder: Path, written: Written, job: Job, evaluation: Samples
) -> Iterator[tuple[Path, Artifact]]:
    """Yield the file whose answers are judged.

    The file's own runtime runs the very file. Where ONNX Runtime stands in, it dequantizes every
    weight anew at each call, so it gets the same program at a larger batch.
    """
    artifact, state = written.artifact, written.branch.state
    batch = min(STAND_IN_BATCH, evaluation.count)
    fixed = static_batch(artifact)
    can_grow = has_dynamic_batch(state.carrier_programs[FORWARD])
    own = not inspector_for(artifact.format).stands_in
    if own or fixed is None or fixed >= batch or not can_grow:
        yield folder, artifact
        return
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        larger = export(
            dataclasses.replace(job, batch=batch),
            state,
            written.branch.target,
            place,
            name=artifact.name,
            precision=artifact.precision,
            build_key="",
        )
        yield place, larger


def _accuracy(
    folder: Path,
    artifact: Artifact,
    reference: ReferenceOutputs,
    metric: Any,
    warning: str,
    *,
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
            runs.append(_caller(session, artifact))
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


def _caller(
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
