"""Read quantization back from a graph. The q/dq nodes are its only home."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import EdgeId
from edgeopt.quant.spec import Affine


@dataclasses.dataclass(frozen=True)
class QuantNode:
    """A quantize or dequantize node with its parameters.

    Attributes:
        node: The node.
        params: Scale and zero point, as stored in the program.
        codes_dtype: `int8`, `uint8`, `int32`, ...
        qmin: Smallest code (quantize nodes; None on dequantize).
        qmax: Largest code.
    """

    node: Node
    params: Affine
    codes_dtype: str
    qmin: int | None
    qmax: int | None


def read(node: Node, tensor_of: Mapping[str, Tensor], names: Mapping[str, str]) -> QuantNode | None:
    """Return the parameters of a quantize or dequantize node, or None for any other.

    Args:
        node: Any node.
        tensor_of: FQN -> tensor.
        names: Placeholder name -> FQN.
    """
    if node.target not in (QUANTIZE, DEQUANTIZE):
        return None
    scale, zero_point = node.args[1], node.args[2]
    assert isinstance(scale, Node)
    assert isinstance(zero_point, Node)
    axis = node.args[3]
    is_quantize = node.target is QUANTIZE
    return QuantNode(
        node=node,
        params=Affine(
            tensor_of[names[scale.name]],
            tensor_of[names[zero_point.name]],
            axis if isinstance(axis, int) else None,
        ),
        codes_dtype=str(node.args[5]),
        qmin=int(node.args[6]) if is_quantize else None,  # type: ignore[arg-type]
        qmax=int(node.args[7]) if is_quantize else None,  # type: ignore[arg-type]
    )


def quant_nodes(exported: ExportedProgram) -> Iterator[QuantNode]:
    """Yield every quantize and dequantize node of a program."""
    table, names = program.tensors(exported), program.tensor_names(exported)
    for node in exported.graph.nodes:
        found = read(node, table, names)
        if found is not None:
            yield found


def edge_of(node: Node) -> EdgeId | None:
    """Return the planned edge that a quantize or dequantize node stands on.

    Inserted nodes are called `<site id>/q.<port>` and `<site id>/dq.<port>`.
    """
    site = edges.site_of(node)
    if site is None or "/" not in site.id:
        return None
    parent, _, suffix = site.id.rpartition("/")
    kind, _, port = suffix.partition(".")
    return EdgeId(parent, port) if kind in ("q", "dq") and port else None


def edge_codes_dtype(exported: ExportedProgram, edge: EdgeId) -> str | None:
    """Return the type of the codes on an edge, or None if it is not quantized."""
    for node in exported.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE) and edge_of(node) == edge:
            return str(node.args[5])
    return None
