"""Share a budget of parameters out over layers, so that the sum of their losses is least."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Choice:
    """One form that a layer can take.

    Attributes:
        cost: Parameters.
        loss: What it loses, in any unit that adds up over layers.
        rank: Its rank, or None: left dense.
    """

    cost: int
    loss: float
    rank: int | None


def allocate(layers: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """Choose one form of each layer; the costs add up to at most `budget`.

    Each layer's choices are reduced to the lower convex hull of (cost, loss). Its segments, sorted
    over all layers by loss saved per parameter, are taken from the steepest on: water filling.
    After any number of segments the choice has the least loss of all that cost no more (Everett,
    Operations Research 11, 1963, theorem 1). What is left where the next segment is too dear is
    spent on the upgrade that saves most, again and again, so the result is at least as good.

    Args:
        layers: The choices of each layer; at least one each.
        budget: Parameters in all.

    Raises:
        ValueError: If even the cheapest choices cost more.
    """
    hulls = [_hull(choices) for choices in layers]
    at = [0] * len(layers)
    left = budget - sum(hull[0].cost for hull in hulls)
    if left < 0:
        raise ValueError(f"the cheapest choices cost {budget - left}, more than {budget}")
    heap = [(_slope(hull[0], hull[1]), i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        here, there = hulls[i][at[i]], hulls[i][at[i] + 1]
        if there.cost - here.cost > left:
            break
        left -= there.cost - here.cost
        at[i] += 1
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(heap, (_slope(there, hulls[i][at[i] + 1]), i))
    chosen = [hull[k] for hull, k in zip(hulls, at, strict=True)]
    return _spent(layers, chosen, left)


def _spent(layers: Sequence[Sequence[Choice]], chosen: list[Choice], left: int) -> list[Choice]:
    """Spend what is left: the upgrade that saves most of those that fit, until none does."""
    while True:
        upgrades = [
            (choice.loss - chosen[i].loss, choice.cost - chosen[i].cost, i, choice)
            for i, choices in enumerate(layers)
            for choice in choices
            if choice.loss < chosen[i].loss and choice.cost - chosen[i].cost <= left
        ]
        if not upgrades:
            return chosen
        _, cost, i, choice = min(upgrades, key=lambda upgrade: upgrade[:3])
        chosen[i] = choice
        left -= cost


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices on the lower convex hull, by rising cost and falling loss."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue  # dearer and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(here: Choice, there: Choice) -> float:
    return (there.loss - here.loss) / (there.cost - here.cost)
