"""Looking several times, on clocks and memories that are made up."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from edgeopt.devices.profile import Protocol
from edgeopt.results.measurements import Comparison, MemoryResult
from edgeopt.runtime_tests.latency import MIN_BLOCKS, Subject, ratio_interval, shape
from edgeopt.runtime_tests.sequential import (
    LEVEL,
    LOOKS,
    MEMORY_ROUNDS,
    TAIL_CALLS,
    Looked,
    Ratio,
    compare_until,
    cost,
    fitted,
    memory_ratio,
    memory_until,
    tail_ratio,
)

LOOK = Protocol(warmup=1, samples=100, block=10)


@dataclasses.dataclass
class Clock:
    """One session of a made-up file."""

    base: float
    random: np.random.Generator
    noise: float

    def sample(self) -> float:
        return float(self.base * np.exp(abs(self.random.normal(0, self.noise))))

    def samples(self, order: object) -> None:
        return None

    def close(self) -> None:
        return None


def subject(
    name: str, milliseconds: float, random: np.random.Generator, noise: float, session: float
) -> Subject:
    def load() -> Clock:
        return Clock(milliseconds * float(np.exp(random.normal(0, session))), random, noise)

    return Subject(name, "clock 1", load)


def decided_at(limit: float) -> object:
    def decided(found: Comparison, _tail: Ratio | None) -> bool:
        return found.high <= limit or found.low > limit

    return decided


def run(
    ratio: float, *, seed: int = 0, noise: float = 0.03, session: float = 0.01, limit: float = 1.05,
    budget_s: float = 60.0, looks: int = LOOKS,
) -> Looked:  # fmt: skip
    random = np.random.default_rng(seed)
    ticks = itertools.count()
    return compare_until(
        subject("new", ratio, random, noise, session),
        subject("old", 1.0, random, noise, session),
        LOOK,
        decided_at(limit),  # type: ignore[arg-type]
        seed=seed,
        budget_s=budget_s,
        looks=looks,
        clock=lambda: float(next(ticks)),
    )


def test_a_clear_change_takes_one_look() -> None:
    for ratio in (0.5, 1.5):
        looked = run(ratio)
        assert (looked.looks, looked.ended) == (1, "decided")
        assert looked.pair.comparison.pairs == 100
        assert looked.pair.comparison.low < ratio < looked.pair.comparison.high


def test_a_change_at_the_limit_takes_more_samples_and_ends() -> None:
    looked = run(1.05, session=0.03)
    assert (looked.looks, looked.ended) == (LOOKS, "enough looks")
    assert looked.pair.comparison.pairs == LOOKS * 100
    assert len(looked.pair.candidate.samples_ms) == LOOKS * 100
    one = run(1.05, session=0.03, looks=1)
    assert one.looks == 1
    first, all_ = one.pair.comparison, looked.pair.comparison
    assert all_.high - all_.low < first.high - first.low


def test_no_look_begins_that_would_end_late() -> None:
    # The made-up clock ticks at the start, and when a look begins and ends.
    one = run(1.05, session=0.03, budget_s=2.5)
    assert (one.looks, one.ended) == (1, "time is up")
    two = run(1.05, session=0.03, budget_s=4.5)
    assert (two.looks, two.ended) == (2, "time is up")


def test_several_looks_err_as_seldom_as_one() -> None:
    def wrong(level: float) -> int:
        """Count of 150 comparisons of equal files in which one of four looks sees a difference."""
        random = np.random.default_rng(3)
        found = 0
        for seed in range(150):
            sessions = np.exp(random.normal(0, 0.02, (2, 40, 1)))
            one, other = sessions * np.exp(np.abs(random.normal(0, 0.03, (2, 40, 4))))
            looks = (
                ratio_interval(one[:blocks], other[:blocks], seed=seed, level=level)
                for blocks in (10, 20, 30, 40)
            )
            found += any(low > 1 or high < 1 for _, low, high in looks)
        return found

    # 7.5 of 150 expected; 15 or more would happen once in 100 times.
    assert wrong(LEVEL) < 15
    assert wrong(0.95) > wrong(LEVEL)  # what looking again costs


def test_the_tail_needs_calls() -> None:
    assert run(1.05, session=0.03).tail is None  # 400
    random = np.random.default_rng(0)
    protocol = Protocol(warmup=0, samples=TAIL_CALLS, block=25)
    looked = compare_until(
        subject("new", 2.0, random, 0.05, 0.01),
        subject("old", 1.0, random, 0.05, 0.01),
        protocol,
        lambda _c, tail: tail is not None,
    )
    assert looked.tail is not None
    assert looked.tail.low < 2.0 < looked.tail.high
    assert looked.tail.candidate > looked.pair.candidate.p50.value


def test_the_tails_of_equal_files_are_seldom_far_apart() -> None:
    random = np.random.default_rng(1)
    beyond = covered = 0
    for seed in range(80):
        sessions = np.exp(random.normal(0, 0.01, (2, 25, 1)))
        calls = 1 + random.exponential(0.1, (2, 25, 24)) ** 1.5
        late = np.where(random.random((2, 25, 24)) < 0.02, random.uniform(1, 3, (2, 25, 24)), 1)
        ratio = tail_ratio(
            sessions[0] * calls[0] * late[0], sessions[1] * calls[1] * late[1], seed=seed
        )
        covered += ratio.low <= 1 <= ratio.high
        beyond += ratio.low > 1.2
    assert covered >= 72  # 95 % of 80 are 76
    assert beyond == 0


def test_a_slow_model_gets_fewer_calls_and_keeps_its_blocks() -> None:
    usual = Protocol(warmup=10, samples=240, block=24)
    assert fitted(usual, 0.01, 0.001) == usual
    slow = fitted(usual, 0.1, 1.0, budget_s=120)
    assert slow.samples == 2 * MIN_BLOCKS
    assert slow.warmup == 1
    assert shape(slow) == (MIN_BLOCKS, 2)
    middle = fitted(usual, 0.0, 0.05, budget_s=120)
    assert 2 * MIN_BLOCKS < middle.samples < 240
    blocks, size = shape(middle)
    look_s = 2 * blocks * (size + middle.warmup) * 0.05
    assert (LOOKS + 0.5) * look_s < 1.5 * 120


def test_a_call_costs_what_the_clock_says() -> None:
    random = np.random.default_rng(0)
    load_s, call_s = cost(subject("a", 40.0, random, 0.0, 0.0))
    assert call_s == pytest.approx(0.04)
    assert 0 <= load_s < 1


# --- memory --------------------------------------------------------------------------------------


def memory(*added: float) -> object:
    values = iter(added)
    return lambda: MemoryResult("a", 50.0 + next(values), 50.0, "clock 1")


def within(limit: float) -> object:
    return lambda ratio: ratio.high <= limit or ratio.low > limit


def test_the_smallest_peaks_are_compared() -> None:
    ratio = memory_ratio([20.0, 25.0, 21.0], [10.0, 18.0, 10.5])
    assert ratio == Ratio(20.0, 10.0, 2.0, 20 / 10.5, 2.1)


def test_three_rounds_decide_what_is_clear() -> None:
    found = memory_until(memory(20, 20, 20), memory(10, 10, 10), within(1.1))  # type: ignore[arg-type]
    assert found is not None
    assert found.value == 2.0


def test_a_peak_that_is_sometimes_higher_takes_more_rounds() -> None:
    ours = memory(26, 34, 34, 34, 26, 26, 26, 26, 26)
    found = memory_until(ours, memory(*[26] * MEMORY_ROUNDS), within(1.1))  # type: ignore[arg-type]
    assert found is not None
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_rounds_end() -> None:
    ours = memory(26, *[34] * (MEMORY_ROUNDS - 1))
    found = memory_until(ours, memory(*[26] * MEMORY_ROUNDS), within(1.1))  # type: ignore[arg-type]
    assert found is not None
    assert found.high == pytest.approx(34 / 26)


def test_nothing_over_nothing_is_no_ratio() -> None:
    assert memory_until(memory(0, 0, 0), memory(1, 1, 1), within(1.1)) is None  # type: ignore[arg-type]
