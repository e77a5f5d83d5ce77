"""Fused attention as products: the same numbers for every form of mask, scale and head count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from edgeopt.errors import ConfigError
from edgeopt.ir import program
from edgeopt.ir.edges import matches, operator_name, sites
from edgeopt.passes.prepare.decompose_attention import (
    DecomposeAttention,
    DecomposeAttentionConfig,
)
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState
from tests.small_models import Block, context, normal, passes, run, seeded


class Attend(nn.Module):
    """Attention of its inputs, with fixed options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        mask = options.pop("mask", None)
        if mask is not None:
            self.register_buffer("mask", mask)
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, attn_mask=getattr(self, "mask", None), **self.options)


class Masked(nn.Module):
    """Attention with a mask that comes at run time."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return sdpa(q, k, v, attn_mask=mask)


QUERY, KEY, VALUE = (normal(2, 4, n, w, seed=s) for n, w, s in ((5, 8, 1), (7, 8, 2), (7, 6, 3)))
LOWER = torch.ones(5, 7, dtype=torch.bool).tril()
FORMS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "plain": ({}, (QUERY, KEY, VALUE)),
    "scale": ({"scale": 0.3}, (QUERY, KEY, VALUE)),
    "causal, fewer queries": ({"is_causal": True}, (QUERY, KEY, VALUE)),
    "causal, fewer keys": ({"is_causal": True}, (KEY, QUERY, VALUE[:, :, :5])),
    "boolean mask": ({"mask": LOWER}, (QUERY, KEY, VALUE)),
    "additive mask": ({"mask": normal(5, 7)}, (QUERY, KEY, VALUE)),
    "additive mask of -3e38": ({"mask": torch.where(LOWER, 0.0, -3e38)}, (QUERY, KEY, VALUE)),
    "grouped queries": ({"enable_gqa": True}, (QUERY, KEY[:, :2], VALUE[:, :2])),
    "one key head, causal": (
        {"enable_gqa": True, "is_causal": True, "scale": 1.0},
        (QUERY, KEY[:, :1], VALUE[:, :1]),
    ),
    "three dimensions": ({}, (QUERY[:, 0], KEY[:, 0], VALUE[:, 0])),
}


def decomposed(module: nn.Module, ctx: PassContext, **options: Any) -> ModelState:
    pass_ = DecomposeAttention(DecomposeAttentionConfig(**options))
    return run(module, ctx, "capture", pass_)


def operators(state: ModelState) -> Counter[str]:
    graph = state.carrier_programs["forward"].graph
    return Counter(operator_name(n) for n in graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("form", FORMS, ids=list(FORMS))
def test_products_and_a_softmax_give_what_the_fused_operator_gives(form: str) -> None:
    options, inputs = FORMS[form]
    module = Attend(**options).eval()
    state = decomposed(module, context(*inputs))
    found = operators(state)
    assert found["scaled_dot_product_attention"] == 0
    assert found["matmul"] == 2
    assert found["softmax"] == 1
    masked = "mask" in options or options.get("is_causal", False)
    assert found["add"] == int(masked)
    assert found["expand"] == 2 * int("enable_gqa" in options)
    exported = state.carrier_programs["forward"]
    for scale in (1.0, 4.0):  # also inputs that were no example
        probe = tuple(scale * x for x in inputs)
        # Two orders of float32 sums over at most 8 terms.
        torch.testing.assert_close(
            program.run(exported, probe, {}), module(*probe), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_mask_that_comes_at_run_time(kind: str) -> None:
    mask = LOWER.expand(2, 1, 5, 7).clone()
    other = LOWER.flip(0).expand(2, 1, 5, 7).clone()
    if kind == "additive":
        mask, other = (torch.where(m, 0.5, -50.0) for m in (mask, other))
    inputs = (QUERY, KEY, VALUE)
    state = decomposed(Masked().eval(), context(*inputs, mask))
    exported = state.carrier_programs["forward"]
    for chosen in (mask, other):
        want = sdpa(*inputs, attn_mask=chosen)
        torch.testing.assert_close(
            program.run(exported, (*inputs, chosen), {}), want, rtol=1e-5, atol=1e-5
        )


def test_the_batch_stays_dynamic() -> None:
    module = seeded(Block)
    state = decomposed(module, context(normal(2, 4, 16)))
    other = normal(5, 4, 16, seed=7)
    exported = state.carrier_programs["forward"]
    torch.testing.assert_close(
        program.run(exported, (other,), {}), module(other), rtol=1e-5, atol=1e-5
    )


def test_each_operator_has_an_address_of_its_own_that_a_glob_finds() -> None:
    state = decomposed(seeded(Block), context(normal(2, 4, 16)))
    graph = state.carrier_programs["forward"].graph
    known = [site.address for _, site in sites(graph)]
    assert len(known) == len(set(known))
    ids = [site.id for _, site in sites(graph)]
    assert len(ids) == len(set(ids))
    (softmax,) = (a for a in known if matches("*attn:softmax", f"{a}.in0"))
    assert softmax == "attn:scaled_dot_product_attention/softmax#0"
    assert matches("*:scaled_dot_product_attention/*", f"{softmax}.out")
    assert not matches("*:max", f"{softmax}.out")


def test_one_causal_mask_serves_all_layers_of_a_size() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sdpa(sdpa(x, x, x, is_causal=True), x, x, is_causal=True)

    state = decomposed(Two().eval(), context(QUERY))
    table = program.tensors(state.carrier_programs["forward"])
    assert list(table) == ["causal_mask_5x5"]
    want = torch.where(torch.ones(5, 5, dtype=torch.bool).tril(), 0.0, -10_000.0)
    assert torch.equal(table["causal_mask_5x5"], want)
    assert operators(state)["add"] == 2


def test_says_what_it_changed_and_a_second_time_changes_nothing() -> None:
    ctx = context(*FORMS["one key head, causal"][1])
    module = Attend(**FORMS["one key head, causal"][0]).eval()
    state = run(module, ctx, "capture", "decompose_attention", "decompose_attention")
    first, second = state.history[-2:]
    assert dict(first.changes) == {
        ":scaled_dot_product_attention#0": "products and a softmax (a causal mask, 4 query heads "
        "for each key head)"
    }
    assert second.changes == {}
    assert second.skipped == {}


def test_skips_dropout_and_says_so() -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sdpa(x, x, x, dropout_p=0.5)

    ctx = context(QUERY)
    pipeline = Pipeline(passes("capture", "decompose_attention"))
    state = pipeline.run(ModelState(module=Dropping().eval()), ctx, verify="edited")
    assert state.history[-1].skipped == {
        ":scaled_dot_product_attention#0": "drops out 0.5 of its weights; capture in eval mode"
    }
    assert operators(state)["scaled_dot_product_attention"] == 1


@pytest.mark.parametrize("masked", [-1.0, -70_000.0, float("-inf"), float("nan")])
def test_refuses_a_mask_value_that_has_no_code_or_does_not_hide(masked: float) -> None:
    with pytest.raises(ConfigError, match="masked is from -60000 to -100"):
        DecomposeAttentionConfig(masked=masked)
