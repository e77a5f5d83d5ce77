"""Store biases as int32 codes behind a dequantize."""

from __future__ import annotations

import dataclasses

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.ir.edges import require_site
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from edgeopt.quant.operands import weighted_operands
from edgeopt.quant.ranges import bias_codes


@dataclasses.dataclass(frozen=True)
class IntegerBiasConfig:
    """`integer_bias` has no options."""


class IntegerBias(Pass[IntegerBiasConfig]):
    """Store each bias of an integer operator as int32 codes of scale `s_x * s_w`.

    ONNX Runtime selects its integer Gemm only if the bias stands behind a dequantize of int32.
    Biases lie on that grid since `quantize`, so the number is the same.

    Before: `linear(dq, dq, b)`. After: `linear(dq, dq, dequantize(b_codes, s_x * s_w, 0))`.
    """

    name = "integer_bias"
    config_type = IntegerBiasConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.QUANTIZED
    to_phase = Phase.QUANTIZED

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        programs: dict[str, ExportedProgram] = {}
        changes: dict[str, str] = {}
        for method, exported in state.carrier_programs.items():
            programs[method] = _rewrite(exported, changes)
        return PassResult(state.with_programs(programs), changes)


def _rewrite(exported: ExportedProgram, changes: dict[str, str]) -> ExportedProgram:
    names = program.tensor_names(exported)
    grids: dict[str, torch.Tensor] = {}
    for node, activation, weight, _, bias in weighted_operands(exported):
        source = node.args[2] if len(node.args) > 2 else None
        if bias is None or not isinstance(source, Node) or source.name not in names:
            continue
        grids[names[source.name]] = activation.params.scale * weight.params.scale
        changes[require_site(node).address] = f"bias as int32, {bias.numel()} codes"
    editor = ProgramEditor(exported)
    for fqn, grid in grids.items():
        placeholder = editor.placeholder(fqn)
        readers = list(placeholder.users)
        value = editor.table[fqn].detach()
        grid = grid.expand_as(value).contiguous()
        codes = bias_codes(value, grid)
        editor.replace(fqn, codes)
        scale = editor.add_buffer(f"{fqn}_scale", grid)
        zero = editor.add_buffer(f"{fqn}_zero_point", torch.zeros_like(codes))
        for reader in readers:
            new = editor.call(
                DEQUANTIZE,
                (placeholder, scale, zero, 0, None, "int32", torch.float32),
                parent=reader,
                suffix="dq.in2",
                before=reader,
            )
            reader.update_arg(2, new)
    return editor.finish()
