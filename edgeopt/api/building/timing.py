"""Time what runs on this machine: each INT8 file against its float yardstick, and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.api.building.file_inputs import named_inputs
from edgeopt.api.building.job import Job
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.api.untimed import why_untimed_on_device, with_remedy
from edgeopt.data import Samples
from edgeopt.devices.machine import is_device
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


def why_apart(written: Written, profile: DeviceProfile) -> str:
    """Return why what is measured here of a file is not the device's, or an empty string.

    It is the device's where this machine is the device, the file is one of its own targets', and
    the file's own runtime is here to be timed.
    """
    if not is_device(profile):
        reason = f"needs the device ({profile.title})"
        return with_remedy(reason, written.artifact.format, "there")
    if not written.own:
        return "it stands in for another runtime"
    return why_untimed_on_device(written.artifact.format)


def why_untimed(
    written: Written, profile: DeviceProfile, samples: Samples | None, *, wanted: bool
) -> str:
    """Return why a file's latency was not measured.

    Args:
        written: The file.
        profile: The device.
        samples: What it would have been run on.
        wanted: Whether latency was to be measured at all.
    """
    format_ = written.artifact.format
    inspector = inspector_for(format_)
    here = is_device(profile)
    if not inspector.times_here and not here:
        return f"needs the device ({profile.title})"
    reason = why_untimed_on_device(format_) if here else inspector.untimed()
    if reason:
        return reason
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
        if written.artifact.precision != "int8" or inspector_for(format_).untimed() is not None:
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
        stand_in=bool(why_apart(written, job.profile)),
    )
