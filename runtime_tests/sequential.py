"""Compare two files until it is decided whether their ratio keeps to a bound, or time is up.

Looking several times at growing samples errs more often than looking once, so each look uses a
narrower error: Pocock's constant boundary for equally spaced looks (Biometrika 64, 1977, table 1),
with which all looks together err in 5 % of the cases.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.devices.machine import machine
from edgeopt.devices.profile import Protocol
from edgeopt.progress import Progress, no_progress
from edgeopt.results.measurements import Comparison, MemoryResult
from edgeopt.runtime_tests.latency import (
    MIN_BLOCKS,
    RESAMPLES,
    Array,
    Pair,
    Subject,
    interleave,
    paired,
    shape,
)

LOOKS = 4
LEVEL = 1 - 0.0182
"""Of the interval at each of four looks; together they cover the truth in 95 % of the cases."""
TAIL_CALLS = 500
"""Calls that a 99th percentile needs: with fewer, less than five are above it."""
BUDGET_S = 120.0
"""The looks at one pair of files take about this long at most."""
FIRST_MEMORY_ROUNDS = 3
MEMORY_ROUNDS = 9


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio candidate / baseline with its 95 % interval, and the two numbers.

    Attributes:
        candidate: The candidate's number.
        baseline: The baseline's.
        value: Their ratio, as estimated from pairs.
        low: Lower end.
        high: Upper end.
    """

    candidate: float
    baseline: float
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Looked:
    """What one or several looks at a pair showed.

    Attributes:
        pair: The latencies, and the comparison by medians.
        tail: The ratio of the 99th percentiles, or None: there are not `TAIL_CALLS` calls.
        looks: How often the growing samples were judged.
        ended: Why no more were taken: `decided`, `enough looks` or `time is up`.
        seconds: How long it took.
    """

    pair: Pair
    tail: Ratio | None
    looks: int
    ended: str
    seconds: float


def compare_until(
    candidate: Subject,
    baseline: Subject,
    protocol: Protocol,
    decided: Callable[[Comparison, Ratio | None], bool],
    *,
    looks: int = LOOKS,
    budget_s: float = BUDGET_S,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.monotonic,
) -> Looked:
    """Time two files interleaved, look by look, until `decided` or the looks or the time end.

    Args:
        candidate: The one judged.
        baseline: What it is judged against; it is compared with itself first, for the noise.
        protocol: Of one look: each takes `protocol.samples` calls of each file.
        decided: Told the comparison and the tail so far.
        looks: Looks at most, up to `LOOKS`.
        budget_s: No look begins that would end after this.
        seed: Of orders and resampling.
        progress: Called with (what, done, total).
        clock: Seconds.

    Raises:
        BundleError: If a file cannot be loaded or run.
    """
    assert 1 <= looks <= LOOKS
    started = clock()
    here = machine()
    random = np.random.default_rng(seed)
    half = dataclasses.replace(protocol, samples=max(protocol.samples // 2, 1))
    words = "this machine's noise"
    equal = interleave((baseline, baseline), *shape(half), protocol.warmup, random, progress, words)
    blocks, size = shape(protocol)
    one, other = np.empty((0, size)), np.empty((0, size))
    for look in range(1, looks + 1):
        begun = clock()
        words = f"timing {candidate.artifact} against {baseline.artifact}, look {look}"
        first, second = interleave(
            (candidate, baseline), blocks, size, protocol.warmup, random, progress, words
        )
        one, other = np.concatenate((one, first)), np.concatenate((other, second))
        pair = paired(
            (candidate, one),
            (baseline, other),
            (equal[0], equal[1]),
            protocol,
            here,
            seed=seed,
            level=LEVEL,
        )
        tail = tail_ratio(one, other, seed=seed) if one.size >= TAIL_CALLS else None
        now = clock()
        late = now - started + (now - begun) > budget_s
        ended = (
            "decided"
            if decided(pair.comparison, tail)
            else "enough looks"
            if look == looks
            else "time is up"
            if late
            else ""
        )
        if ended:
            return Looked(pair, tail, look, ended, now - started)
    raise AssertionError("the last look ends")


def fitted(
    protocol: Protocol, load_s: float, call_s: float, budget_s: float = BUDGET_S
) -> Protocol:
    """Return the protocol with fewer calls where all looks would not fit the time.

    Args:
        protocol: As wished for.
        load_s: Seconds that one load takes.
        call_s: Seconds that one call takes.
        budget_s: For all looks together.
    """
    blocks, size = shape(protocol)
    look_s = 2 * blocks * (load_s + (size + protocol.warmup) * call_s)
    share = budget_s / (LOOKS + 0.5) / look_s if look_s > 0 else 1.0  # the noise: half a look
    if share >= 1:
        return protocol
    samples = max(int(protocol.samples * share), 2 * MIN_BLOCKS)
    return dataclasses.replace(
        protocol,
        samples=samples,
        block=min(protocol.block, max(samples // MIN_BLOCKS, 1)),
        warmup=min(protocol.warmup, max(int(protocol.warmup * share), 1)),
    )


def tail_ratio(candidate: Array, baseline: Array, *, seed: int = 0, level: float = LEVEL) -> Ratio:
    """Return the ratio of the 99th percentiles, with its interval by resampling whole blocks.

    Blocks are drawn for both files together: what disturbed one disturbed the other.

    Args:
        candidate: Milliseconds `[blocks, samples]`.
        baseline: The same shape, interleaved with it.
        seed: Of the resampling.
        level: How often the interval covers the truth.
    """
    blocks = len(candidate)
    own, other = (float(np.percentile(x, 99)) for x in (candidate, baseline))
    draws = np.random.default_rng(seed).integers(0, blocks, (RESAMPLES // 4, blocks))
    found = np.array(
        [np.percentile(x[draws].reshape(len(draws), -1), 99, axis=1) for x in (candidate, baseline)]
    )
    logs = np.log(found[0]) - np.log(found[1])
    low, high = np.percentile(logs, (50 * (1 - level), 50 * (1 + level)))
    centre = math.log(own / other)
    return Ratio(
        own,
        other,
        math.exp(centre),
        math.exp(min(float(low), centre)),
        math.exp(max(float(high), centre)),
    )


def memory_until(
    candidate: Callable[[], MemoryResult],
    baseline: Callable[[], MemoryResult],
    decided: Callable[[Ratio], bool],
    *,
    rounds: int = MEMORY_ROUNDS,
) -> Ratio | None:
    """Compare what loading and running two files adds to a process, by turns.

    A peak is sometimes higher by pages that the system gave at once, and never lower than what the
    file needs: the smallest of several is the estimate. The interval's ends take the second
    smallest in its place, on one side each.

    Args:
        candidate: Measures the one judged once.
        baseline: Measures the other once.
        decided: Told the ratio so far.
        rounds: Rounds at most.

    Returns:
        The ratio, or None where a file adds nothing that can be seen.
    """
    ours: list[float] = []
    theirs: list[float] = []
    ratio: Ratio | None = None
    for index in range(max(rounds, FIRST_MEMORY_ROUNDS)):
        ours.append(_added(candidate()))
        theirs.append(_added(baseline()))
        if index + 1 < FIRST_MEMORY_ROUNDS:
            continue
        ratio = memory_ratio(ours, theirs)
        if ratio is None or decided(ratio):
            break
    return ratio


def memory_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio | None:
    """Return the ratio of the smallest of several peaks, or None where one is not above 0."""
    ours, theirs = sorted(candidate)[:2], sorted(baseline)[:2]
    if min(ours[0], theirs[0]) <= 0:
        return None
    return Ratio(ours[0], theirs[0], ours[0] / theirs[0], ours[0] / theirs[1], ours[1] / theirs[0])


def _added(memory: MemoryResult) -> float:
    return memory.peak_rss_mb - memory.base_rss_mb


def cost(what: Subject, calls: int = 3) -> tuple[float, float]:
    """Return how long a load and a warm call take, in seconds.

    Raises:
        BundleError: If the file cannot be loaded or run.
    """
    started = time.perf_counter()
    opened = what.open()
    load_s = time.perf_counter() - started
    try:
        opened.sample()
        return load_s, statistics.median(opened.sample() for _ in range(calls)) / 1e3
    finally:
        opened.close()
