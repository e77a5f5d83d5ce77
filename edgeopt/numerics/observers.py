"""Running statistics of streams of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

HISTOGRAM_BINS = 2048


CHUNK_ROWS = 8192
"""Vectors that are held in float64 at once."""


class RangeObserver:
    """Running minimum, maximum, moments and a histogram of |x| and of x, in constant memory.

    The histogram spans [-limit, limit]; when a value falls outside, the limit doubles and pairs of
    bins merge, so no sample is lost and nothing is read twice.
    """

    def __init__(self, *, histogram: bool) -> None:
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self.count = 0
        self.finite = True
        self.batches: list[tuple[float, float]] = []
        self._limit = 0.0
        self._bins = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64) if histogram else None

    def update(self, x: Tensor) -> None:
        """Add a batch."""
        if x.numel() == 0:
            return
        low, high = torch.aminmax(x.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            self.finite = False  # NaN compares as false, so minimum and maximum would lose it
            return
        self.minimum = min(self.minimum, float(low))
        self.maximum = max(self.maximum, float(high))
        self.batches.append((float(low), float(high)))
        self.count += x.numel()
        if self._bins is not None:
            self._add(x.detach().float())

    def _add(self, x: Tensor) -> None:
        assert self._bins is not None
        reach = max(abs(self.minimum), abs(self.maximum))
        if self._limit == 0.0:
            self._limit = reach or 1e-12
        while self._limit < reach:
            self._limit *= 2
            half = HISTOGRAM_BINS // 4
            merged = self._bins.reshape(-1, 2).sum(dim=1)
            self._bins = torch.zeros_like(self._bins)
            self._bins[half : half + len(merged)] = merged
        self._bins += torch.histc(x, bins=HISTOGRAM_BINS, min=-self._limit, max=self._limit).to(
            torch.int64
        )

    def percentile(self, keep: float) -> tuple[float, float]:
        """Return the range that leaves (100 - keep) % out, half of it at each end.

        Raises:
            ValueError: If the observer keeps no histogram.
        """
        if self._bins is None:
            raise ValueError("the observer keeps no histogram")
        total = int(self._bins.sum())
        cut = total * (100.0 - keep) / 200.0
        cumulative = torch.cumsum(self._bins, 0).double()
        width = 2 * self._limit / HISTOGRAM_BINS
        first = int(torch.searchsorted(cumulative, cut, right=True))
        last = int(torch.searchsorted(cumulative, total - cut))
        low = -self._limit + first * width
        high = -self._limit + (min(last, HISTOGRAM_BINS - 1) + 1) * width
        return max(low, self.minimum), min(high, self.maximum)

    def growth(self) -> float:
        """Return by how much the second half of the batches widened the range, as a ratio minus 1.

        A large value says that more samples would still move the scale.
        """
        half = len(self.batches) // 2
        if half == 0:
            return 0.0
        early = self.batches[:half]
        width = max(h for _, h in early) - min(low for low, _ in early)
        return (self.maximum - self.minimum) / width - 1.0 if width > 0 else 0.0


class SecondMoment:
    """Running mean and scatter of vectors, in float64 and constant memory: 8 width^2 bytes.

    The scatter is about the mean, and chunks merge by the parallel update of Chan, Golub and
    LeVeque (1983, eq. 2.1), so a mean far from zero costs no digits:
    `M += M_c + (m_c - m)(m_c - m)^T n n_c / (n + n_c)`.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.finite = True
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add vectors [rows, width]."""
        if self.count == 0:
            self._mean, self._scatter = self._mean.to(x.device), self._scatter.to(x.device)
        for chunk in x.detach().split(CHUNK_ROWS):
            self._add(chunk.double())

    def _add(self, x: Tensor) -> None:
        rows = len(x)
        if rows == 0:
            return
        mean = x.mean(dim=0)
        if not bool(torch.isfinite(mean).all()):
            self.finite = False
            return
        centred = x - mean
        step = mean - self._mean
        total = self.count + rows
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(step, step, alpha=self.count * rows / total)
        self._mean += step * (rows / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """The mean vector, float64 [width]."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """`mean (x - m)(x - m)^T`, float64 [width, width]."""
        return self._scatter / max(self.count, 1)

    @property
    def gram(self) -> Tensor:
        """`mean x x^T`, float64 [width, width]."""
        return self.covariance + torch.outer(self._mean, self._mean)
