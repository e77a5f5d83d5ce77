"""Write activations as uint8 by adding 128 to codes and zero point."""

from __future__ import annotations

import dataclasses

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import require_site
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage


@dataclasses.dataclass(frozen=True)
class UnsignedActivationsConfig:
    """`unsigned_activations` has no options."""


class UnsignedActivations(Pass[UnsignedActivationsConfig]):
    """Write int8 activations as uint8: codes and zero points move up by 128.

    ONNX Runtime's x86 kernels multiply u8 by s8; s8 by s8 falls into a slow path there. No real
    value changes: `s * ((q + 128) - (z + 128)) = s * (q - z)`. Weights stay int8.

    Before: `quantize(x, s, z, int8, -128..127)`. After: `quantize(x, s, z + 128, uint8, 0..255)`.
    """

    name = "unsigned_activations"
    config_type = UnsignedActivationsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.QUANTIZED
    to_phase = Phase.QUANTIZED

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        programs: dict[str, ExportedProgram] = {}
        changes: dict[str, str] = {}
        for method, exported in state.carrier_programs.items():
            programs[method], changed = shift_activations(exported, "int8", "uint8", 128)
            changes |= changed
        return PassResult(state.with_programs(programs), changes)


def shift_activations(
    exported: ExportedProgram, source: str, wanted: str, offset: int
) -> tuple[ExportedProgram, dict[str, str]]:
    """Move every activation's codes from one 8-bit type to the other.

    Args:
        exported: The program.
        source: The type to replace, `int8` or `uint8`.
        wanted: The type to write.
        offset: What is added to codes, bounds and zero points.

    Returns:
        The new program, and site -> what happened.
    """
    editor = ProgramEditor(exported)
    names = program.tensor_names(exported)
    changes: dict[str, str] = {}
    zeros: set[str] = set()
    for node in editor.graph.nodes:
        if node.target not in (QUANTIZE, DEQUANTIZE) or node.args[5] != source:
            continue
        value, zero = node.args[0], node.args[2]
        assert isinstance(value, Node)
        assert isinstance(zero, Node)
        if value.op == "placeholder" and value.name in names:
            continue  # a weight
        zeros.add(names[zero.name])
        node.update_arg(5, wanted)
        if node.target is QUANTIZE:
            node.update_arg(6, node.args[6] + offset)
            node.update_arg(7, node.args[7] + offset)
            changes[require_site(node).address] = f"{source} codes plus {offset} are {wanted}"
    dtype = torch.uint8 if wanted == "uint8" else torch.int8
    for fqn in sorted(zeros):
        editor.replace(fqn, (editor.table[fqn].to(torch.int32) + offset).to(dtype))
    for node in editor.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE):
            editor.infer(node)
    return editor.finish(), changes
