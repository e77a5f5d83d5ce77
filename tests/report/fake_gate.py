"""A gate's result with a row of every kind."""

from __future__ import annotations

from edgeopt.limits.bounds import Bound
from edgeopt.limits.judge import Found, judge
from edgeopt.limits.quantities import QUANTITIES
from edgeopt.limits.results import GateResult, GateSide, combine
from edgeopt.results.measurements import Comparison, Machine
from edgeopt.results.verdicts import Pace

ORIGIN = "onnxruntime 1.31.1 on Example CPU 9000, 1 thread; 240 interleaved pairs, 1 look (decided)"


def make() -> GateResult:
    """Return a gate that fails: slower, with a tail that cannot be told."""

    def bound(name: str, limit: float | None = None) -> Bound:
        compared = QUANTITIES[name].change
        if limit is not None:
            return Bound(QUANTITIES[name], limit, "command line")
        assert compared is not None
        assert compared.default is not None
        return Bound(QUANTITIES[name], compared.default)

    rows = (
        judge(
            bound("latency_p50_ms"),
            Found(1.0, 1.2, 1.2, 1.15, 1.25, Pace.SLOWER, origin=ORIGIN, seconds=3.25),
            method="forward",
        ),
        judge(
            bound("latency_p99_ms", 1.2),
            Found(2.0, 2.2, 1.1, 0.9, 1.3, origin=ORIGIN),
            method="decode",
        ),
        judge(bound("size_mb"), Found(3.388252, 3.388252, 1.0, origin="report.json")),
        judge(bound("partitions"), Found(reason="both: no compiler told it")),
        judge(bound("float_gemms"), Found(0, 2, 2, origin="report.json")),
        judge(bound("drop"), Found(0.0, 0.3, 0.3, -0.4, 1.0, unit="points"), method="forward"),
    )
    side = GateSide("dist/new", "onnxruntime", "model.onnx", "ab" * 32, "onnx", "int8", "host")
    samples = {"candidate": (1.2, 1.2), "baseline": (1.0, 1.0)}
    return GateResult(
        verdict=combine(rows),
        candidate=side,
        baseline=GateSide(
            "dist/old", "onnxruntime", "model.onnx", "cd" * 32, "onnx", "int8", "host"
        ),
        limits=rows,
        comparisons=(Comparison("new", "old", 1.2, 1.15, 1.25, 0.01, Pace.SLOWER, 2, samples),),
        machine=Machine("Example CPU 9000", 2, ("avx2",), "Linux x86_64", 0.4),
        warnings=("the candidate was made of a.py:make and the baseline of b.py:make",),
        seconds=4.5,
    )
