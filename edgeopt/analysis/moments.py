"""What calibration measured, keyed by edge; streams, and never stores an activation.

One engine serves graphs (calibration) and modules (input statistics of a layer).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import DataError
from edgeopt.pipeline.state import Batches

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


@dataclasses.dataclass(frozen=True)
class EdgeStatistics:
    """The range of one edge.

    Attributes:
        minimum: Smallest value seen.
        maximum: Largest value seen.
        low: The chosen range's lower end (clipped where the method clips).
        high: The chosen range's upper end.
        samples: Elements seen.
        growth: How much the second half of the data widened the range (0.1 = 10 %).
    """

    minimum: float
    maximum: float
    low: float
    high: float
    samples: int
    growth: float


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What calibration measured.

    Attributes:
        method: `minmax` or `percentile`.
        edges: Method -> edge id -> range.
        batches: Batches seen.
    """

    method: str
    edges: Mapping[str, Mapping[str, EdgeStatistics]]
    batches: int


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


Vectors = Callable[[Tensor], Tensor]
"""Brings a layer's input to the vectors [rows, width] that its weight multiplies."""


def input_moments(
    module: nn.Module,
    layers: Mapping[str, tuple[int, Vectors]],
    batches: Batches,
    progress: Callable[[int], None] = lambda _batches: None,
) -> dict[str, SecondMoment]:
    """Run a module on calibration data and return the second moment of each layer's input.

    Memory: `8 width^2` bytes a layer. The hooks are removed whatever happens.

    Args:
        module: The model, in eval mode.
        layers: FQN -> (width, how its input becomes vectors).
        batches: The calibration data.
        progress: Called with the number of batches done.

    Raises:
        DataError: If there is no sample, or a layer's input takes NaN or Inf.
    """
    moments = {fqn: SecondMoment(width) for fqn, (width, _) in layers.items()}
    seen = 0
    vectors = {fqn: bring for fqn, (_, bring) in layers.items()}
    with _hooked(module, moments, vectors), torch.no_grad():
        for batch in batches():
            module(*batch.args, **batch.kwargs)
            seen += 1
            progress(seen)
    if seen == 0:
        raise DataError("the calibration data hold no sample")
    for fqn, moment in moments.items():
        if not moment.finite:
            raise DataError(
                f"the input of {fqn} took NaN or Inf on the calibration data; look for bad samples"
            )
    return moments


@contextlib.contextmanager
def _hooked(
    module: nn.Module, moments: Mapping[str, SecondMoment], vectors: Mapping[str, Vectors]
) -> Iterator[None]:
    def watch(fqn: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            moments[fqn].update(vectors[fqn](x))

        return hook

    handles = []
    try:
        for fqn in sorted(moments):
            layer = module.get_submodule(fqn)
            handles.append(layer.register_forward_pre_hook(watch(fqn), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
