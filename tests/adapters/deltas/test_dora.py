"""DoRA: the direction of a LoRA update, and a magnitude for every output."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from edgeopt.adapters.deltas.delta import as_matrix
from edgeopt.adapters.deltas.dora import DoRA
from edgeopt.adapters.deltas.families import family
from edgeopt.adapters.deltas.low_rank import LowRank
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.adapters.summing import Part, fuse
from edgeopt.analysis.layers import find_layers
from edgeopt.errors import AdapterError
from tests.small_models import normal


def dora(magnitude: Tensor, *, b: Tensor | None = None, transposed: bool = False) -> DoRA:
    b = normal(6, 3) if b is None else b
    return DoRA(LowRank(b, normal(3, 5, seed=1), 0.5, transposed), magnitude)


def test_with_the_bases_norm_and_no_update_it_is_the_identity() -> None:
    base = normal(6, 5)
    one = dora(base.norm(dim=1), b=torch.zeros(6, 3))
    # the magnitude itself is rounded to float32, and the result once more
    fused, _ = fuse(base, [Part("one", deltas=(one,))])
    assert torch.allclose(fused, base, rtol=2**-22, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_it_gives_every_output_its_magnitude(transposed: bool) -> None:
    base = normal(5, 6) if transposed else normal(6, 5)
    magnitude = torch.rand(6) + 0.5
    fused, _ = fuse(base, [Part("one", deltas=(dora(magnitude, transposed=transposed),))])
    norms = as_matrix(fused, transposed=transposed).norm(dim=1)
    assert torch.allclose(norms, magnitude, rtol=1e-6)


def test_factors_with_a_magnitude_are_its_family() -> None:
    plain = LoraFactors("x", a=normal(3, 5), b=normal(6, 3), scale=0.5)
    factors = dataclasses.replace(plain, magnitude=torch.ones(6))
    assert (family(plain), family(factors)) == (LowRank, DoRA)
    (delta,) = DoRA.read(factors, transposed=False).values()
    assert delta.words == "DoRA of rank 3, scale 0.5"
    assert delta.parameters == 3 * 5 + 6 * 3 + 6
    assert delta.multiplies
    assert not LowRank.multiplies


@pytest.mark.parametrize(
    ("layer", "rank_shapes", "good", "bad"),
    [
        (nn.Linear(5, 6), ((3, 5), (6, 3)), (6,), (5,)),
        (nn.Conv2d(5, 6, 2), ((3, 5, 2, 2), (6, 3, 1, 1)), (1, 6, 1, 1), (6,)),
    ],
    ids=["linear", "convolution"],
)
def test_a_magnitude_that_does_not_fit_is_refused(
    layer: nn.Module,
    rank_shapes: tuple[tuple[int, ...], tuple[int, ...]],
    good: tuple[int, ...],
    bad: tuple[int, ...],
) -> None:
    (found,) = find_layers(layer)
    a, b = (normal(*shape) for shape in rank_shapes)
    factors = LoraFactors("x", a=a, b=b, scale=1.0, magnitude=torch.ones(good))
    DoRA.check(factors, found, "here")
    (delta,) = DoRA.read(factors, transposed=False).values()
    assert isinstance(delta, DoRA)
    assert delta.magnitude.shape == (6,)
    with pytest.raises(AdapterError, match="the magnitude is"):
        DoRA.check(dataclasses.replace(factors, magnitude=torch.ones(bad)), found, "here")
    with pytest.raises(AdapterError, match="A is"):
        DoRA.check(dataclasses.replace(factors, a=normal(3, 4)), found, "here")


def test_it_is_the_same_by_factors_magnitude_and_layout() -> None:
    one = dora(torch.ones(6))
    assert one.same(dora(torch.ones(6)))
    assert not one.same(dora(torch.zeros(6)))
    assert not one.same(dora(torch.ones(6), b=torch.ones(6, 3)))
    assert not one.same(one.update)
    assert not one.update.same(one)
    # turned, the factors are the same, and the norms run along another axis
    square = DoRA(LowRank(normal(5, 3), normal(3, 5, seed=1), 0.5), torch.ones(5))
    turned = LowRank(square.update.a.T, square.update.b.T, 0.5, transposed=True)
    assert turned.same(square.update)
    assert not DoRA(turned, torch.ones(5)).same(square)
