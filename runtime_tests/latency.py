"""Latency of exported files: one, or two against each other.

Two sessions of the same file differ by one to two percent for good (their memory layout), so the
session is a random effect: samples are taken in small blocks, the sessions are made anew for each
block, and intervals come from resampling whole blocks. Two files are interleaved call by call.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeopt.devices.machine import machine
from edgeopt.devices.profile import Protocol as LatencyProtocol
from edgeopt.progress import Progress, no_progress
from edgeopt.results.measurements import Comparison, LatencyResult, Machine, Percentile
from edgeopt.results.verdicts import Pace
from edgeopt.runtime_tests.base import Arrays, LoadOptions, RemoteSession, Runner, Session

Array = np.ndarray[Any, Any]

EQUIVALENCE = 0.02  # two files within 2 % are the same to whoever ships one
MAX_NOISE = 0.05  # a machine noisier than this cannot show that two files are the same
MIN_BLOCKS = 5
RESAMPLES = 2000
CONFIDENCE = (2.5, 97.5)  # percentiles of a 95 % interval


class Timed(Protocol):
    """A loaded model whose calls are timed."""

    def sample(self) -> float:
        """Make one call and return how long it took, in milliseconds."""
        ...

    def samples(self, order: Sequence[Timed]) -> list[float] | None:
        """Make one call of each, in this order, where one other process holds them all.

        That process takes the times, without a message between two calls. None where this one
        holds them.
        """
        ...

    def close(self) -> None:
        """Free it."""
        ...


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        artifact: Its name in results.
        runtime: Name and version of what runs it.
        open: Loads it anew.
        method: The program's method.
        stand_in: The profile's device is another one than this machine.
    """

    artifact: str
    runtime: str
    open: Callable[[], Timed]
    method: str = "forward"
    stand_in: bool = False


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two subjects, measured together.

    Attributes:
        candidate: Its latency.
        baseline: Its latency.
        comparison: The judged ratio.
    """

    candidate: LatencyResult
    baseline: LatencyResult
    comparison: Comparison


@dataclasses.dataclass
class _TimedSession:
    session: Session
    method: str
    inputs: Arrays

    def samples(self, order: Sequence[Timed]) -> list[float] | None:
        return None

    def sample(self) -> float:
        start_ns = time.perf_counter_ns()
        self.session.run(self.method, self.inputs)
        return (time.perf_counter_ns() - start_ns) / 1e6

    def close(self) -> None:
        self.session.close()


@dataclasses.dataclass
class _RemotelyTimed:
    """A session in another process, which takes the times."""

    session: RemoteSession

    def sample(self) -> float:
        (taken,) = self.session.timed([self.session])
        return taken

    def samples(self, order: Sequence[Timed]) -> list[float] | None:
        remote = [timed.session for timed in order if isinstance(timed, _RemotelyTimed)]
        together = len(remote) == len(order) and self.session.holds(remote)
        return self.session.timed(remote) if together else None

    def close(self) -> None:
        self.session.close()


def subject(
    artifact: str,
    runner: Runner,
    files: Sequence[Path],
    inputs: Arrays,
    protocol: LatencyProtocol,
    *,
    method: str = "forward",
    stand_in: bool = False,
) -> Subject:
    """Describe a file for measurement.

    Raises:
        RuntimeUnavailable: If the runtime is missing.
    """
    options = LoadOptions(threads=protocol.threads)
    paths = tuple(files)

    def load() -> Timed:
        session = runner.load(paths, options)
        if not isinstance(session, RemoteSession):
            return _TimedSession(session, method, inputs)
        session.prepare(method, inputs)
        return _RemotelyTimed(session)

    return Subject(artifact, runner.version(), load, method, stand_in)


def measure(
    what: Subject,
    protocol: LatencyProtocol,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LatencyResult:
    """Measure one subject.

    Raises:
        BundleError: If the file cannot be loaded or run.
    """
    here = machine()
    (samples,) = _blocks((what,), protocol, seed, progress, f"timing {what.artifact}")
    return _latency(what, samples, protocol, here, seed)


def compare(
    candidate: Subject,
    baseline: Subject,
    protocol: LatencyProtocol,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Pair:
    """Measure two subjects interleaved and judge the ratio candidate / baseline.

    The baseline is first compared with itself, at half the length: that is the machine's noise.

    Raises:
        BundleError: If a file cannot be loaded or run.
    """
    here = machine()
    half = dataclasses.replace(protocol, samples=max(protocol.samples // 2, 1))
    equal = _blocks((baseline, baseline), half, seed, progress, "this machine's noise")
    words = f"timing {candidate.artifact} against {baseline.artifact}"
    first, second = _blocks((candidate, baseline), protocol, seed + 1, progress, words)
    return paired(
        (candidate, first), (baseline, second), (equal[0], equal[1]), protocol, here, seed=seed
    )


def paired(
    candidate: tuple[Subject, Array],
    baseline: tuple[Subject, Array],
    equal: tuple[Array, Array],
    protocol: LatencyProtocol,
    here: Machine,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Pair:
    """Judge interleaved samples.

    Args:
        candidate: The one judged, with its milliseconds `[blocks, samples]`.
        baseline: What it is judged against, likewise.
        equal: The baseline against itself: the machine's noise.
        protocol: How they were taken.
        here: The machine.
        seed: Of the resampling.
        level: Of the ratio's interval.
    """
    (one, first), (other, second) = candidate, baseline
    noise = machine_noise(equal[0], equal[1], len(first), seed=seed)
    ratio, low, high = ratio_interval(first, second, seed=seed, level=level)
    comparison = Comparison(
        candidate=one.artifact,
        baseline=other.artifact,
        ratio=ratio,
        low=low,
        high=high,
        noise=noise,
        pace=judge(ratio, low, high, noise),
        pairs=first.size,
        samples_ms={
            "candidate": tuple(first.reshape(-1).tolist()),
            "baseline": tuple(second.reshape(-1).tolist()),
        },
    )
    return Pair(
        _latency(one, first, protocol, here, seed),
        _latency(other, second, protocol, here, seed),
        comparison,
    )


def judge(ratio: float, low: float, high: float, noise: float) -> Pace:
    """Return the verdict on a ratio with its 95 % interval.

    *same*: the interval lies within the equivalence margin, which is at least the noise, on a
    machine quiet enough to say so. *faster*, *slower*: the interval excludes 1, and the ratio is
    further from 1 than equal files are on this machine. Else *cannot tell*.
    """
    margin = max(EQUIVALENCE, noise)
    if noise <= MAX_NOISE and 1 / (1 + margin) <= low and high <= 1 + margin:
        return Pace.SAME
    if low > 1 and ratio > 1 + noise:
        return Pace.SLOWER
    if high < 1 and ratio < 1 / (1 + noise):
        return Pace.FASTER
    return Pace.CANNOT_TELL


def ratio_interval(
    candidate: Array, baseline: Array, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the ratio of the medians and its interval, by resampling blocks.

    Each block gives `log(median(candidate) / median(baseline))`; the ratio is the exponential of
    their mean without the tenth at either end. Few blocks resample too narrowly, so deviations
    are widened by `sqrt(B / (B - 1)) * t / z` (Student's t with B - 1 degrees of freedom).

    Args:
        candidate: Milliseconds `[blocks, samples]`.
        baseline: The same shape, interleaved with it.
        seed: Of the resampling.
        level: How often the interval covers the truth.

    Returns:
        Ratio, low and high; (ratio, 0, inf) where one block tells nothing of the sessions.
    """
    logs = np.log(np.median(candidate, axis=1)) - np.log(np.median(baseline, axis=1))
    centre = float(_trimmed_mean(logs[None])[0])
    blocks = len(logs)
    if blocks < 2:
        return math.exp(centre), 0.0, math.inf
    draws = np.random.default_rng(seed).integers(0, blocks, (RESAMPLES, blocks))
    low, high = np.percentile(_trimmed_mean(logs[draws]), _ends(level))
    widen = _widening(blocks, level)
    return (
        math.exp(centre),
        math.exp(centre - max(centre - float(low), 0.0) * widen),
        math.exp(centre + max(float(high) - centre, 0.0) * widen),
    )


def machine_noise(one: Array, other: Array, blocks: int, *, seed: int = 0) -> float:
    """Return how far from 1 the interval of equal files reaches in a comparison of `blocks` blocks.

    Args:
        one: Milliseconds `[fewer blocks, samples]` of a file.
        other: Of the same file, interleaved.
        blocks: Blocks of the comparison that is to be judged; intervals narrow with their number.
        seed: Of the resampling.
    """
    _, low, high = ratio_interval(one, other, seed=seed)
    reach = max(high - 1, 1 - low)
    measured = len(one)
    if measured < 2 or blocks < 2:
        return reach
    narrower = math.sqrt(measured / blocks) * _widening(blocks) / _widening(measured)
    return reach * narrower


def percentile(samples: Array, rank: float, *, seed: int = 0) -> Percentile:
    """Return a percentile with its 95 % interval, by resampling blocks.

    Args:
        samples: Milliseconds `[blocks, samples]`; a single block is resampled call by call.
        rank: From 0 to 100.
        seed: Of the resampling.
    """
    value = float(np.percentile(samples, rank))
    rows = samples if len(samples) > 1 else samples.reshape(-1, 1)
    draws = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES // 4, len(rows)))
    found = np.percentile(rows[draws].reshape(len(draws), -1), rank, axis=1)
    low, high = (float(v) for v in np.percentile(found, CONFIDENCE))
    return Percentile(value, min(low, value), max(high, value))


def _latency(
    what: Subject, samples: Array, protocol: LatencyProtocol, here: Machine, seed: int
) -> LatencyResult:
    return LatencyResult(
        artifact=what.artifact,
        runtime=what.runtime,
        machine=here,
        threads=protocol.threads,
        batch=protocol.batch,
        p50=percentile(samples, 50, seed=seed),
        p90=percentile(samples, 90, seed=seed),
        p99=percentile(samples, 99, seed=seed),
        samples_ms=tuple(samples.reshape(-1).tolist()),
        block=samples.shape[1],
        method=what.method,
        stand_in=what.stand_in,
    )


def _blocks(
    subjects: Sequence[Subject],
    protocol: LatencyProtocol,
    seed: int,
    progress: Progress,
    words: str,
) -> list[Array]:
    """Take the samples of each subject: `[blocks, samples]` milliseconds, blocks of equal size."""
    blocks, size = shape(protocol)
    random = np.random.default_rng(seed)
    return interleave(subjects, blocks, size, protocol.warmup, random, progress, words)


def shape(protocol: LatencyProtocol) -> tuple[int, int]:
    """Return how many blocks a protocol's samples make, and the size of each."""
    wanted = max(math.ceil(protocol.samples / protocol.block), MIN_BLOCKS)
    blocks = min(wanted, protocol.samples)
    return blocks, math.ceil(protocol.samples / blocks)


def interleave(
    subjects: Sequence[Subject],
    blocks: int,
    size: int,
    warmup: int,
    random: np.random.Generator,
    progress: Progress,
    words: str,
) -> list[Array]:
    """Take `[blocks, size]` milliseconds of each subject, their calls interleaved.

    Args:
        subjects: What is timed; one may stand in it twice.
        blocks: How often the sessions are made anew.
        size: Samples of each subject in a block.
        warmup: Calls before the first sample of a session.
        random: Draws the orders.
        progress: Called with (words, done, blocks).
        words: What it is told.
    """
    taken: list[list[list[float]]] = [[] for _ in subjects]
    for index in range(blocks):
        progress(words, index, blocks)
        for samples, found in zip(taken, _one_block(subjects, size, warmup, random), strict=True):
            samples.append(found)
    progress(words, blocks, blocks)
    return [np.asarray(samples, np.float64) for samples in taken]


def _one_block(
    subjects: Sequence[Subject], size: int, warmup: int, random: np.random.Generator
) -> list[list[float]]:
    """Load the subjects anew in random order, warm them up, and interleave their calls."""
    count = len(subjects)
    opened: dict[int, Timed] = {}
    try:
        for i in random.permutation(count):
            opened[int(i)] = subjects[i].open()
        for i in random.permutation(count):
            for _ in range(warmup):
                opened[int(i)].sample()
        order = [int(i) for _ in range(size) for i in random.permutation(count)]
        calls = [opened[i] for i in order]
        taken = calls[0].samples(calls)
        if taken is None:
            taken = [call.sample() for call in calls]
        samples: list[list[float]] = [[] for _ in subjects]
        for i, ms in zip(order, taken, strict=True):
            samples[i].append(ms)
        return samples
    finally:
        for timed in opened.values():
            timed.close()


def _trimmed_mean(rows: Array) -> Array:
    """Return each row's mean without its smallest and largest tenth."""
    cut = rows.shape[1] // 10
    kept = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut]
    return np.asarray(kept.mean(axis=1))


def _ends(level: float) -> tuple[float, float]:
    """Return the percentiles of an interval, 2.5 and 97.5 for 0.95."""
    return 50 * (1 - level), 50 * (1 + level)


def _widening(blocks: int, level: float = 0.95) -> float:
    """Return by how much resampling `blocks` blocks underrates an interval."""
    from scipy import stats

    rank = (1 + level) / 2
    student, normal = stats.t.ppf(rank, blocks - 1), stats.norm.ppf(rank)
    return math.sqrt(blocks / (blocks - 1)) * float(student / normal)
