"""Attention over flat heads: the same numbers, on three dimensions, without an expand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name, sites
from edgeopt.pipeline.state import ModelState
from tests.passes.prepare.test_decompose_attention import (
    FORMS,
    KEY,
    LOWER,
    QUERY,
    VALUE,
    Attend,
    Masked,
)
from tests.small_models import Block, context, normal, run, seeded


def flattened(module: nn.Module, *inputs: Tensor) -> ModelState:
    return run(module, context(*inputs), "capture", "flatten_attention")


def operators(state: ModelState) -> Counter[str]:
    graph = state.carrier_programs["forward"].graph
    return Counter(operator_name(n) for n in graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("form", [f for f in FORMS if "-3e38" not in f])
def test_flat_products_give_what_the_fused_operator_gives(form: str) -> None:
    options, inputs = FORMS[form]
    module = Attend(**options).eval()
    state = flattened(module, *inputs)
    found = operators(state)
    assert found["scaled_dot_product_attention"] == found["expand"] == 0
    assert found["bmm"] == 2
    assert found["softmax"] == found["mul"] == 1
    assert found["add"] == int("mask" in options or options.get("is_causal", False))
    exported = state.carrier_programs["forward"]
    for scale in (1.0, 4.0):  # also inputs that were no example
        probe = tuple(scale * x for x in inputs)
        # Two orders of float32 sums over at most 8 terms.
        torch.testing.assert_close(
            program.run(exported, probe, {}), module(*probe), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_mask_that_comes_at_run_time(kind: str) -> None:
    mask, other = (m.expand(2, 1, 5, 7).clone() for m in (LOWER, LOWER.flip(0)))
    if kind == "additive":
        mask, other = (torch.where(m, 0.5, -50.0) for m in (mask, other))
    inputs = (QUERY, KEY, VALUE)
    exported = flattened(Masked().eval(), *inputs, mask).carrier_programs["forward"]
    for chosen in (mask, other):
        torch.testing.assert_close(
            program.run(exported, (*inputs, chosen), {}),
            sdpa(*inputs, attn_mask=chosen),
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_batch_stays_dynamic_and_every_operator_has_its_own_address() -> None:
    module = seeded(Block)
    state = flattened(module, normal(2, 4, 16))
    exported = state.carrier_programs["forward"]
    other = normal(5, 4, 16, seed=7)
    torch.testing.assert_close(
        program.run(exported, (other,), {}), module(other), rtol=1e-5, atol=1e-5
    )
    known = [site.address for _, site in sites(exported.graph)]
    assert len(known) == len(set(known))
    assert "attn:scaled_dot_product_attention/softmax#0" in known


def test_the_keys_two_permutations_become_one() -> None:
    state = flattened(seeded(Block), normal(2, 4, 16))
    graph = state.carrier_programs["forward"].graph
    moved = [n for n in graph.nodes if operator_name(n) in ("transpose", "permute")]
    # one of the packed projection, one that turns the key, one behind the product
    assert len(moved) == 3


class Shared(nn.Module):
    """One key and value for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Parameter(normal(1, 4, 7, 8))

    def forward(self, q: Tensor) -> Tensor:
        return sdpa(q, self.key, self.key)


@pytest.mark.parametrize(
    ("module", "inputs", "reason"),
    [
        (Shared(), (QUERY,), "query, key and value are broadcast against each other"),
        (
            Attend(mask=torch.zeros(5, 7, dtype=torch.bool)),
            (QUERY, KEY, VALUE),
            "its mask leaves a row empty",
        ),
        (Attend(), (QUERY[None], KEY[None], VALUE[None]), "have [5, 5, 5] dimensions"),
    ],
    ids=["broadcast", "empty row", "five dimensions"],
)
def test_what_it_cannot_write_stays_and_says_why(
    module: nn.Module, inputs: tuple[Tensor, ...], reason: str
) -> None:
    state = flattened(module.eval(), *(x.repeat(2, *[1] * (x.dim() - 1)) for x in inputs))
    assert operators(state)["scaled_dot_product_attention"] == 1
    ((site, words),) = state.history[-1].skipped.items()
    assert site.endswith(":scaled_dot_product_attention#0")
    assert reason in words
    assert state.history[-1].changes == {}


def test_a_graph_without_attention_is_left_as_it_is() -> None:
    state = flattened(nn.Linear(4, 4).eval(), normal(2, 4))
    assert state.history[-1].changes == state.history[-1].skipped == {}
