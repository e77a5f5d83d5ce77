"""Running statistics are what the whole data would give, in constant memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from edgeopt.analysis.moments import input_moments
from edgeopt.errors import DataError
from edgeopt.ir.calls import Batch
from edgeopt.numerics import observers
from edgeopt.numerics.observers import HISTOGRAM_BINS, RangeObserver, SecondMoment
from tests.small_models import batches as batches_of
from tests.small_models import normal


def observed(*batches: np.ndarray, histogram: bool = True) -> RangeObserver:
    observer = RangeObserver(histogram=histogram)
    for batch in batches:
        observer.update(torch.from_numpy(np.asarray(batch, np.float32)))
    return observer


def bins(observer: RangeObserver) -> torch.Tensor:
    assert observer._bins is not None
    return observer._bins


BATCH = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-(2.0**10), 2.0**10, width=32)
)


@settings(max_examples=100, deadline=None)
@given(batches=st.lists(BATCH, min_size=1, max_size=6))
def test_minimum_maximum_and_count_are_those_of_all_batches(batches: list[np.ndarray]) -> None:
    whole = np.concatenate(batches)
    observer = observed(*batches)
    assert (observer.minimum, observer.maximum) == (float(whole.min()), float(whole.max()))
    assert observer.count == whole.size
    assert int(bins(observer).sum()) == whole.size  # no sample is lost when the range grows


@settings(max_examples=100, deadline=None)
@given(batches=st.lists(BATCH, min_size=2, max_size=6), keep=st.floats(60, 100))
def test_a_percentile_by_streaming_is_that_of_the_whole_within_a_bin(
    batches: list[np.ndarray], keep: float
) -> None:
    whole = np.concatenate(batches)
    low, high = observed(*batches).percentile(keep)
    # numpy's inverted CDF is the sample that the count reaches; the cut is off by rounding of the
    # number of samples at most, so the sample before or after it is allowed
    cut = (100 - keep) / 200
    ordered = np.sort(whole)
    at = min(int(np.floor(cut * whole.size)), whole.size - 1)
    # the reach doubles at most once past the largest magnitude
    width = 4 * float(np.abs(whole).max()) / HISTOGRAM_BINS + 1e-11
    below, above = ordered[max(at - 1, 0)], ordered[min(at + 1, whole.size - 1)]
    assert below - width <= low <= above + width
    at = whole.size - 1 - at
    below, above = ordered[max(at - 1, 0)], ordered[min(at + 1, whole.size - 1)]
    assert below - width <= high <= above + width


@pytest.mark.parametrize("keep", [90.0, 99.0, 99.9])
def test_a_percentile_of_many_samples_is_numpys_within_a_bin(keep: float) -> None:
    data = np.random.default_rng(0).normal(size=(20, 5000)).astype(np.float32)
    low, high = observed(*data).percentile(keep)
    want = np.percentile(data, [(100 - keep) / 2, 100 - (100 - keep) / 2], method="inverted_cdf")
    # the first batch spans +-3.6, a later one doubles that once: two edges of a bin at most
    width = 2 * 2 * np.abs(data).max() / HISTOGRAM_BINS
    assert abs(low - want[0]) <= width
    assert abs(high - want[1]) <= width
    assert data.min() < low < high < data.max()


def test_100_percent_is_the_whole_range() -> None:
    data = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert observed(data).percentile(100.0) == (float(data.min()), float(data.max()))


def test_the_range_doubles_and_pairs_of_bins_merge() -> None:
    first = np.linspace(-1, 1, 4097, dtype=np.float32)
    observer = observed(first)
    before = bins(observer).clone()
    observer.update(torch.tensor([3.0]))  # 1 -> 2 -> 4
    after = bins(observer)
    assert observer._limit == 4.0
    merged = before.reshape(-1, 4).sum(1)  # doubled twice
    middle = slice(HISTOGRAM_BINS * 3 // 8, HISTOGRAM_BINS * 5 // 8)
    assert torch.equal(after[middle], merged)
    assert int(after.sum()) == 4098
    assert int(after[HISTOGRAM_BINS * 7 // 8]) == 1  # 3 in [-4, 4]


def test_streaming_is_the_same_as_one_batch_where_the_first_has_the_reach() -> None:
    data = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    data[0] = 10.0
    assert torch.equal(bins(observed(data)), bins(observed(*np.split(data, 10))))


def test_zeros_alone_have_a_range() -> None:
    observer = observed(np.zeros(10))
    assert (observer.minimum, observer.maximum) == (0.0, 0.0)
    assert observer.percentile(99.0) == (0.0, 0.0)
    observer.update(torch.tensor([1.0]))
    assert int(bins(observer).sum()) == 11


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_remembered_and_spoils_nothing_else(value: float) -> None:
    observer = observed(np.array([1.0, 2.0]), np.array([0.5, value]), np.array([-1.0]))
    assert not observer.finite
    assert (observer.minimum, observer.maximum) == (-1.0, 2.0)
    assert observed(np.array([1.0])).finite


def test_an_empty_batch_counts_for_nothing() -> None:
    observer = observed(np.zeros((0, 3)), np.ones(2))
    assert observer.count == 2
    assert len(observer.batches) == 1


def test_growth_is_how_much_the_second_half_widened_the_range() -> None:
    narrow, wide = np.array([-1.0, 1.0]), np.array([-1.0, 2.0])
    assert observed(narrow, narrow, narrow, narrow).growth() == 0.0
    assert observed(narrow, narrow, narrow, wide).growth() == pytest.approx(0.5)
    assert observed(wide, narrow, narrow, narrow).growth() == 0.0
    assert observed(narrow).growth() == 0.0  # one batch has no halves
    assert observed(np.zeros(2), narrow).growth() == 0.0  # nothing to compare with


def test_without_a_histogram_there_are_no_percentiles() -> None:
    observer = observed(np.ones(3), histogram=False)
    assert (observer.minimum, observer.maximum) == (1.0, 1.0)
    with pytest.raises(ValueError, match="keeps no histogram"):
        observer.percentile(99.0)


def test_memory_does_not_grow_with_the_data() -> None:
    observer = observed(*[np.random.default_rng(i).normal(size=1000) for i in range(20)])
    assert bins(observer).numel() == HISTOGRAM_BINS
    held = [v for v in vars(observer).values() if isinstance(v, torch.Tensor)]
    assert sum(t.numel() for t in held) == HISTOGRAM_BINS


# --- second moments ------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    width=st.integers(1, 6),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_a_second_moment_by_streaming_is_that_of_the_whole(
    sizes: list[int], width: int, offset: float, seed: int
) -> None:
    whole = np.random.default_rng(seed).normal(size=(sum(sizes), width)) + offset
    moment = SecondMoment(width)
    for part in np.split(whole, np.cumsum(sizes)[:-1]):
        moment.update(torch.from_numpy(part))
    assert moment.count == len(whole)
    if not len(whole):
        return
    np.testing.assert_allclose(moment.mean, whole.mean(axis=0), rtol=1e-12)
    # numpy's covariance too is of differences from the mean; 1e6 leaves 10 of 16 digits of one
    want = np.cov(whole, rowvar=False, bias=True).reshape(width, width)
    np.testing.assert_allclose(moment.covariance, want, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(moment.gram, whole.T @ whole / len(whole), rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_a_chunk_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(100, 3)
    whole = SecondMoment(3)
    whole.update(x)
    monkeypatch.setattr(observers, "CHUNK_ROWS", 7)
    cut = SecondMoment(3)
    cut.update(x)
    assert cut.count == 100
    torch.testing.assert_close(cut.gram, whole.gram, rtol=1e-12, atol=1e-12)


def test_float16_inputs_do_not_overflow_a_second_moment() -> None:
    moment = SecondMoment(2)
    moment.update(torch.full((10, 2), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(moment.gram, torch.full((2, 2), 60000.0**2, dtype=torch.float64))


def rows_of(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2)
        self.idle = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.second(input=y) + self.second(y + 1)


def test_a_layers_input_is_seen_at_each_call_by_position_or_by_name() -> None:
    model = TwoLayers().eval()
    x = normal(2, 5, 4)
    layers = {"first": (4, rows_of), "second": (3, rows_of), "idle": (5, rows_of)}
    seen: list[int] = []
    moments = input_moments(model, layers, batches_of(x, x + 1), seen.append)
    every = torch.cat([x, x + 1]).reshape(-1, 4).double()
    torch.testing.assert_close(moments["first"].gram, every.T @ every / 20)
    y = torch.relu(model.first(torch.cat([x, x + 1]))).reshape(-1, 3).double().detach()
    both = torch.cat([y, y + 1])
    # the sum was made in float32
    torch.testing.assert_close(moments["second"].gram, both.T @ both / 40, rtol=1e-6, atol=1e-6)
    assert (moments["idle"].count, seen) == (0, [1, 2])
    assert not model.first._forward_pre_hooks


def test_the_hooks_go_even_if_the_model_fails() -> None:
    model = TwoLayers().eval()
    with pytest.raises(RuntimeError):
        input_moments(model, {"first": (4, rows_of)}, batches_of(normal(2, 7)))
    assert not model.first._forward_pre_hooks


def test_no_sample_and_bad_samples_are_refused() -> None:
    model = TwoLayers().eval()
    with pytest.raises(DataError, match="the calibration data hold no sample"):
        input_moments(model, {"first": (4, rows_of)}, lambda: iter(()))
    bad = normal(2, 4)
    bad[1, 2] = float("nan")
    with pytest.raises(DataError, match="the input of first took NaN or Inf"):
        input_moments(model, {"first": (4, rows_of)}, lambda: iter([Batch((bad,))]))
