"""Tensors that an adapter saves whole: trained biases, modules saved beside it, embeddings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta, as_matrix, equal


@dataclasses.dataclass(frozen=True, eq=False)
class Whole(Delta):
    """`theta_i` is this value, whatever the base's is.

    Attributes:
        value: Of the tensor's shape, as it is stored.
    """

    value: Tensor
    family: ClassVar[str] = "whole tensors"

    @property
    def parameters(self) -> int:
        return self.value.numel()

    @property
    def words(self) -> str:
        return "replaced by its own"

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        return as_matrix(self.value, transposed=transposed)[rows].double()

    def _same(self, other: Self) -> bool:
        return equal(self.value, other.value)
