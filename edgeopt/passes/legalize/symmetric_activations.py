"""Bring a quantized graph to TensorRT's form: int8, zero point 0, float bias."""

from __future__ import annotations

import dataclasses

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.errors import PreconditionError
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import require_site
from edgeopt.ir.editor import ProgramEditor
from edgeopt.passes.legalize.unsigned_activations import shift_activations
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from edgeopt.quant.reading import quant_nodes


@dataclasses.dataclass(frozen=True)
class SymmetricActivationsConfig:
    """`symmetric_activations` has no options."""


class SymmetricActivations(Pass[SymmetricActivationsConfig]):
    """Write symmetric activations as int8 with zero point 0, and biases as floats.

    TensorRT takes no other zero point, no uint8 and no int32 bias. uint8 codes around 128 move
    down by 128, and an int32 bias behind a dequantize becomes the float that it stands for; no
    real value changes. An affine plan is refused: it must be made again by TensorRT's rules.

    Before: `quantize(x, s, 128, uint8)`. After: `quantize(x, s, 0, int8)`.
    """

    name = "symmetric_activations"
    config_type = SymmetricActivationsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.QUANTIZED
    to_phase = Phase.QUANTIZED

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        for exported in state.carrier_programs.values():
            for found in quant_nodes(exported):
                middle = 128 if found.codes_dtype == "uint8" else 0
                if bool((found.params.zero_point.to(torch.int32) != middle).any()):
                    raise PreconditionError(
                        f"symmetric_activations: {require_site(found.node).address} has an affine "
                        "zero point; re-plan for TensorRT (its rules are symmetric)"
                    )

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        programs: dict[str, ExportedProgram] = {}
        changes: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for method, exported in state.carrier_programs.items():
            shifted, changed = shift_activations(exported, "uint8", "int8", -128)
            programs[method] = _float_biases(shifted, changed)
            changes |= changed
            for node in exported.graph.nodes:
                if node.target is QUANTIZE and node.args[5] == "int8":
                    skipped[require_site(node).address] = "is int8 with zero point 0 already"
        if not changes:
            programs = dict(state.carrier_programs)
        return PassResult(state.with_programs(programs), changes, skipped)


def _float_biases(exported: ExportedProgram, changes: dict[str, str]) -> ExportedProgram:
    names = program.tensor_names(exported)
    editor = ProgramEditor(exported)
    floats: dict[str, torch.Tensor] = {}
    for node in list(editor.graph.nodes):
        if node.target is not DEQUANTIZE or node.args[5] != "int32":
            continue
        codes, scale = node.args[0], node.args[1]
        assert isinstance(codes, Node)
        fqn = names[codes.name]
        grid = editor.tensor(scale)
        assert grid is not None
        if fqn not in floats:
            floats[fqn] = editor.table[fqn].float() * grid
        for reader in node.users:
            changes[require_site(reader).address] = "bias as float"
        node.replace_all_uses_with(codes)
    for fqn, value in floats.items():
        editor.replace(fqn, value)
    return editor.finish()
