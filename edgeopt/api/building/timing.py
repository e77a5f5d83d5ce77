"""Time what runs on this machine: each INT8 file against its float yardstick, and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.api.building.file_inputs import named_inputs
from edgeopt.api.building.job import Job
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.data import Samples
from edgeopt.devices.profile import DeviceProfile, Protocol
from edgeopt.errors import RuntimeUnavailable
from edgeopt.results.measurements import Comparison, LatencyResult, MemoryResult

if TYPE_CHECKING:
    from edgeopt.runtime_tests.latency import Subject


@dataclasses.dataclass(frozen=True)
class Latency:
    """What was timed.

    Attributes:
        results: Of both files of each pair.
        comparisons: Of the pairs.
    """

    results: tuple[LatencyResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


@dataclasses.dataclass(frozen=True)
class Memory:
    """What memory was measured.

    Attributes:
        results: Of each file whose runtime can tell.
        warnings: Why there is no more.
    """

    results: tuple[MemoryResult, ...] = ()
    warnings: tuple[str, ...] = ()


def time_pairs(
    folder: Path, runnable: Sequence[Written], samples: Samples, job: Job, count: int | None
) -> Latency:
    """Time each INT8 file and its float yardstick, call by call in turn.

    Args:
        folder: Where the files are.
        runnable: The files that run here.
        samples: What they are run on.
        job: The build's.
        count: Latency samples of each file, or None: the protocol's.
    """
    from edgeopt.runtime_tests.latency import compare

    results: list[LatencyResult] = []
    comparisons: list[Comparison] = []
    for int8, plain in _pairs(runnable):
        protocol = _protocol(int8, count)
        pair = compare(
            _subject(folder, int8, samples, job, protocol),
            _subject(folder, plain, samples, job, protocol),
            protocol,
            seed=job.seed,
            progress=job.progress,
        )
        results += [pair.candidate, pair.baseline]
        comparisons.append(pair.comparison)
    return Latency(tuple(results), tuple(comparisons))


def measure_memory(folder: Path, runnable: Sequence[Written]) -> Memory:
    """Measure the peak memory of each file that runs here; stop where the system cannot tell."""
    results: list[MemoryResult] = []
    for written in runnable:
        inspector = inspector_for(written.artifact.format)
        try:
            found = inspector.memory(folder, written.artifact)
        except RuntimeUnavailable as failure:
            return Memory(tuple(results), (f"memory was not measured: {failure}",))
        if found is not None:
            results.append(found)
    return Memory(tuple(results))


def why_untimed(
    written: Written,
    profile: DeviceProfile,
    unavailable: Mapping[str, str],
    samples: Samples | None,
    *,
    wanted: bool,
) -> str:
    """Return why a file's latency was not measured.

    Args:
        written: The file.
        profile: The device.
        unavailable: Format -> why its runtime is not here.
        samples: What it would have been run on.
        wanted: Whether latency was to be measured at all.
    """
    format_ = written.artifact.format
    if not inspector_for(format_).times_here:
        return f"needs the device ({profile.title})"
    if format_ in unavailable:
        return unavailable[format_]
    if not wanted:
        return "latency was switched off"
    if samples is None:
        return "there are no samples to run it on"
    return "only INT8 files are timed, each against its float yardstick"


def _pairs(runnable: Sequence[Written]) -> list[tuple[Written, Written]]:
    """Return the INT8 files that can be timed here, each with its float yardstick."""
    found = []
    for written in runnable:
        format_ = written.artifact.format
        if written.artifact.precision != "int8" or not inspector_for(format_).times_here:
            continue
        for other in runnable:
            same = other.branch is written.branch and other.artifact.format == format_
            if same and other.artifact.precision == written.branch.target.float_type:
                found.append((written, other))
                break
    return found


def _protocol(written: Written, count: int | None) -> Protocol:
    protocol = written.branch.target.protocol
    if count is None:
        return protocol
    return dataclasses.replace(protocol, samples=count, block=min(protocol.block, count))


def _subject(
    folder: Path, written: Written, samples: Samples, job: Job, protocol: Protocol
) -> Subject:
    from edgeopt.runtime_tests.latency import subject

    artifact = written.artifact
    return subject(
        artifact.name,
        inspector_for(artifact.format).runner(),
        [folder / artifact.model_file.path],
        named_inputs(artifact, samples, 1),
        protocol,
        method=artifact.methods[0].name,
        stand_in=job.profile.runs_here != "any-cpu",
    )
