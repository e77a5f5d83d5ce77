"""A family of adapters: a gain for every output of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta, check_shape, equal
from edgeopt.adapters.family import Family
from edgeopt.analysis.layers import Kind, Layer
from edgeopt.errors import AdapterError


@dataclasses.dataclass(frozen=True, eq=False)
class Gain(Delta):
    """`theta_i = g W`, by output.

    Attributes:
        gain: `g`, [out].
    """

    gain: Tensor
    family: ClassVar[str] = "gain"
    multiplies: ClassVar[bool] = True

    @property
    def parameters(self) -> int:
        return self.gain.numel()

    @property
    def words(self) -> str:
        return f"gains from {float(self.gain.min()):.3g} to {float(self.gain.max()):.3g}"

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        return self.gain[rows].double()[:, None] * base

    def _same(self, other: Self) -> bool:
        return equal(self.gain, other.gain)


class GainFamily(Family):
    """Reads `MODULE.gain`, of linears."""

    name = "SAMPLE_GAIN"
    parts = ("gain",)

    def deltas(
        self, tensors: Mapping[str, Tensor], options: Mapping[str, Any], layer: Layer, where: str
    ) -> dict[str, Delta]:
        if layer.kind is not Kind.LINEAR:
            raise AdapterError(f"{where}: gains are for linears")
        gain = tensors["gain"]
        check_shape(where, "the gain", gain, (layer.weight.shape[0],), layer.weight)
        found: dict[str, Delta] = {"weight": Gain(gain)}
        if layer.bias is not None:
            found["bias"] = Gain(gain)
        return found
