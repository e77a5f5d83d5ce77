"""Judging a file against the float reference."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.data import LabelledBatch, as_samples
from edgeopt.errors import CheckFailed, ConfigError, ModelError
from edgeopt.ir.calls import Batch
from edgeopt.models import zoo
from edgeopt.models.load import load_model
from edgeopt.pipeline.reference import FloatReference
from edgeopt.results.measurements import AccuracyResult
from edgeopt.runtime_tests import accuracy
from edgeopt.runtime_tests.accuracy import (
    ReferenceOutputs,
    judge,
    overlap_warning,
    paired_interval,
)
from edgeopt.runtime_tests.metrics import resolve_metric

Run = Callable[[tuple[np.ndarray, ...]], Sequence[np.ndarray]]
TOP1 = resolve_metric("top1")
MEAN = resolve_metric(lambda outputs, labels: outputs[0][:, 0])


class Table(nn.Module):
    """The input is the output: logits as data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0


def reference_of(logits: np.ndarray, labels: object, **options: int) -> ReferenceOutputs:
    value = logits if labels is None else (logits, labels)
    example = Batch((torch.zeros(2, *logits.shape[1:]),))
    return ReferenceOutputs(FloatReference(Table()), as_samples(value, example=example), **options)


def judged(
    run: Run, reference: ReferenceOutputs, metric: object, **options: object
) -> AccuracyResult:
    return judge("file", "runtime 1", run, reference, metric, **options)


def some_logits(count: int = 50, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    labels = logits.argmax(1)
    labels[::5] = (labels[::5] + 1) % classes  # 80 % right
    return logits, labels


# Values


def test_a_file_equal_to_the_model_loses_nothing() -> None:
    logits, labels = some_logits()
    result = judged(lambda args: [args[0].copy()], reference_of(logits, labels, batch=8), "top1")
    assert (result.reference, result.value, result.drop) == (80.0, 80.0, 0.0)
    assert (result.agreement, result.snr_db, result.samples) == (100.0, math.inf, 50)
    assert result.cosine == pytest.approx(1.0, abs=1e-12)
    # No sample differs among 50, which does not prove that none ever will.
    assert result.drop_low < 0 < result.drop_high <= 6
    assert (result.metric, result.unit, result.warning) == ("top1", "points", "")


def test_top1_drift_and_agreement_are_what_they_are_called() -> None:
    logits, labels = some_logits()
    worse = logits.copy()
    worse[1:11] = np.roll(worse[1:11], 1, axis=1)  # 10 answers move, 8 of them were right
    reference = reference_of(logits, labels, batch=50)
    result = judged(lambda _: [worse], reference, "top1")
    right = 100 * (worse.argmax(1) == labels).mean()
    assert result.value == pytest.approx(right)
    assert result.drop == pytest.approx(80 - right)
    assert result.agreement == pytest.approx(80)
    noise = ((logits - worse).astype(np.float64) ** 2).sum()
    want = 10 * math.log10((logits.astype(np.float64) ** 2).sum() / noise)
    assert result.snr_db == pytest.approx(want)
    assert result.drop_low < result.drop < result.drop_high


def test_perplexity_drops_in_percent_and_predicts_the_next_token() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(12, 6, 9)).astype(np.float32)
    labels = rng.integers(0, 9, (12, 6))
    labels[:, 0] = -100
    flat = torch.from_numpy(logits).double().reshape(-1, 9)
    nll = nn.functional.cross_entropy(flat, torch.from_numpy(labels).reshape(-1))
    worse = logits * 1.5
    nll_worse = nn.functional.cross_entropy(1.5 * flat, torch.from_numpy(labels).reshape(-1))
    result = judged(lambda _: [worse], reference_of(logits, labels), "perplexity")
    assert result.reference == pytest.approx(float(nll.exp()), rel=1e-6)
    assert result.drop == pytest.approx(100 * (float((nll_worse - nll).exp()) - 1), rel=1e-5)
    assert (result.unit, result.agreement) == ("%", 100.0)
    assert result.drop_low < result.drop < result.drop_high

    metric = resolve_metric("perplexity")
    tokens = torch.from_numpy(rng.integers(0, 9, (12, 6)))
    shifted = LabelledBatch((tokens,), {}, torch.cat([tokens[:, 1:], tokens[:, :1] * 0 - 100], 1))
    np.testing.assert_allclose(
        metric.columns([logits], LabelledBatch((tokens,))), metric.columns([logits], shifted)
    )


def test_the_users_function_judges_samples_or_all_at_once() -> None:
    logits, labels = some_logits()
    reference = reference_of(logits, labels, batch=16)

    def error(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
        return np.abs(outputs[0]).sum(axis=1)

    error.lower_is_better = True
    error.unit = "mm"

    def total(outputs: list[np.ndarray], labels: np.ndarray) -> float:
        return float(np.median(outputs[0]) * len(labels))

    result = judged(lambda args: [2 * args[0]], reference, error)
    assert result.drop == pytest.approx(result.reference)
    assert (result.metric, result.unit, result.agreement) == ("error", "mm", None)
    assert result.drop_low < result.drop < result.drop_high
    whole = judged(lambda args: [2 * args[0]], reference, total)
    assert whole.reference == pytest.approx(50 * float(np.median(logits)))
    assert whole.drop == pytest.approx(-whole.reference)
    assert (whole.drop_low, whole.drop_high) == (None, None)
    assert "no interval" in whole.warning


def test_without_a_metric_only_drift_is_judged() -> None:
    logits, _ = some_logits()
    result = judged(lambda args: [args[0] * 1.1], reference_of(logits, None), "none")
    assert (result.metric, result.unit, result.drop, result.agreement) == ("snr", "dB", None, None)
    # (0.1 r)^2 against r^2: 20 dB, up to float32 rounding.
    assert result.value == result.snr_db == pytest.approx(20, abs=1e-3)
    assert result.cosine == pytest.approx(1)


# Batches


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 20), kept=st.integers(1, 7), fixed=st.integers(1, 9))
def test_a_fixed_batch_is_filled_up_and_cut(count: int, kept: int, fixed: int) -> None:
    logits, labels = some_logits(count)
    sizes = set()

    def run(args: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        sizes.add(len(args[0]))
        return [args[0] * 1]

    result = judged(run, reference_of(logits, labels, batch=kept), "top1", batch=fixed)
    assert sizes == {fixed}
    assert (result.snr_db, result.samples, result.drop) == (math.inf, count, 0.0)


def test_outputs_beyond_the_memory_bound_are_computed_anew() -> None:
    logits, labels = some_logits()
    calls = []

    class Counted(FloatReference):
        def outputs(self, batch: Batch) -> list[torch.Tensor]:
            calls.append(len(batch.args[0]))
            return super().outputs(batch)

    samples = reference_of(logits, labels).samples
    for room, expected in ((10**6, 5), (3 * 10 * 4 * 4, 7), (0, 10)):
        calls.clear()
        reference = ReferenceOutputs(Counted(Table()), samples, batch=10, max_bytes=room)
        for _ in range(2):
            pairs = list(reference.pairs())
        np.testing.assert_array_equal(np.concatenate([o[0] for _, o in pairs]), logits)
        assert len(calls) == expected


# The interval


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 80))
def test_the_interval_holds_the_drop_that_was_found(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    reference = np.stack([rng.integers(0, 2, count), np.ones(count)], 1).astype(float)
    candidate = np.stack([rng.integers(0, 2, count), np.ones(count)], 1).astype(float)
    low, high = paired_interval(reference, candidate, TOP1, 0)
    found = TOP1.drop(TOP1.value(reference.mean(0)), TOP1.value(candidate.mean(0)))
    assert -100 <= low <= high <= 100
    # One pair either way moves the centre by 2 samples at most.
    assert low - 200 / count <= found <= high + 200 / count
    assert paired_interval(reference, candidate, TOP1, 0) == (low, high)
    back = paired_interval(candidate, reference, TOP1, 0)
    assert back == pytest.approx((-high, -low), abs=3 * (high - low) / math.sqrt(count) + 1e-9)


@pytest.mark.parametrize(("lost", "won"), [(0.03, 0.02), (0.004, 0.002), (0.0, 0.0)])
def test_the_interval_covers_the_true_drop_of_right_and_wrong_answers(
    lost: float, won: float
) -> None:
    rng = np.random.default_rng(7)
    trials, count, hits = 120, 500, 0
    for trial in range(trials):
        draw = rng.random(count)
        reference, candidate = np.ones((count, 2)), np.ones((count, 2))
        candidate[draw < lost, 0] = 0
        reference[draw > 1 - won, 0] = 0
        low, high = paired_interval(reference, candidate, TOP1, trial)
        hits += low <= 100 * (lost - won) <= high
    # Nominal 95 %; three standard errors of 120 trials are 6 points.
    assert hits / trials >= 0.89


def test_the_interval_is_that_of_the_normal_law_for_means() -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(400, 1))
    candidate = reference - 0.2 + 0.1 * rng.normal(size=(400, 1))
    difference = reference - candidate
    half = 1.96 * difference.std() / math.sqrt(400)
    low, high = paired_interval(reference, candidate, MEAN, 0)
    # Pairing matters: unpaired, the half-width would be 0.14. Monte Carlo error is about 3 %.
    assert low == pytest.approx(difference.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.15 * half)


# Warnings and refusals


def test_answers_that_are_not_finite_count_as_wrong() -> None:
    logits, labels = some_logits()
    broken = logits.copy()
    broken[[1, 2], 0] = np.nan, np.inf
    result = judged(lambda _: [broken], reference_of(logits, labels, batch=50), "top1")
    assert result.drop == pytest.approx(4.0)
    assert result.agreement == pytest.approx(96.0)
    assert result.snr_db == -math.inf
    assert "outputs of 2 samples hold NaN or Inf" in result.warning
    tokens = np.zeros((3, 4, 5), dtype=np.float32)
    text = reference_of(tokens, np.zeros((3, 4), dtype=np.int64))
    infinite = judged(lambda args: [args[0] * np.nan], text, "perplexity")
    assert infinite.drop == infinite.drop_high == math.inf


def test_lacking_labels_and_useless_labels_are_told() -> None:
    logits, labels = some_logits(200)
    none = judged(lambda args: [args[0]], reference_of(logits, None), "top1")
    assert (none.value, none.drop, none.agreement) == (None, None, 100.0)
    assert "no whole-number labels" in none.warning
    shuffled = np.random.default_rng(0).permutation(labels)
    chance = judged(lambda args: [args[0]], reference_of(logits, shuffled), "top1")
    assert "no better than chance: check the labels' order" in chance.warning
    with pytest.raises(ConfigError, match="label 7, the model has 4 classes"):
        judged(lambda args: [args[0]], reference_of(logits, labels + 4), "top1")


def test_shared_samples_are_told() -> None:
    logits, labels = some_logits()
    samples = reference_of(logits, labels).samples
    first, rest = samples.split(10, seed=0)
    assert overlap_warning(first, rest) == overlap_warning(None, rest) == ""
    text = overlap_warning(first, samples)
    assert text.startswith("10 of 50 evaluation samples")
    result = judged(lambda a: [a[0]], reference_of(logits, labels), "top1", warning=text)
    assert result.warning == text


class Anchored(nn.Module):
    """Gives a table and a number beside its answer, which have no batch dimension."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x + 0, torch.ones(2, 3), torch.tensor(7.0)


def test_outputs_without_a_batch_dimension_stand_once() -> None:
    logits, labels = some_logits()
    samples = as_samples((logits, labels), example=Batch((torch.zeros(2, 4),)))
    reference = ReferenceOutputs(FloatReference(Anchored()), samples)
    table, number = np.ones((2, 3), np.float32), np.float32(7)

    def one_by_one(args: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        assert len(args[0]) == 1
        return [args[0], table, number]

    assert judged(one_by_one, reference, "top1", batch=1).snr_db == math.inf

    def mixing(args: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        return [args[0], table * args[0].mean(), number]

    with pytest.raises(ModelError, match="output 1 has no batch dimension and differs"):
        judged(mixing, reference, "top1", batch=1)


def test_outputs_of_another_shape_fail_the_check() -> None:
    logits, labels = some_logits()
    reference = reference_of(logits, labels, batch=50)
    with pytest.raises(CheckFailed, match=r"output 0 is \[50, 3\], the float model gives \[50, 4"):
        judged(lambda args: [args[0][:, :3]], reference, "top1")
    with pytest.raises(CheckFailed, match="2 outputs, the float model gives 1"):
        judged(lambda args: [args[0], args[0]], reference, "top1")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("top2", "did you mean 'top1'"),
        ("none.py:f", "no such file"),
        (lambda o, t: "x", "returned str, no number"),
        (lambda o, t: np.zeros(3), r"returned \[3\] for 50 samples"),
        (lambda o, t: np.full(50, np.nan), "NaN or Inf on the float model's"),
        ("perplexity", r"takes \[B, T, vocabulary\]"),
    ],
)
def test_metrics_that_cannot_be_used_are_named(metric: object, words: str) -> None:
    logits, labels = some_logits()
    with pytest.raises(ConfigError, match=words):
        judged(lambda args: [args[0]], reference_of(logits, labels, batch=50), metric)


def test_a_metric_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def loss(outputs, labels):\n    return outputs[0][:, 0]\nloss.lower_is_better = True\n"
    )
    metric = resolve_metric(f"{tmp_path / 'mine.py'}:loss")
    assert (metric.name, metric.lower_is_better) == ("loss", True)


# Real models


def test_a_rounded_bundled_model_loses_little() -> None:
    loaded = zoo.load("mobilenet")
    rounded = zoo.load("mobilenet").module
    for parameter in rounded.parameters():
        scale = parameter.abs().max() / 127
        parameter.copy_(torch.round(parameter / scale) * scale)
    reference = ReferenceOutputs(FloatReference(loaded.module), loaded.evaluation, batch=200)

    def run(args: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        with torch.no_grad():
            return [rounded(torch.from_numpy(args[0])).numpy()]

    result = judged(run, reference, loaded.metric)
    assert result.reference >= 98.5
    assert -1 <= result.drop <= 2
    assert result.agreement >= 98
    assert 15 < result.snr_db < 60
    assert result.warning == ""


def test_real_pictures_are_judged_through_a_fixed_batch(assets: Path) -> None:
    factory = Path(__file__).parent.parent / "factories" / "resnet20.py"
    loaded = load_model(f"{factory}:resnet20")
    reference = ReferenceOutputs(
        FloatReference(loaded.module), loaded.evaluation.take(96, seed=0), batch=40
    )

    def run(args: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        with torch.no_grad():
            return [loaded.module(torch.from_numpy(args[0])).numpy()]

    result = judged(run, reference, "top1", batch=32)
    # The same model in other batch sizes: rounding of float32 sums at most.
    assert result.snr_db > 100
    assert (result.drop, result.agreement) == (0.0, 100.0)
    assert result.reference > 66


class Rows(nn.Module):
    """Says how many samples each call brought."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        if self.kind == "summed":
            return x.sum()[None]
        if self.kind == "constant":
            return torch.arange(4.0)[:, None]  # as many rows as the first piece
        return x.mean((1, 2), keepdim=True).squeeze()  # no rows for a single sample


@pytest.mark.parametrize(
    ("kind", "calls"), [("squeezed", [4, 3, 3]), ("summed", [4, 10]), ("constant", [4, 3, 10])]
)
def test_large_samples_go_to_the_reference_in_small_batches(kind: str, calls: list[int]) -> None:
    pictures = np.random.default_rng(0).normal(size=(10, 500, 500)).astype(np.float32)
    samples = as_samples(pictures, example=Batch((torch.zeros(2, 500, 500),)))
    reference = FloatReference(Rows(kind))
    (pair,) = ReferenceOutputs(reference, samples).pairs()
    assert reference.module.calls == calls
    want = reference.outputs(Batch((torch.from_numpy(pictures),)))[0]
    np.testing.assert_allclose(pair[1][0], want.numpy(), rtol=1e-4, atol=1e-2)


@given(st.integers(1, 200), st.integers(1, 40))
def test_no_piece_is_a_single_sample_and_sizes_differ(count: int, most: int) -> None:
    sizes = accuracy._piece_sizes(count, most)
    assert sum(sizes) == count
    assert min(sizes) >= min(count, 2)
    assert len(sizes) == 1 or len(set(sizes)) > 1
    assert len(sizes) == 1 or max(sizes) <= max(3, most) + 1


def test_sessions_side_by_side_keep_the_order_of_the_samples() -> None:
    logits, labels = some_logits()
    meeting = threading.Barrier(2, timeout=30)

    def session(inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        meeting.wait()  # passes only if two calls are under way at once
        return [inputs[0]]

    count = len(logits) - len(logits) % 8
    reference = reference_of(logits[:count], labels[:count])
    result = judge("a", "r", session, reference, "top1", beside=[session], batch=4)
    assert result.agreement == 100.0
    assert result.snr_db == float("inf")
    alone = judge("a", "r", lambda inputs: [inputs[0]], reference, "top1", batch=4)
    assert alone == result
