"""Which family the factors of a module belong to."""

from __future__ import annotations

from edgeopt.adapters.deltas.dora import DoRA
from edgeopt.adapters.deltas.low_rank import LowRank
from edgeopt.adapters.peft.folder import LoraFactors


def family(factors: LoraFactors) -> type[LowRank] | type[DoRA]:
    """Return the family, which checks the factors against a layer and reads them."""
    return LowRank if factors.magnitude is None else DoRA
