"""The statistics of latency, on clocks that are made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.devices.profile import Protocol
from edgeopt.files import to_plain
from edgeopt.results.verdicts import Pace
from edgeopt.runtime_tests.latency import (
    MIN_BLOCKS,
    Pair,
    Subject,
    compare,
    judge,
    machine_noise,
    measure,
    percentile,
    ratio_interval,
    subject,
)

PROTOCOL = Protocol(warmup=2, samples=240, block=24)


@dataclasses.dataclass
class World:
    """A made-up machine: sessions differ, calls are noisy, and some are interrupted.

    Attributes:
        session: Spread of the sessions' own factor.
        noise: Spread of calls.
        interrupted: Share of calls that take up to four times as long.
    """

    session: float = 0.005
    noise: float = 0.03
    interrupted: float = 0.02
    random: np.random.Generator = dataclasses.field(
        default_factory=lambda: np.random.default_rng(0)
    )
    opened: int = 0
    alive: int = 0

    def subject(self, name: str, milliseconds: float) -> Subject:
        return Subject(name, "clock 1", lambda: Clock(self, milliseconds))


class Clock:
    """One session of a made-up file."""

    def __init__(self, world: World, milliseconds: float) -> None:
        self.world = world
        self.base = milliseconds * np.exp(world.random.normal(0, world.session))
        world.opened += 1
        world.alive += 1

    def sample(self) -> float:
        random = self.world.random
        value = self.base * np.exp(abs(random.normal(0, self.world.noise)))
        if random.random() < self.world.interrupted:
            value *= random.uniform(1, 4)
        return float(value)

    def samples(self, order: object) -> list[float] | None:
        return None  # this process holds them all

    def close(self) -> None:
        self.world.alive -= 1


def run(world: World, ratio: float, **options: Any) -> Pair:
    return compare(world.subject("new", ratio), world.subject("old", 1.0), PROTOCOL, **options)


def test_a_file_against_itself_is_the_same() -> None:
    found = []
    for seed in range(10):
        found.append(run(World(random=np.random.default_rng(seed)), 1.0).comparison.pace)
    assert found.count(Pace.SAME) >= 9
    assert not {Pace.FASTER, Pace.SLOWER} & set(found)


@pytest.mark.parametrize(
    ("ratio", "pace"), [(1.1, Pace.SLOWER), (1 / 1.1, Pace.FASTER), (0.5, Pace.FASTER)]
)
def test_a_change_of_ten_percent_is_found(ratio: float, pace: Pace) -> None:
    for seed in range(5):
        comparison = run(World(random=np.random.default_rng(seed)), ratio).comparison
        assert comparison.pace is pace
        assert comparison.ratio == pytest.approx(ratio, rel=0.02)
        assert comparison.low < comparison.ratio < comparison.high


def test_a_slowdown_of_three_percent_is_found_on_a_quiet_machine() -> None:
    found = [
        run(World(noise=0.01, random=np.random.default_rng(seed)), 1.03).comparison.pace
        for seed in range(5)
    ]
    assert found.count(Pace.SLOWER) >= 4
    assert Pace.SAME not in found


def test_a_noisy_machine_cannot_tell() -> None:
    for seed in range(5):
        world = World(0.15, 0.5, 0.3, random=np.random.default_rng(seed))
        comparison = run(world, 1.03).comparison
        assert comparison.pace is Pace.CANNOT_TELL
        assert comparison.noise > 0.05


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(100):
        sessions = np.exp(random.normal(0, 0.02, (2, 10, 1)))
        calls = np.exp(np.abs(random.normal(0, 0.05, (2, 10, 24))))
        _, low, high = ratio_interval(
            1.07 * sessions[0] * calls[0], sessions[1] * calls[1], seed=seed
        )
        covered += low <= 1.07 <= high
    # 95 of 100 expected; 88 or less would happen once in 300 times.
    assert covered >= 89


@pytest.mark.parametrize(
    ("ratio", "low", "high", "noise", "pace"),
    [
        (1.0, 0.99, 1.01, 0.005, Pace.SAME),
        (1.01, 1.005, 1.015, 0.002, Pace.SAME),  # real, and of no consequence
        (1.03, 1.01, 1.05, 0.01, Pace.SLOWER),
        (0.9, 0.88, 0.92, 0.03, Pace.FASTER),
        (1.03, 1.005, 1.06, 0.04, Pace.CANNOT_TELL),  # equal files differ by as much here
        (1.0, 0.9, 1.1, 0.2, Pace.CANNOT_TELL),  # noise alone never makes two files the same
        (1.0, 0.97, 1.03, 0.01, Pace.CANNOT_TELL),
    ],
)
def test_verdicts(ratio: float, low: float, high: float, noise: float, pace: Pace) -> None:
    assert judge(ratio, low, high, noise) is pace


def test_sessions_are_made_anew_for_each_block_and_closed() -> None:
    world = World()
    steps: list[tuple[str, int, int | None]] = []
    pair = run(world, 1.0, progress=lambda *step: steps.append(step))
    # Noise: 5 blocks of 24 pairs; comparison: 10 blocks. Two sessions each.
    assert world.opened == 2 * (5 + 10)
    assert world.alive == 0
    assert pair.comparison.pairs == 240
    assert pair.candidate.block == 24
    assert len(pair.candidate.samples_ms) == len(pair.baseline.samples_ms) == 240
    assert pair.comparison.samples_ms["candidate"] == pair.candidate.samples_ms
    assert steps[0] == ("this machine's noise", 0, 5)
    assert steps[-1] == ("timing new against old", 10, 10)
    assert to_plain(pair.comparison)["pace"] == "same"


def test_a_failing_session_closes_the_others() -> None:
    world = World()

    def broken() -> Clock:
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError):
        compare(world.subject("new", 1), Subject("old", "clock 1", broken), PROTOCOL)
    assert world.alive == 0


def test_the_same_seed_takes_the_same_samples() -> None:
    first = run(World(), 1.0, seed=3)
    again = run(World(), 1.0, seed=3)
    assert first.comparison == again.comparison
    assert first.candidate.p99 == again.candidate.p99


def test_one_file_gets_percentiles_with_intervals() -> None:
    world = World()
    result = measure(world.subject("only", 2.0), PROTOCOL)
    assert world.opened == 10
    for point in (result.p50, result.p90, result.p99):
        assert point.low <= point.value <= point.high
    assert 2.0 < result.p50.value < 2.1 < result.p99.value
    assert result.p50.high - result.p50.low < 0.05
    assert result.kind == "measured"
    assert result.machine.cores >= 1


def test_few_samples_still_make_blocks_and_one_claims_nothing() -> None:
    world = World()
    few = compare(
        world.subject("a", 1.0), world.subject("b", 1.0), Protocol(samples=10, block=24, warmup=0)
    )
    assert few.candidate.block == 10 // MIN_BLOCKS
    one = compare(
        world.subject("a", 9.0), world.subject("b", 1.0), Protocol(samples=1, block=1, warmup=0)
    )
    assert one.comparison.pace is Pace.CANNOT_TELL
    assert one.comparison.low == 0
    assert to_plain(one.comparison)["high"] is None  # infinite


def test_noise_is_that_of_a_comparison_as_long_as_the_judged_one() -> None:
    random = np.random.default_rng(0)
    one, other = np.exp(random.normal(0, 0.01, (2, 5, 24)))
    short, long = (machine_noise(one, other, blocks) for blocks in (5, 20))
    assert long < short / 2


def test_a_single_block_is_resampled_call_by_call() -> None:
    point = percentile(np.arange(1.0, 101.0)[None], 50)
    assert point.low < 50.5 < point.high
    assert 15 < point.high - point.low < 45  # +-1.96 * sqrt(100 / 4) calls, of 1 ms each


def test_times_a_real_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner

    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [make("x", onnx.TensorProto.FLOAT, [4])],
        [make("y", onnx.TensorProto.FLOAT, [4])],
    )
    path = tmp_path / "relu.onnx"
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    protocol = Protocol(samples=20, warmup=1)
    what = subject(
        "relu", OnnxRuntimeRunner(), [path], {"x": np.ones(4, np.float32)}, protocol, stand_in=True
    )
    result = measure(what, protocol)
    assert len(result.samples_ms) == 20
    assert min(result.samples_ms) > 0
    assert result.stand_in
    assert result.runtime.startswith("onnxruntime ")
