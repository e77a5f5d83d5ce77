"""Write the plan into the graph."""

from __future__ import annotations

import dataclasses

from torch.export import ExportedProgram

from edgeopt.contracts.quantized import Quantized
from edgeopt.errors import PreconditionError
from edgeopt.passes.quantize.writer import Writer
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """`quantize` has no options: the plan decides."""


class Quantize(Pass[QuantizeConfig]):
    """Insert quantize and dequantize nodes on the planned edges, and put biases on their grid.

    Weights become int8 codes under their own FQN, with `.._scale` and `.._zero_point` beside them.
    Each value is quantized once; each reader dequantizes for itself. A bias moves to the nearest
    multiple of `s_x * s_w`, so that its float and int32 forms are one number; where the code would
    pass 2^24 the channel's weight scale is raised, and reported.

    Before: `linear(x, w, b)`. After: `linear(dequantize(quantize(x)), dequantize(codes), b')`.
    """

    name = "quantize"
    config_type = QuantizeConfig
    stage = Stage.GRAPH
    effect = Effect.APPROXIMATE
    from_phase = Phase.PLANNED
    to_phase = Phase.QUANTIZED
    must_follow = frozenset({"plan", "calibrate"})

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        if state.plan is None or state.statistics is None:
            raise PreconditionError("quantize: the plan is not calibrated")

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        plan, statistics = state.plan, state.statistics
        assert plan is not None
        assert statistics is not None
        programs: dict[str, ExportedProgram] = {}
        changes: dict[str, str] = {}
        notes: list[str] = []
        contracts: list[Quantized] = []
        for method, exported in state.carrier_programs.items():
            writer = Writer(exported, plan.edges[method], statistics.edges[method])
            programs[method] = writer.write()
            changes |= writer.changes
            notes += writer.notes
            contracts += writer.contracts
        after = state.with_programs(
            programs, phase=Phase.QUANTIZED, contracts=(*state.contracts, *contracts)
        )
        return PassResult(after, changes, notes=tuple(notes))
