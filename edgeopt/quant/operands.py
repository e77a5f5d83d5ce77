"""Operators that multiply by a weight, and their operands."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.quant.reading import QuantNode, read

_MULTIPLY_BY_WEIGHT = frozenset(
    {"linear"} | {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
)


def weighted_operands(
    exported: ExportedProgram,
) -> Iterator[tuple[Node, QuantNode, QuantNode, Tensor, Tensor | None]]:
    """Yield (operator, its input's dequantize, its weight's, weight codes, float bias or None)."""
    table, names = program.tensors(exported), program.tensor_names(exported)
    for node in exported.graph.nodes:
        if node.op != "call_function" or edges.operator_name(node) not in _MULTIPLY_BY_WEIGHT:
            continue
        arguments = [a if isinstance(a, Node) else None for a in node.args[:3]]
        if arguments[0] is None or arguments[1] is None:
            continue
        activation = read(arguments[0], table, names)
        weight = read(arguments[1], table, names)
        if activation is None or weight is None or activation.node.target is not DEQUANTIZE:
            continue
        codes_node = weight.node.args[0]
        if not isinstance(codes_node, Node) or codes_node.name not in names:
            continue
        bias = arguments[2] if len(arguments) > 2 else None
        value = None
        if bias is not None:
            if bias.op == "placeholder" and bias.name in names:
                value = table[names[bias.name]]
            else:
                found = read(bias, table, names)
                if found is not None and isinstance(bias.args[0], Node):
                    codes = table[names[bias.args[0].name]]
                    value = codes.float() * found.params.scale
        yield node, activation, weight, table[names[codes_node.name]], value
