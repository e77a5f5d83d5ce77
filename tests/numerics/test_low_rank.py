"""Truncation costs exactly the dropped singular values, and no map of that rank costs less."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from edgeopt.numerics.low_rank import Decomposition, decompose, output_error, whitener
from tests.small_models import normal

SHAPES = {
    "outputs": st.integers(1, 12),
    "inputs": st.integers(1, 12),
    "rows": st.integers(1, 40),
    "seed": st.integers(0, 10_000),
}


def data(outputs: int, inputs: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a weight [out, in] and correlated inputs [rows, in], float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -3, inputs, dtype=torch.float64)
    return weight, torch.randn(rows, inputs, generator=generator, dtype=torch.float64) * scale @ mix


def gram(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def mapped(parts: Decomposition, rank: int) -> Tensor:
    up, down = parts.factors(rank)
    assert up.shape == (len(parts.weight), rank)
    assert down.shape == (rank, parts.weight.shape[1])
    return up @ down


def error(weight: Tensor, other: Tensor, x: Tensor) -> float:
    """Return `||(W - W') X||_F` by the root of the mean over the samples."""
    return float(torch.linalg.matrix_norm(x @ (weight - other).T)) / len(x) ** 0.5


@settings(max_examples=150, deadline=None)
@given(**SHAPES)
def test_the_loss_is_the_root_of_the_dropped_squared_singular_values(
    outputs: int, inputs: int, rows: int, seed: int
) -> None:
    weight, x = data(outputs, inputs, rows, seed)
    parts = decompose(weight, gram(x))
    size = error(weight, torch.zeros_like(weight), x)
    assert parts.full_rank == min(outputs, inputs)
    for rank in range(parts.full_rank + 1):
        # G is x squared, so what it resolves is the root of float64's 1e-16
        assert abs(error(weight, mapped(parts, rank), x) - parts.loss(rank)) <= 3e-8 * size
        relative = float((1 - parts.kept[rank]).clamp(min=0).sqrt())
        assert abs(error(weight, mapped(parts, rank), x) - relative * size) <= 3e-8 * size


@settings(max_examples=100, deadline=None)
@given(**SHAPES)
def test_the_whole_rank_gives_the_weight_back_whatever_was_seen(
    outputs: int, inputs: int, rows: int, seed: int
) -> None:
    weight, x = data(outputs, inputs, rows, seed)
    for parts in (decompose(weight), decompose(weight, gram(x))):
        torch.testing.assert_close(mapped(parts, parts.full_rank), weight, rtol=0, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(**SHAPES)
def test_no_rank_loses_more_than_plain_svd_and_more_rank_never_loses_more(
    outputs: int, inputs: int, rows: int, seed: int
) -> None:
    weight, x = data(outputs, inputs, rows, seed)
    white, plain = decompose(weight, gram(x)), decompose(weight)
    size = error(weight, torch.zeros_like(weight), x)
    errors = [error(weight, mapped(white, r), x) for r in range(white.full_rank + 1)]
    for rank, mine in enumerate(errors):
        assert mine <= error(weight, mapped(plain, rank), x) + 1e-7 * size
    assert all(b <= a + 1e-7 * size for a, b in itertools.pairwise(errors))


def test_it_is_the_formula_of_the_paper_with_either_root_of_the_gram() -> None:
    weight, x = data(9, 7, 200, 1)
    parts = decompose(weight, gram(x))
    eigenvalues, vectors = torch.linalg.eigh(gram(x))
    for root in (torch.linalg.cholesky(gram(x)), vectors * eigenvalues.sqrt()):
        u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
        for rank in range(8):
            paper = (u[:, :rank] * s[:rank]) @ vh[:rank] @ torch.linalg.inv(root)
            torch.testing.assert_close(mapped(parts, rank), paper, rtol=0, atol=1e-9)


def test_about_the_mean_it_is_the_principal_components_of_the_outputs() -> None:
    weight, x = data(6, 8, 300, 2)
    x = x + 3.0
    y = (x @ weight.T).numpy()
    centred = x - x.mean(0)
    parts = decompose(weight, gram(centred))
    for rank in range(1, 7):
        pca = PCA(rank).fit(y)
        bias = (weight - mapped(parts, rank)) @ x.mean(0)
        ours = (x @ mapped(parts, rank).T + bias).numpy()
        np.testing.assert_allclose(ours, pca.inverse_transform(pca.transform(y)), atol=1e-8)


def test_fewer_samples_than_inputs_keep_what_they_show_first_then_the_rest_of_the_weight() -> None:
    weight, x = data(10, 12, 3, 3)
    parts = decompose(weight, gram(x))
    assert int((parts.values > 0).sum()) == 3
    left = weight - mapped(parts, 3)
    assert error(weight, mapped(parts, 3), x) < 1e-7
    u, s, vh = torch.linalg.svd(left)
    for more in range(1, 8):
        best = mapped(parts, 3) + (u[:, :more] * s[:more]) @ vh[:more]
        torch.testing.assert_close(mapped(parts, 3 + more), best, rtol=0, atol=1e-8)


def test_dead_inputs_are_mapped_as_far_as_the_kept_outputs_allow() -> None:
    weight, x = data(5, 6, 50, 4)
    x[:, 2] = 0.0
    parts = decompose(weight, gram(x))
    for rank in range(1, 6):
        u = parts.left[:, :rank]
        torch.testing.assert_close(mapped(parts, rank)[:, 2], u @ u.T @ weight[:, 2])
        assert bool(torch.isfinite(parts.factors(rank)[0]).all())


def test_nothing_seen_at_all_is_plain_svd() -> None:
    weight, _ = data(5, 4, 1, 5)
    parts, plain = decompose(weight, torch.zeros(4, 4, dtype=torch.float64)), decompose(weight)
    for rank in range(5):
        torch.testing.assert_close(mapped(parts, rank), mapped(plain, rank), rtol=0, atol=1e-9)
    assert parts.kept.tolist() == [1.0] * 5


def test_a_weight_of_zeros_has_factors_of_zeros() -> None:
    parts = decompose(torch.zeros(3, 4), torch.eye(4, dtype=torch.float64))
    assert mapped(parts, 2).abs().max() == 0
    assert parts.kept.tolist() == [1.0] * 4


def test_the_singular_values_are_split_evenly() -> None:
    weight, x = data(8, 6, 100, 6)
    parts = decompose(weight, gram(x))
    up, down = parts.factors(4)
    torch.testing.assert_close(up.norm(dim=0) ** 2, parts.values[:4])
    # the hidden value's mean square is the same sqrt(sigma^2)
    torch.testing.assert_close((x @ down.T).square().mean(0), parts.values[:4])


def test_signs_do_not_depend_on_the_solver() -> None:
    weight, x = data(7, 5, 40, 7)
    left = decompose(weight, gram(x)).left
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    assert bool((largest > 0).all())


@pytest.mark.parametrize("rows", [2, 5, 60], ids=["singular", "square", "many"])
def test_the_whitener_is_a_root_of_the_gram(rows: int) -> None:
    _, x = data(1, 5, rows, 8)
    root = whitener(gram(x))
    torch.testing.assert_close(root @ root.T, gram(x), rtol=0, atol=1e-12)
    assert root.shape[1] == min(rows, 5)


def test_the_output_error_is_that_of_the_outputs() -> None:
    weight, x = data(6, 9, 70, 9)
    up, down = normal(6, 2, seed=1).double(), normal(2, 9, seed=2).double()
    direct = torch.linalg.matrix_norm(x @ (weight - up @ down).T)
    want = float(direct / torch.linalg.matrix_norm(x @ weight.T))
    assert output_error(weight, up, down, gram(x)) == pytest.approx(want, rel=1e-9)
    assert output_error(0 * weight, up, down, gram(x)) == float("inf")
    assert output_error(0 * weight, 0 * up, down, gram(x)) == 0.0
