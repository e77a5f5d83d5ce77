"""Tensors that an adapter saves whole."""

from __future__ import annotations

import torch

from edgeopt.adapters.deltas.low_rank import BiasOfB
from edgeopt.adapters.deltas.whole import Whole
from edgeopt.adapters.summing import Part, fuse
from tests.small_models import normal


def test_a_value_that_replaces_the_base_stays_to_the_bit_and_is_weighted_between() -> None:
    base, own = normal(4, 3), normal(4, 3, seed=2) * 1e-20
    assert torch.equal(fuse(base, [Part("one", deltas=(Whole(own),))])[0], own)
    half, _ = fuse(base, [Part("one", 0.5, (Whole(own),))])
    assert torch.allclose(half, (base + own) / 2)


def test_rows_are_those_of_the_outputs_however_the_tensor_is_stored() -> None:
    own = normal(5, 6)
    for transposed, outputs in ((False, own), (True, own.T)):
        rows = Whole(own).alone(torch.empty(0), slice(1, 3), transposed=transposed)
        assert torch.equal(rows, outputs[1:3].double())


def test_it_is_the_same_by_its_values_and_family() -> None:
    one = Whole(torch.ones(4))
    assert one.same(Whole(torch.ones(4)))
    assert not one.same(Whole(torch.zeros(4)))
    assert not one.same(Whole(torch.ones(2, 2)))
    assert not one.same(BiasOfB(torch.ones(4)))
    assert one.parameters == 4
