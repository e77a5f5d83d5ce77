"""Fusing one tensor: exact sums in float64, rounded once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeopt.adapters.deltas import delta
from edgeopt.adapters.deltas.delta import Part, as_matrix, fuse
from edgeopt.errors import AdapterError
from tests.small_models import normal


def part(rows: int, columns: int, rank: int = 3, seed: int = 0, **changes: object) -> Part:
    values: dict[str, object] = {
        "adapter": "one",
        "b": normal(rows, rank, seed=seed),
        "a": normal(rank, columns, seed=seed + 1),
        "scale": 0.5,
    }
    return Part(**{**values, **changes})  # type: ignore[arg-type]


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
    one = part(rows, columns, rank, seed)
    two = part(rows, columns, rank + 1, seed + 7, scale=-0.3, weight=1.5, adapter="two")
    fused, ratio = fuse(base, [one, two])
    exact = base.double().numpy() + 0.5 * (one.b.double().numpy() @ one.a.double().numpy())  # type: ignore[union-attr]
    exact = exact - 0.45 * (two.b.double().numpy() @ two.a.double().numpy())  # type: ignore[union-attr]
    error = (fused.double() - torch.from_numpy(exact)).abs()
    assert bool((error <= 0.5 * ulp(fused) + 1e-13).all())  # 1e-13: float64 sums of a few terms
    expected = float((torch.from_numpy(exact) - base.double()).norm() / base.double().norm())
    assert ratio == pytest.approx(expected, rel=1e-6)


def test_weight_zero_and_b_zero_give_the_base_to_the_bit() -> None:
    base = normal(6, 5)
    off = part(6, 5, weight=0.0, whole=normal(6, 5, seed=9), magnitude=torch.rand(6))
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


def test_dora_with_the_base_norm_and_no_update_is_the_identity() -> None:
    base = normal(6, 5)
    one = part(6, 5, b=torch.zeros(6, 3), magnitude=base.norm(dim=1))
    # the magnitude itself is rounded to float32, and the result once more
    assert torch.allclose(fuse(base, [one])[0], base, rtol=2**-22, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_gives_every_output_its_magnitude(transposed: bool) -> None:
    base = normal(5, 6) if transposed else normal(6, 5)
    magnitude = torch.rand(6) + 0.5
    fused, _ = fuse(base, [part(6, 5, magnitude=magnitude, transposed=transposed)])
    norms = as_matrix(fused, transposed=transposed).norm(dim=1)
    assert torch.allclose(norms, magnitude, rtol=1e-6)


def test_a_value_that_replaces_the_base_stays_to_the_bit_and_is_weighted_between() -> None:
    base, own = normal(4, 3), normal(4, 3, seed=2) * 1e-20
    assert torch.equal(fuse(base, [Part("one", whole=own)])[0], own)
    half, _ = fuse(base, [Part("one", 0.5, whole=own)])
    assert torch.allclose(half, (base + own) / 2)


@pytest.mark.parametrize("shape", [(40, 30), (30,), (8, 3, 3, 3)])
@pytest.mark.parametrize("dora", [False, True])
def test_blocks_change_nothing(
    shape: tuple[int, ...], dora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = normal(*shape)
    rows, columns = as_matrix(base, transposed=False).shape
    one = part(rows, columns, magnitude=torch.rand(rows) if dora else None)
    whole, ratio = fuse(base, [one])
    monkeypatch.setattr(delta, "_BLOCK", 64)
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
    one = part(6, 5, scale=0.01)
    fused, _ = fuse(base, [one])
    assert fused.dtype is torch.float16
    exact = base.double() + 0.01 * (one.b.double() @ one.a.double())  # type: ignore[union-attr]
    assert torch.equal(fused, exact.half())


def test_an_overflow_and_a_row_of_norm_zero_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"not finite in torch.float16 with one fused"):
        fuse(normal(6, 5).half(), [part(6, 5, scale=1e6)])
    with pytest.raises(AdapterError, match="a row of norm 0 under DoRA"):
        fuse(torch.zeros(6, 5), [part(6, 5, b=torch.zeros(6, 3), magnitude=torch.ones(6))])


def test_a_ratio_to_a_zero_base_is_infinite() -> None:
    assert fuse(torch.zeros(4), [Part("one", whole=torch.ones(4))])[1] == math.inf
    assert fuse(torch.zeros(4), [Part("one", whole=torch.zeros(4))])[1] == 0


def test_an_embeddings_part_is_the_same_as_its_heads_where_the_factors_are_turned() -> None:
    head = part(6, 5)
    assert head.b is not None
    assert head.a is not None
    embedding = Part("one", b=head.a.T, a=head.b.T, scale=0.5, transposed=True)
    assert embedding.same(head)
    assert head.same(embedding)
    assert torch.allclose(fuse(normal(6, 5), [head])[0], fuse(normal(6, 5), [embedding])[0])


@pytest.mark.parametrize(
    "other",
    [
        part(6, 5, scale=0.4),
        part(6, 5, weight=2.0),
        part(6, 5, adapter="two"),
        part(6, 5, seed=3),
        part(6, 5, whole=normal(6, 5)),
        part(6, 5, magnitude=torch.ones(6)),
        Part("one"),
        Part("one", added=torch.ones(6)),
    ],
)
def test_parts_that_differ_are_not_the_same(other: Part) -> None:
    assert not part(6, 5).same(other)
    assert not other.same(part(6, 5))
    assert part(6, 5).same(part(6, 5))
