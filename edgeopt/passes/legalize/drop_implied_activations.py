"""Drop activations that the codes behind them express already."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.ir.dialect import QUANTIZE
from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from edgeopt.quant.reading import QuantNode, read


@dataclasses.dataclass(frozen=True)
class DropImpliedActivationsConfig:
    """`drop_implied_activations` has no options."""


class DropImpliedActivations(Pass[DropImpliedActivationsConfig]):
    """Drop a clamp before a quantize that saturates at the same values.

    A compiler that fuses `quantize` into the operator before it wants nothing between the two. A
    lower bound is implied where it has the smallest code (ReLU: that is the zero point), an upper
    bound where it has the largest. Then the codes are the same for every input, to the bit.

    Before: `quantize(relu(conv(x)), s, 0, uint8)`. After: `quantize(conv(x), s, 0, uint8)`.
    """

    name = "drop_implied_activations"
    config_type = DropImpliedActivationsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.QUANTIZED
    to_phase = Phase.QUANTIZED

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    bounds = _bounds(node)
    if bounds is None:
        return None
    readers = [read(user, editor.table, editor.names) for user in node.users]
    if reason := _needed(readers, bounds):
        return Left(reason)
    source = node.args[0]
    assert isinstance(source, Node)
    node.replace_all_uses_with(source)
    editor.graph.erase_node(node)
    return Rewritten("the codes behind it end where it does")


def _bounds(node: Node) -> tuple[float, float] | None:
    """Return where a clamp ends, infinite where it is open; None for any other operator."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    name = operator_name(node)
    if name == "relu":
        return 0.0, float("inf")
    if name not in ("hardtanh", "clamp", "relu6"):
        return None
    defaults = {"hardtanh": (-1.0, 1.0), "relu6": (0.0, 6.0), "clamp": (None, None)}[name]
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    ends = []
    for index, open_end in enumerate((-float("inf"), float("inf"))):
        given = node.args[1 + index] if len(node.args) > 1 + index else defaults[index]
        given = node.kwargs.get(names[index], given)
        if isinstance(given, Node):
            return None  # a bound that is a tensor
        ends.append(open_end if given is None else float(given))  # type: ignore[arg-type]
    return ends[0], ends[1]


def _needed(readers: list[QuantNode | None], bounds: tuple[float, float]) -> str:
    """Return why a clamp must stay, or an empty string.

    `quantize` is monotone, so `quantize(clamp(x, l, h)) = clamp(quantize(x), quantize(l),
    quantize(h))`, and the clamp is implied exactly if its ends have the outermost codes.
    """
    for reader in readers:
        if reader is None or reader.node.target is not QUANTIZE or reader.params.axis is not None:
            return "something that reads floats reads it"
        assert reader.qmin is not None
        assert reader.qmax is not None
        scale, zero = reader.params.scale, reader.params.zero_point.to(torch.int32)
        ends = torch.round(torch.tensor(bounds) / scale) + zero
        if float(ends[0]) > reader.qmin:
            return "the codes reach below it"
        if float(ends[1]) < reader.qmax:
            return "the codes reach above it"
    return ""
