"""A budget is shared out as well as an exact solver does it, and never overdrawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from edgeopt.numerics.allocation import Choice, allocate

Layers = list[list[Choice]]


def layer(values: list[float], cost: int, *, whole: int | None = None) -> list[Choice]:
    """Return the choices of a spectrum: rank r loses the squared values from r on."""
    tail = np.cumsum(np.square(values)[::-1])[::-1]
    rows = [Choice(r * cost, float(tail[r]), r) for r in range(1, len(values))]
    return [*rows, Choice(len(values) * cost if whole is None else whole, 0.0, None)]


def best(layers: Layers, budget: int) -> float:
    """Return the least loss by integer programming: one choice of each layer."""
    flat = [choice for choices in layers for choice in choices]
    one = np.zeros((len(layers), len(flat)))
    start = 0
    for row, choices in enumerate(layers):
        one[row, start : start + len(choices)] = 1
        start += len(choices)
    costs = np.array([[choice.cost for choice in flat]], dtype=float)
    found = milp(
        c=[choice.loss for choice in flat],
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(costs, 0, budget)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.success, found.message
    return float(found.fun)


def total(chosen: list[Choice]) -> tuple[int, float]:
    return sum(c.cost for c in chosen), sum(c.loss for c in chosen)


SPECTRUM = st.lists(st.floats(0.01, 10), min_size=2, max_size=8).map(lambda v: sorted(v)[::-1])


@settings(max_examples=60, deadline=None)
@given(spectra=st.lists(SPECTRUM, min_size=1, max_size=5), data=st.data())
def test_where_each_rank_costs_the_same_it_is_the_exact_optimum(
    spectra: list[list[float]], data: st.DataObject
) -> None:
    layers = [layer(values, 10) for values in spectra]
    most = sum(10 * len(values) for values in spectra)
    budget = data.draw(st.integers(10 * len(layers), most))
    cost, loss = total(allocate(layers, budget))
    assert cost <= budget
    assert loss == pytest.approx(best(layers, budget), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    spectra=st.lists(st.tuples(SPECTRUM, st.integers(3, 30)), min_size=1, max_size=5),
    share=st.floats(0.0, 1.0),
    data=st.data(),
)
def test_in_general_it_is_within_one_step_of_the_optimum(
    spectra: list[tuple[list[float], int]], share: float, data: st.DataObject
) -> None:
    # left whole, a layer costs less than its last ranks would: the choices are not convex
    layers = [
        layer(values, cost, whole=max(cost * (len(values) - 1) + 1, cost * len(values) * 3 // 4))
        for values, cost in spectra
    ]
    least, most = (sum(f(c.cost for c in row) for row in layers) for f in (min, max))
    budget = int(least + share * (most - least))
    cost, loss = total(allocate(layers, budget))
    optimum = best(layers, budget)
    step = max(row[0].loss - row[-1].loss for row in layers)
    assert cost <= budget
    assert optimum - 1e-6 <= loss <= optimum + step + 1e-6


def test_over_many_layers_the_gap_to_the_optimum_is_small() -> None:
    random = np.random.default_rng(0)
    gaps = []
    for _ in range(10):
        layers = [
            layer(sorted(random.exponential(size=12))[::-1], cost, whole=cost * 8)
            for cost in map(int, random.integers(5, 40, size=20))
        ]
        layers = [[c for c in row if c.rank is None or c.rank <= 7] for row in layers]
        budget = int(0.6 * sum(row[-1].cost for row in layers))
        optimum = best(layers, budget)
        gaps.append(total(allocate(layers, budget))[1] / optimum - 1)
    assert max(gaps) < 0.05  # a step of one layer out of twenty
    assert min(gaps) > -1e-6


def test_the_whole_budget_buys_every_layer_whole() -> None:
    layers = [layer([3.0, 2.0, 1.0], 5), layer([1.0, 0.5], 7)]
    assert [c.rank for c in allocate(layers, 29)] == [None, None]


def test_the_layer_with_the_steeper_gain_is_served_first() -> None:
    layers = [layer([10.0, 9.0, 0.1], 10), layer([10.0, 1.0, 0.1], 10)]
    assert [c.rank for c in allocate(layers, 30)] == [2, 1]


def test_what_no_step_of_the_hull_fits_is_still_spent() -> None:
    # the hull goes from 1 straight to whole (cost 8), but rank 2 fits into what is left
    row = [Choice(2, 10.0, 1), Choice(4, 9.5, 2), Choice(8, 0.0, None)]
    assert allocate([row], 5)[0].rank == 2
    assert allocate([row], 8)[0].rank is None


def test_a_choice_that_costs_more_and_saves_nothing_is_never_taken() -> None:
    row = [Choice(2, 1.0, 1), Choice(4, 1.0, 2), Choice(6, 1.0, None)]
    assert allocate([row], 100)[0].rank == 1


def test_less_than_the_cheapest_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest choices cost 12, more than 11"):
        allocate([layer([2.0, 1.0], 5), layer([2.0, 1.0], 7)], 11)
