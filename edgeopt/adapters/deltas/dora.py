"""DoRA: LoRA, and then a magnitude of its own for every output (arXiv 2402.09353)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta, check_shape, equal
from edgeopt.adapters.deltas.low_rank import LowRank, output_shape
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.analysis.layers import Layer


@dataclasses.dataclass(frozen=True, eq=False)
class DoRA(Delta):
    """`theta_i = m (W + g B A) / ||W + g B A||`, with the norm of each output's row (eq. 5).

    Attributes:
        update: `g B A`.
        magnitude: `m`, [out].
    """

    update: LowRank
    magnitude: Tensor
    family: ClassVar[str] = "DoRA"
    multiplies: ClassVar[bool] = True

    @classmethod
    def check(cls, factors: LoraFactors, layer: Layer, where: str) -> None:
        """Hold factors and magnitude against the layer that they are for.

        Raises:
            AdapterError: If they are of another kind of layer or another shape.
        """
        LowRank.check(factors, layer, where)
        outputs, _, *kernel = output_shape(layer)
        expected = (1, outputs, *(1 for _ in kernel)) if kernel else (outputs,)
        assert factors.magnitude is not None
        check_shape(where, "the magnitude", factors.magnitude, expected, layer.weight)

    @classmethod
    def read(cls, factors: LoraFactors, *, transposed: bool) -> dict[str, Delta]:
        """Return the tensor of the layer -> what the factors do to it."""
        assert factors.magnitude is not None
        update = LowRank.update(factors, transposed=transposed)
        return {"weight": cls(update, factors.magnitude.flatten())}

    @property
    def transposed(self) -> bool:
        return self.update.transposed

    @property
    def parameters(self) -> int:
        return self.update.parameters + self.magnitude.numel()

    @property
    def words(self) -> str:
        return f"{self.family} {self.update.size}"

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        value = self.update.alone(base, rows, transposed=transposed)
        norm = torch.linalg.vector_norm(value, dim=1, keepdim=True)
        return self.magnitude[rows].double()[:, None] * value / norm

    def _same(self, other: Self) -> bool:
        # turned, the norms run along another axis
        turned = self.transposed != other.transposed
        return (
            not turned and self.update.same(other.update) and equal(self.magnitude, other.magnitude)
        )
