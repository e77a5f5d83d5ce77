"""Measure the ranges of the planned edges on calibration data."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from edgeopt.errors import ConfigError, DataError, PreconditionError
from edgeopt.ir import edges, program
from edgeopt.numerics.observers import RangeObserver
from edgeopt.pipeline.compiler_pass import WARNING, Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from edgeopt.quant.spec import Role
from edgeopt.quant.statistics import EdgeStatistics, Statistics

GROWTH_WORTH_TELLING = 0.1
FLOAT16_MAX = 65504.0
SOFTMAX_REACH = 12.0
"""exp(-12) is 6e-6; half a step of an 8-bit softmax is 300 times that."""


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """Options of `calibrate`.

    Attributes:
        method: `minmax`, or `percentile`: clip the rarest values.
        percentile: What the range keeps, in percent; half of the rest is cut at each end.
    """

    method: str = "minmax"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.method not in ("minmax", "percentile"):
            raise ConfigError(f"method is minmax or percentile, not {self.method!r}")
        if not 50.0 < self.percentile <= 100.0:
            raise ConfigError(f"percentile is above 50 and at most 100, not {self.percentile}")


class Calibrate(Pass[CalibrateConfig]):
    """Run the float graph on the calibration batches and keep each planned value's range.

    Streams: ranges and histograms, never an activation. What a softmax reads counts down to 12
    below the largest of its row. Reports values that are always zero, and edges whose range the
    second half of the data still widened by more than 10 %.
    """

    name = "calibrate"
    config_type = CalibrateConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.PLANNED
    to_phase = Phase.PLANNED
    must_follow = frozenset({"plan"})
    needs_calibration = True

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        if ctx.calibration is None:
            raise PreconditionError("calibrate: needs calibration data; pass --calib")

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        plan = state.plan
        assert plan is not None
        assert ctx.calibration is not None
        measured: dict[str, dict[str, EdgeStatistics]] = {}
        batches = 0
        notes: list[str] = []
        for method, exported in state.carrier_programs.items():
            reach: dict[str, float] = {}
            wanted = {
                str(row.edge): row.address
                for row in plan.edges[method]
                if row.role is Role.OUTPUT and row.spec is not None
            }
            observers, batches = _observe(exported, wanted, ctx, self.config.method, reach)
            measured[method] = {
                edge: self._statistics(observer) for edge, observer in observers.items()
            }
            notes += _notes(measured[method], wanted)
            notes += _beyond_float16(reach, ctx)
        statistics = Statistics(self.config.method, measured, batches)
        changes = {
            row.address: "range measured"
            for row in plan
            if row.role is Role.OUTPUT and row.spec is not None
        }
        after = dataclasses.replace(state, statistics=statistics)
        return PassResult(after, changes, notes=tuple(notes))

    def _statistics(self, observer: RangeObserver) -> EdgeStatistics:
        low, high = observer.minimum, observer.maximum
        if self.config.method == "percentile":
            low, high = observer.percentile(self.config.percentile)
        return EdgeStatistics(
            observer.minimum, observer.maximum, low, high, observer.count, observer.growth()
        )


class _Watch(Interpreter):
    """Run a graph and show chosen values to observers."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        observers: dict[str, RangeObserver],
        reach: dict[str, float] | None,
    ) -> None:
        """Watch `observers`' edges; and the magnitude of every float value, if `reach` is given."""
        super().__init__(module)
        self._observers = observers
        self._reach = reach

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        site = edges.site_of(n)
        observer = self._observers.get(f"{site.id}.out") if site is not None else None
        if observer is not None and isinstance(value, Tensor):
            observer.update(_that_counts(n, value))
        if self._reach is not None and site is not None and _has_floats(value):
            largest = float(value.detach().abs().max())
            self._reach[site.address] = max(self._reach.get(site.address, 0.0), largest)
        return value


def _that_counts(node: Node, value: Tensor) -> Tensor:
    """Return a value as the range should see it.

    What a softmax reads counts down to `SOFTMAX_REACH` below the largest of its row: a mask would
    stretch the range a thousandfold, for weights that are 0 either way.
    """
    axes: set[Any] = {
        reader.args[1]
        for reader in node.users
        if reader.op == "call_function" and edges.operator_name(reader) == "softmax"
    }
    if len(axes) != 1 or any(edges.operator_name(r) != "softmax" for r in node.users):
        return value
    return torch.maximum(value, value.amax(axes.pop(), keepdim=True) - SOFTMAX_REACH)


def _has_floats(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _observe(
    exported: ExportedProgram,
    wanted: dict[str, str],
    ctx: PassContext,
    method: str,
    reach: dict[str, float],
) -> tuple[dict[str, RangeObserver], int]:
    observers = {edge: RangeObserver(histogram=method == "percentile") for edge in sorted(wanted)}
    watched = reach if ctx.target.float_type == "float16" else None
    watch = _Watch(program.runnable(exported), observers, watched)
    assert ctx.calibration is not None
    batches = 0
    with torch.no_grad():
        for batch in ctx.calibration():
            watch.run(*program.flat_inputs(exported, batch.args, batch.kwargs))
            batches += 1
            ctx.progress("calibrate", batches, None)
    if batches == 0:
        raise DataError("calibrate: the calibration data hold no sample")
    for edge, observer in observers.items():
        if not observer.finite:
            raise DataError(
                f"calibrate: {wanted[edge]} took NaN or Inf on the calibration data; look for bad "
                "samples"
            )
    return observers, batches


def _beyond_float16(reach: dict[str, float], ctx: PassContext) -> list[str]:
    beyond = {site: value for site, value in reach.items() if value > FLOAT16_MAX}
    if not beyond:
        return []
    worst = sorted(beyond, key=lambda site: -beyond[site])[:3]
    named = ", ".join(f"{site} ({beyond[site]:.3g})" for site in worst)
    return [
        f"{WARNING}target {ctx.target.name} runs floats in float16, which ends at 65504, and "
        f"{len(beyond)} values go beyond: {named}; rescale the model, or choose a float32 target"
    ]


def _notes(measured: dict[str, EdgeStatistics], addresses: dict[str, str]) -> list[str]:
    notes = []
    dead = [addresses[e] for e, s in measured.items() if s.minimum == s.maximum == 0.0]
    blank = [address for address in dead if ":input#" in address]
    if blank:
        notes.append(
            f"{WARNING}the calibration data hold nothing but zeros at {', '.join(blank)}; "
            "every scale made from them is meaningless"
        )
    if dead:
        notes.append(f"always zero on the calibration data: {', '.join(dead[:5])}")
    growing = {addresses[e]: s.growth for e, s in measured.items()}
    worst = sorted(growing, key=lambda a: -growing[a])[:3]
    grown = [f"{a} ({100 * growing[a]:.0f} %)" for a in worst if growing[a] > GROWTH_WORTH_TELLING]
    if grown:
        notes.append(
            "more samples would still widen ranges; the second half of the data widened "
            + ", ".join(grown)
        )
    clipped = [addresses[e] for e, s in measured.items() if s.low > s.minimum or s.high < s.maximum]
    if clipped:
        notes.append(f"{len(clipped)} of {len(measured)} ranges are clipped by the percentile")
    return notes
