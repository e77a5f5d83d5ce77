"""What calibration measured on each edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


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
