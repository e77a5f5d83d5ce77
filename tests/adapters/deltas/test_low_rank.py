"""LoRA: what its factors add to a weight and a bias, and which layers they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeopt.adapters.deltas.low_rank import BiasOfB, LowRank
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.adapters.summing import Part, fuse
from edgeopt.analysis.layers import Kind, Layer, find_layers
from edgeopt.errors import AdapterError
from tests.small_models import normal

FACTORS = LoraFactors("x", a=normal(3, 5), b=normal(6, 3, seed=2), scale=-0.5)


def layer_of(module: nn.Module) -> Layer:
    (layer,) = find_layers(module, frozenset(Kind))
    return layer


def test_the_product_of_the_factors_is_added() -> None:
    base = normal(6, 5, seed=4)
    found = LowRank.read(FACTORS, transposed=False)
    assert list(found) == ["weight"]
    got = found["weight"].alone(base[2:4].double(), slice(2, 4), transposed=False)
    want = base.double() - 0.5 * FACTORS.b.double() @ FACTORS.a.double()
    torch.testing.assert_close(got, want[2:4], rtol=1e-14, atol=1e-14)  # float64 sums of 3


def test_a_bias_of_b_is_scaled_and_added_to_the_layers() -> None:
    factors = LoraFactors("x", FACTORS.a, FACTORS.b, -0.5, b_bias=normal(6, seed=3))
    found = LowRank.read(factors, transposed=False)
    assert list(found) == ["weight", "bias"]
    assert factors.b_bias is not None
    fused, _ = fuse(torch.ones(6), [Part("one", deltas=(found["bias"],))])
    assert torch.equal(fused, (1 - 0.5 * factors.b_bias.double()).float())
    assert [delta.words for delta in found.values()] == ["LoRA of rank 3, scale -0.5", "B's bias"]
    assert [delta.parameters for delta in found.values()] == [3 * 5 + 6 * 3, 6]


def test_factors_of_a_convolution_are_flattened() -> None:
    conv = nn.Conv2d(5, 6, (2, 3))
    factors = LoraFactors("x", a=normal(4, 5, 2, 3), b=normal(6, 4, 1, 1, seed=2), scale=2.0)
    LowRank.check(factors, layer_of(conv), "here")
    (delta,) = LowRank.read(factors, transposed=False).values()
    fused, _ = fuse(conv.weight.detach(), [Part("one", deltas=(delta,))])
    product = torch.einsum("or,rikl->oikl", factors.b.flatten(1).double(), factors.a.double())
    want = conv.weight.detach().double() + 2 * product
    torch.testing.assert_close(fused.double(), want, rtol=1e-6, atol=1e-6)  # float32 once


def test_the_norm_of_a_product_is_computed_without_the_product() -> None:
    update = LowRank(normal(20, 4, seed=2), normal(4, 30), scale=-0.5)
    assert update.norm == pytest.approx(float((0.5 * update.b @ update.a).norm()), rel=1e-6)


def test_an_embeddings_update_is_the_same_as_its_heads_where_the_factors_are_turned() -> None:
    head = LowRank(FACTORS.b, FACTORS.a, 0.5)
    embedding = LowRank(FACTORS.a.T, FACTORS.b.T, 0.5, transposed=True)
    assert embedding.same(head)
    assert head.same(embedding)
    one, two = (fuse(normal(6, 5), [Part("one", deltas=(d,))])[0] for d in (head, embedding))
    assert torch.allclose(one, two)


@pytest.mark.parametrize(
    "other",
    [
        LowRank(FACTORS.b, FACTORS.a, 0.4),
        LowRank(normal(6, 3), FACTORS.a, 0.5),
        LowRank(FACTORS.b, normal(3, 5, seed=7), 0.5),
        LowRank(FACTORS.b, FACTORS.a, 0.5, transposed=True),
        LowRank(FACTORS.b[:, :2], FACTORS.a[:2], 0.5),
    ],
    ids=["scale", "b", "a", "turned", "rank"],
)
def test_updates_that_differ_are_not_the_same(other: LowRank) -> None:
    one = LowRank(FACTORS.b, FACTORS.a, 0.5)
    assert one.same(LowRank(FACTORS.b.clone(), FACTORS.a.clone(), 0.5))
    assert not one.same(other)
    assert not other.same(one)


def test_biases_of_b_are_the_same_by_their_values() -> None:
    assert BiasOfB(torch.ones(4)).same(BiasOfB(torch.ones(4)))
    assert not BiasOfB(torch.ones(4)).same(BiasOfB(torch.zeros(4)))


@pytest.mark.parametrize(
    ("layer", "factors", "message"),
    [
        (
            nn.Linear(4, 6),
            FACTORS,
            r"here: A is \[3, 5\], the model's weight \[6, 4\] needs \[3, 4\]; is it another",
        ),
        (nn.Linear(5, 7), FACTORS, r"B is \[6, 3\], .* needs \[7, 3\]"),
        (
            nn.Embedding(5, 6),
            FACTORS,
            "the factors are not those of an embedding, and the model has a Embedding",
        ),
        (
            nn.Linear(5, 6, bias=False),
            LoraFactors("x", FACTORS.a, FACTORS.b, 1.0, b_bias=torch.ones(6)),
            "B has a bias, and the layer has none to add it to",
        ),
        (
            nn.Linear(5, 6),
            LoraFactors("x", FACTORS.a, FACTORS.b, 1.0, b_bias=torch.ones(5)),
            r"B's bias is \[5\], .* needs \[6\]",
        ),
    ],
    ids=["a", "b", "embedding", "no bias", "bias"],
)
def test_factors_that_do_not_fit_the_layer_are_refused(
    layer: nn.Module, factors: LoraFactors, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        LowRank.check(factors, layer_of(layer), "here")


def test_a_table_takes_factors_of_an_embedding() -> None:
    factors = LoraFactors("x", a=normal(3, 9), b=normal(6, 3), scale=1.0, embedding=True)
    LowRank.check(factors, layer_of(nn.Embedding(9, 6)), "here")
