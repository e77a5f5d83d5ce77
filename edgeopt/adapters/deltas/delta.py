"""What adapters do to one weight: exact fusion, computed in float64 and rounded once.

With `theta` the base's tensor and `theta_i` the tensor with adapter i alone, adapters of weights
`w_i` give `theta + sum_i w_i (theta_i - theta)`: the sum of their task vectors (Ilharco et al.,
arXiv 2212.04089). For LoRA that is `W + sum_i w_i g_i B_i A_i`, as if PEFT had merged them one
after the other. For DoRA (arXiv 2402.09353, eq. 5) `theta_i = m (W + g B A) / ||W + g B A||`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgeopt.errors import AdapterError

_BLOCK = 1 << 20
"""Elements that are in float64 at a time, so that a large embedding needs no second copy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What one adapter does to one tensor.

    Attributes:
        adapter: The adapter's name.
        weight: Its weight in the sum.
        whole: A value of the tensor's shape that replaces it first, or None.
        b: `[out, r]`, or None.
        a: `[r, in]` (of a convolution, flattened), or None.
        scale: Of `b @ a`.
        magnitude: DoRA's, `[out]`, or None.
        added: What is added to a bias, `[out]`, or None.
        transposed: The tensor is stored `[in, out]` (an embedding, Transformers' Conv1D).
    """

    adapter: str
    weight: float = 1.0
    whole: Tensor | None = None
    b: Tensor | None = None
    a: Tensor | None = None
    scale: float = 1.0
    magnitude: Tensor | None = None
    added: Tensor | None = None
    transposed: bool = False

    def alone(self, base: Tensor, rows: slice) -> Tensor:
        """Return rows of the tensor with this adapter alone, float64 `[out rows, in]`."""
        value = base
        if self.whole is not None:
            value = as_matrix(self.whole, transposed=self.transposed)[rows].double()
        if self.a is not None and self.b is not None:
            value = value + self.scale * (self.b[rows].double() @ self.a.double())
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(value, dim=1, keepdim=True)
            value = self.magnitude[rows].double()[:, None] * value / norm
        if self.added is not None:
            value = value + self.added[rows].double()[:, None]
        return value

    def same(self, other: Part) -> bool:
        """Say whether both do the same to a tensor that is stored once, so that it stays tied."""
        if (self.adapter, self.weight) != (other.adapter, other.weight):
            return False
        if not (_equal(self.whole, other.whole) and _equal(self.added, other.added)):
            return False
        if self.transposed == other.transposed:
            same = _equal(self.magnitude, other.magnitude)
            factors = other.b, other.a
        else:  # DoRA's norms run along another axis then
            same = self.magnitude is None and other.magnitude is None
            factors = _turned(other.a), _turned(other.b)
        if self.b is None:
            return same and other.b is None
        same_factors = _equal(self.b, factors[0]) and _equal(self.a, factors[1])
        return same and self.scale == other.scale and same_factors


def as_matrix(tensor: Tensor, *, transposed: bool) -> Tensor:
    """Return a view `[out, in]` of a tensor; a vector is `[out, 1]`."""
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix.T if transposed else matrix


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
        value = _combined(was, parts, rows).to(base.dtype)
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


def _combined(was: Tensor, parts: Sequence[Part], rows: slice) -> Tensor:
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0].alone(was, rows)  # a value that replaces the base's stays as it is
    value = was.clone()
    for part in parts:
        value += part.weight * (part.alone(was, rows) - was)
    return value


def _turned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.T


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(torch.equal(one, other))
