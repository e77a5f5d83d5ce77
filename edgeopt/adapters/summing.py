"""Sum what several adapters do to one tensor: exact, in float64, and rounded once.

With `theta` the base's tensor and `theta_i` the tensor with adapter i alone, adapters of weights
`w_i` give `theta + sum_i w_i (theta_i - theta)`: the sum of their task vectors (Ilharco et al.,
arXiv 2212.04089). For LoRA that is `W + sum_i w_i g_i B_i A_i`, as if PEFT had merged them one
after the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta, as_matrix
from edgeopt.adapters.deltas.whole import Whole
from edgeopt.errors import AdapterError

_BLOCK = 1 << 20
"""Elements that are in float64 at a time, so that a large embedding needs no second copy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What one adapter does to one tensor.

    Attributes:
        adapter: The adapter's name.
        weight: Its weight in the sum.
        deltas: What it does, one after the other.
    """

    adapter: str
    weight: float = 1.0
    deltas: tuple[Delta, ...] = ()

    @property
    def whole(self) -> Tensor | None:
        """The value that replaces the base's first, or None."""
        return next((d.value for d in self.deltas if isinstance(d, Whole)), None)

    @property
    def transposed(self) -> bool:
        """Whether it is known to be for a tensor that is stored [in, out]."""
        return any(delta.transposed for delta in self.deltas)

    @property
    def words(self) -> str:
        return ", with ".join(delta.words for delta in self.deltas)

    def upon(self, value: Tensor) -> Part:
        """Return this part with a value that replaces the base's first."""
        return dataclasses.replace(self, deltas=(Whole(value), *self.deltas))

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        """Return rows of the tensor with this adapter alone, float64 [rows, in]."""
        for delta in self.deltas:
            base = delta.alone(base, rows, transposed=transposed)
        return base

    def same(self, other: Part) -> bool:
        """Say whether both do the same to a tensor that is stored once, so that it stays tied."""
        if (self.adapter, self.weight) != (other.adapter, other.weight):
            return False
        if len(self.deltas) != len(other.deltas):
            return False
        return all(a.same(b) for a, b in zip(self.deltas, other.deltas, strict=True))


def fuse(base: Tensor, parts: Sequence[Part]) -> tuple[Tensor, float]:
    """Return the fused tensor, of the base's type, and `||fused - base|| / ||base||` (Frobenius).

    The ratio is infinite where the base is zero.

    Raises:
        AdapterError: If the result is not finite in the base's type.
    """
    transposed = any(part.transposed for part in parts)
    source = as_matrix(base, transposed=transposed)
    fused = torch.empty(base.shape, dtype=base.dtype, device=base.device)  # contiguous
    target = as_matrix(fused, transposed=transposed)
    moved = norm = 0.0
    step = max(1, _BLOCK // max(1, source.shape[1]))
    for start in range(0, source.shape[0], step):
        rows = slice(start, start + step)
        was = source[rows].double()
        value = _combined(was, parts, rows, transposed=transposed).to(base.dtype)
        target[rows] = value
        moved += float(((value.double() - was) ** 2).sum())
        norm += float((was**2).sum())
    if not bool(torch.isfinite(fused).all()):
        names = ", ".join(part.adapter for part in parts)
        raise AdapterError(
            f"the weight is not finite in {base.dtype} with {names} fused (an overflow, or a row "
            "of norm 0 under DoRA)"
        )
    if norm:
        return fused, (moved / norm) ** 0.5
    return fused, math.inf if moved else 0.0


def _combined(was: Tensor, parts: Sequence[Part], rows: slice, *, transposed: bool) -> Tensor:
    if len(parts) == 1 and parts[0].weight == 1:
        # a value that replaces the base's stays as it is
        return parts[0].alone(was, rows, transposed=transposed)
    value = was.clone()
    for part in parts:
        value += part.weight * (part.alone(was, rows, transposed=transposed) - was)
    return value
