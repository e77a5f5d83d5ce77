"""Low-rank factors of a weight: truncated SVD, plain or weighted by the inputs' second moment."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

RANK_DEFICIENT = 1e-12
"""Eigenvalues below this share of the largest are rounding of a sum in float64."""
ROUNDING = 1e-10
"""Singular values below this share of the largest are rounding."""


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """`W S = U diag(sigma) V^T` of a weight `W`, where `S S^T = G`; all float64.

    The best rank-r map in the norm `||(W - B A) X||_F` (`G = X X^T`) is `U_r U_r^T W`: SVD-LLM's
    `U_r Sigma_r V_r^T S^-1` (ICLR 2025, section 3.2) without the inverse, since
    `Sigma_r V_r^T = U_r^T W S`. So a singular `G` inflates nothing, and directions that no sample
    showed are mapped as well as the kept outputs allow. The loss is `sqrt(sum_{i>r} sigma_i^2)`.

    Attributes:
        weight: `W`, [out, in].
        left: `U`, [out, k] with `k = min(out, in)`.
        values: `sigma`, [k], falling.
    """

    weight: Tensor
    left: Tensor
    values: Tensor

    @property
    def full_rank(self) -> int:
        """`min(out, in)`."""
        return len(self.values)

    @property
    def kept(self) -> Tensor:
        """Share of the squared singular values that rank 0, 1, ..., k keeps, [k + 1]."""
        tail = torch.zeros(self.full_rank + 1, dtype=torch.float64, device=self.values.device)
        # summed from the small end, so that the tail of a steep spectrum keeps its digits
        tail[:-1] = (self.values**2).flip(0).cumsum(0).flip(0)
        return 1.0 - tail / tail[0] if float(tail[0]) > 0 else torch.ones_like(tail)

    def loss(self, rank: int) -> float:
        """Return `||(W - B A) S||_F` of the factors of this rank."""
        return float((self.values[rank:] ** 2).sum().sqrt())

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return `B` [out, r] and `A` [r, in], float64, with `B A = U_r U_r^T W`.

        The singular values are split evenly, so that neither the hidden value nor a factor has a
        much wider range in one channel than in another; both are quantized later.
        """
        left = self.left[:, :rank]
        split = self.values[:rank].sqrt()
        split = torch.where(split > 0, split, torch.ones_like(split))
        return left * split, (left.T @ self.weight) / split[:, None]


def decompose(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """Decompose a weight.

    Args:
        weight: `W`, [out, in].
        gram: `G = mean x x^T` of the inputs, [in, in]; None: plain SVD.
    """
    w = weight.detach().double()
    target = w if gram is None else w @ whitener(gram)
    left, values, _ = torch.linalg.svd(target, full_matrices=False)
    left, values = left[:, : min(w.shape)], values[: min(w.shape)]
    seen = int((values > ROUNDING * values[:1]).sum())
    if seen < min(w.shape):
        left, values = _completed(w, left[:, :seen], values[:seen])
    return Decomposition(w, _signed(left), values)


def _completed(w: Tensor, left: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Add the directions of `W` that no sample reached, in the order of its own plain SVD.

    Their singular values stay 0. Where `W` itself ends, columns of zeros fill up.
    """
    seen, full = len(values), min(w.shape)
    rest, rest_values, _ = torch.linalg.svd(w - left @ (left.T @ w), full_matrices=False)
    more = int((rest_values > ROUNDING * torch.linalg.matrix_norm(w)).sum())
    more = min(more, full - seen)
    padded = torch.zeros(len(w), full, dtype=w.dtype, device=w.device)
    padded[:, :seen] = left
    padded[:, seen : seen + more] = rest[:, :more]
    return padded, torch.nn.functional.pad(values, (0, full - seen))


def _signed(left: Tensor) -> Tensor:
    """Fix the sign of each vector: the entry of the largest magnitude is positive."""
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -left, left)


def whitener(gram: Tensor) -> Tensor:
    """Return `S` [in, p] with `S S^T = G`: the Cholesky factor, or `Q_+ Lambda_+^(1/2)`.

    The eigenvectors are used where `G` is singular (fewer samples than inputs, dead inputs);
    `p` is then its rank, at least 1.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    smallest = float(factor.diagonal().min()) ** 2
    if not int(failed) and smallest > RANK_DEFICIENT * float(gram.diagonal().max()):
        return factor
    eigenvalues, vectors = torch.linalg.eigh(gram)
    positive = eigenvalues > RANK_DEFICIENT * eigenvalues[-1].clamp(min=0)
    positive[-1] = True
    return vectors[:, positive] * eigenvalues[positive].clamp(min=0).sqrt()


def output_error(weight: Tensor, up: Tensor, down: Tensor, gram: Tensor) -> float:
    """Return `||(W - B A) X||_F / ||W X||_F` from `G = X X^T`, whatever made the factors.

    Where `W X` is zero: 0 if the error is zero too, else infinite.
    """
    w = weight.detach().double()
    left_out = w - up.detach().double() @ down.detach().double()
    noise = float(((left_out @ gram) * left_out).sum().clamp(min=0))
    signal = float(((w @ gram) * w).sum())
    if signal <= 0:
        return 0.0 if noise == 0 else float("inf")
    return (noise / signal) ** 0.5
