"""Which family the factors of a module belong to, and what they do to its layer."""

from __future__ import annotations

from edgeopt.adapters.deltas.delta import Delta
from edgeopt.adapters.deltas.dora import DoRA
from edgeopt.adapters.deltas.low_rank import LowRank
from edgeopt.adapters.family import Trained
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.analysis.layers import Layer


def family(factors: LoraFactors) -> type[LowRank] | type[DoRA]:
    """Return the family, which checks the factors against a layer and reads them."""
    return LowRank if factors.magnitude is None else DoRA


def deltas_of(factors: LoraFactors | Trained, layer: Layer, where: str) -> dict[str, Delta]:
    """Return the layer's tensor -> what an adapter does to it, the weight first.

    Raises:
        AdapterError: If the factors are of another kind of layer or another shape.
        PluginError: If a plug-in's family fails.
    """
    if isinstance(factors, Trained):
        return factors.deltas(layer, where)
    found = family(factors)
    found.check(factors, layer, where)
    return found.read(factors, transposed=layer.in_axis == 0)
