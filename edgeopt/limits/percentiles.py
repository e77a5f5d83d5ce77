"""Which percentile of a measured latency a quantity is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeopt.results.measurements import LatencyResult, Percentile

PERCENTILES: Mapping[str, Callable[[LatencyResult], Percentile]] = {
    "latency_p50_ms": lambda latency: latency.p50,
    "latency_p99_ms": lambda latency: latency.p99,
}
