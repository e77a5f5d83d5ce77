"""Summing what adapters do to one tensor: exact in float64, rounded once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeopt.adapters import summing
from edgeopt.adapters.deltas.delta import as_matrix
from edgeopt.adapters.deltas.dora import DoRA
from edgeopt.adapters.deltas.low_rank import LowRank
from edgeopt.adapters.deltas.whole import Whole
from edgeopt.adapters.summing import Part, fuse
from edgeopt.errors import AdapterError
from tests.small_models import normal


def update(rows: int, columns: int, rank: int = 3, seed: int = 0, **changes: Any) -> LowRank:
    values = {
        "b": normal(rows, rank, seed=seed),
        "a": normal(rank, columns, seed=seed + 1),
        "scale": 0.5,
    }
    return LowRank(**{**values, **changes})


def part(
    rows: int,
    columns: int,
    rank: int = 3,
    seed: int = 0,
    adapter: str = "one",
    weight: float = 1.0,
    **changes: Any,
) -> Part:
    return Part(adapter, weight, (update(rows, columns, rank, seed, **changes),))


def with_magnitude(one: LowRank, magnitude: Tensor, **changes: Any) -> Part:
    return Part("one", deltas=(DoRA(one, magnitude),), **changes)


def ulp(value: Tensor) -> Tensor:
    """Return the distance to the next larger float32."""
    big = value.abs()
    return torch.nextafter(big, torch.full_like(big, math.inf)) - big


SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 1000),
    scale=st.floats(-8, 8),
    weight=st.floats(-3, 3),
    transposed=st.booleans(),
)
def test_fusing_and_then_subtracting_gives_the_base_within_one_rounding_each(
    shape: tuple[int, int, int], seed: int, scale: float, weight: float, transposed: bool
) -> None:
    rows, columns, rank = shape
    base = normal(*((columns, rows) if transposed else (rows, columns)), seed=seed)
    one = part(rows, columns, rank, seed, scale=scale, weight=weight, transposed=transposed)
    fused, _ = fuse(base, [one])
    back, _ = fuse(fused, [part(rows, columns, rank, seed, scale=scale, weight=-weight,
                                transposed=transposed)])  # fmt: skip
    # each fusion rounds once, by half an ulp of what it returns
    assert bool(((back - base).abs() <= 0.51 * (ulp(fused) + ulp(back))).all())


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_a_fused_weight_is_the_exact_sum_rounded_once(
    shape: tuple[int, int, int], seed: int
) -> None:
    rows, columns, rank = shape
    base = normal(rows, columns, seed=seed)
    one = update(rows, columns, rank, seed)
    two = update(rows, columns, rank + 1, seed + 7, scale=-0.3)
    fused, ratio = fuse(base, [Part("one", 1.0, (one,)), Part("two", 1.5, (two,))])
    exact = base.double().numpy() + 0.5 * (one.b.double().numpy() @ one.a.double().numpy())
    exact = exact - 0.45 * (two.b.double().numpy() @ two.a.double().numpy())
    error = (fused.double() - torch.from_numpy(exact)).abs()
    assert bool((error <= 0.5 * ulp(fused) + 1e-13).all())  # 1e-13: float64 sums of a few terms
    # of the rounded weight: where the sum cancels, rounding is a large share of what moved
    expected = float((fused.double() - base.double()).norm() / base.double().norm())
    assert ratio == pytest.approx(expected, rel=1e-12)


def test_weight_zero_and_b_zero_give_the_base_to_the_bit() -> None:
    base = normal(6, 5)
    off = with_magnitude(update(6, 5), torch.rand(6), weight=0.0).upon(normal(6, 5, seed=9))
    assert torch.equal(fuse(base, [off])[0], base)
    zero = part(6, 5, b=torch.zeros(6, 3))
    fused, ratio = fuse(base, [zero, part(6, 5, weight=0.0)])
    assert torch.equal(fused, base)
    assert ratio == 0


def test_adapters_commute() -> None:
    base, one, two = normal(6, 5), part(6, 5), part(6, 5, seed=5, scale=2.0)
    forth, back = fuse(base, [one, two])[0], fuse(base, [two, one])[0]
    # float64 sums in another order round to the same float32, but for ties
    assert torch.allclose(forth, back, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(40, 30), (30,), (8, 3, 3, 3)])
@pytest.mark.parametrize("dora", [False, True])
def test_blocks_change_nothing(
    shape: tuple[int, ...], dora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = normal(*shape)
    rows, columns = as_matrix(base, transposed=False).shape
    one = part(rows, columns)
    if dora:
        one = with_magnitude(update(rows, columns), torch.rand(rows))
    whole, ratio = fuse(base, [one])
    monkeypatch.setattr(summing, "_BLOCK", 64)
    blocked, again = fuse(base, [one])
    assert torch.allclose(whole, blocked, rtol=1e-6, atol=1e-7)
    assert again == pytest.approx(ratio)


def test_a_layout_of_memory_is_no_matter() -> None:
    base = normal(8, 3, 3, 3)
    last = base.to(memory_format=torch.channels_last)
    one = part(8, 27)
    assert torch.equal(fuse(base, [one])[0], fuse(last, [one])[0])


def test_half_precision_is_rounded_once() -> None:
    base = normal(6, 5).half()
    one = update(6, 5, scale=0.01)
    fused, _ = fuse(base, [Part("one", deltas=(one,))])
    assert fused.dtype is torch.float16
    exact = base.double() + 0.01 * (one.b.double() @ one.a.double())
    assert torch.equal(fused, exact.half())


def test_an_overflow_and_a_row_of_norm_zero_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"not finite in torch.float16 with one fused"):
        fuse(normal(6, 5).half(), [part(6, 5, scale=1e6)])
    zero = with_magnitude(update(6, 5, b=torch.zeros(6, 3)), torch.ones(6))
    with pytest.raises(AdapterError, match="a row of norm 0 under DoRA"):
        fuse(torch.zeros(6, 5), [zero])


def test_a_ratio_to_a_zero_base_is_infinite() -> None:
    assert fuse(torch.zeros(4), [Part("one").upon(torch.ones(4))])[1] == math.inf
    assert fuse(torch.zeros(4), [Part("one").upon(torch.zeros(4))])[1] == 0


def test_what_replaces_a_tensor_that_is_stored_turned_adds_up_with_factors_of_it() -> None:
    base, own = normal(5, 6), normal(5, 6, seed=9)
    # [in, out]: the one's factors say so, the other's whole value cannot
    one = update(6, 5, transposed=True)
    fused, _ = fuse(base, [Part("one", deltas=(one,)), Part("two").upon(own)])
    expected = own.double() + 0.5 * (one.b.double() @ one.a.double()).T
    torch.testing.assert_close(fused.double(), expected, rtol=1e-6, atol=1e-6)  # float32 once


def test_a_value_that_replaces_the_base_comes_before_the_factors() -> None:
    own = normal(6, 5, seed=9)
    both = part(6, 5).upon(own)
    assert both.whole is own
    assert torch.equal(fuse(normal(6, 5), [both])[0], fuse(own, [part(6, 5)])[0])
    assert both.words == "replaced by its own, with LoRA of rank 3, scale 0.5"


@pytest.mark.parametrize(
    "other",
    [
        part(6, 5, weight=2.0),
        part(6, 5, adapter="two"),
        part(6, 5, seed=3),
        part(6, 5).upon(normal(6, 5)),
        with_magnitude(update(6, 5), torch.ones(6)),
        Part("one"),
        Part("one", deltas=(Whole(normal(6, 5)),)),
    ],
)
def test_parts_that_differ_are_not_the_same(other: Part) -> None:
    assert not part(6, 5).same(other)
    assert not other.same(part(6, 5))
    assert part(6, 5).same(part(6, 5))
