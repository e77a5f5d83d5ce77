"""Names in ONNX files: sites, weights, inputs, dimensions, codes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.exporters.base import ExportRequest
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import QUANTIZE
from edgeopt.quant.reading import edge_of

if TYPE_CHECKING:
    import onnx_ir as ir


SITE_KEY = "edgeopt.site"
"""Node metadata: the address of the site that a node came from."""


def site_of_nodes(model: ir.Model, exported: ExportedProgram) -> dict[ir.Node, str]:
    """Map ONNX nodes to the addresses of the operators that they came from.

    torch.onnx records the text of a graph node. Only in the program that it decomposed itself does
    that name stand for the same node.
    """
    known = {node.name: node for node in exported.graph.nodes if node.op == "call_function"}
    found: dict[ir.Node, str] = {}
    for node in model.graph:
        text = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
        match = re.match(r"%(\w+) .*?target=([\w.]+)", text)
        source = known.get(match.group(1)) if match else None
        if (
            match is None
            or source is None
            or str(source.target)
            not in (
                match.group(2),
                match.group(2).removeprefix("torch.ops."),
            )
        ):
            continue
        site = edges.site_of(source)
        if site is not None:
            found[node] = site.address
    return found


def name_nodes(model: ir.Model, sites: dict[ir.Node, str]) -> None:
    seen: Counter[str] = Counter()
    for node in model.graph:
        site = sites.get(node)
        base = f"{site}/{node.op_type}" if site else f"{node.op_type}"
        node.name = base if not seen[base] else f"{base}_{seen[base]}"
        seen[base] += 1
        node.metadata_props.clear()
        if site:
            node.metadata_props[SITE_KEY] = site


def name_weights(model: ir.Model, exported: ExportedProgram) -> dict[str, str]:
    """Give weights that torch.onnx stored transposed, under a number, their FQN again.

    Returns:
        Initializer -> `transpose`, for those that were found.
    """
    import numpy as np

    initializers, table = model.graph.initializers, program.tensors(exported)
    numbered = [
        value
        for name, value in initializers.items()
        if name not in table and value.const_value is not None and len(value.const_value.shape) == 2
    ]
    found: dict[str, str] = {}
    for fqn, tensor in table.items():
        if fqn in initializers or tensor.dim() != 2:
            continue
        wanted = tensor.detach().cpu().numpy().T
        for value in numbered:
            assert value.const_value is not None
            if tuple(value.const_value.shape) != wanted.shape:
                continue
            if np.array_equal(value.const_value.numpy(), wanted):
                value.name = fqn
                numbered.remove(value)
                found[fqn] = "transpose"
                break
    return found


def name_interface(model: ir.Model, request: ExportRequest) -> None:
    named = [
        *zip(model.graph.inputs, request.input_names, strict=False),
        *zip(model.graph.outputs, request.output_names, strict=False),
    ]
    wanted = {name for _, name in named}
    for node in model.graph:  # a value in between may have the name that the user wants
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}_inside"
    for value, name in named:
        value.name = name
    _name_dimensions(model, request)


def _name_dimensions(model: ir.Model, request: ExportRequest) -> None:
    """Call the symbols of dynamic dimensions as the user does, wherever they stand."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    batch = ({0: "batch"},) * len(model.graph.inputs)
    for value, wanted in zip(model.graph.inputs, request.dimensions or batch, strict=False):
        for axis, name in wanted.items():
            size = value.shape[axis] if value.shape is not None else 0
            if not isinstance(size, int):
                names.setdefault(str(size.value), name)
    if not names:
        return
    symbols = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                size
                if isinstance(size, int)
                else symbols.sub(lambda found: names[found[0]], str(size.value))
                for size in value.shape
            ]
        )


def name_codes(
    model: ir.Model, exported: ExportedProgram, folded: dict[str, ir.Value]
) -> dict[str, str]:
    """Name the codes of each quantized edge by its address; return edge id -> name."""
    edge_at: dict[str, tuple[str, str]] = {}
    for source, at in edges.sites(exported.graph):
        edge = edge_of(source) if source.target is QUANTIZE else None
        if edge is not None:
            operator = at.op.rpartition("/")[0]
            edge_at[at.address] = (str(edge), f"{at.fqn}:{operator}#{at.index}.{edge.port}")
    found: dict[str, str] = {}
    results = set(model.graph.outputs)
    for node in model.graph:
        known = edge_at.get(node.metadata_props.get(SITE_KEY, ""))
        if node.op_type == "QuantizeLinear" and known is not None:
            edge_id, name = known
            if node.outputs[0] in results:
                name = str(node.outputs[0].name)  # the user's own
            node.outputs[0].name = name
            found[edge_id] = name
    for site, codes in folded.items():
        if site in edge_at and codes.name is not None:
            found[edge_at[site][0]] = codes.name
    missing = {edge for edge, _ in edge_at.values()} - set(found)
    if missing:
        twins = _twins(exported)
        found |= {edge: found[twins[edge]] for edge in sorted(missing) if twins[edge] in found}
    return found


def _twins(exported: ExportedProgram) -> dict[str, str]:
    """Map each quantized edge to the first that carries the same codes.

    torch.onnx computes only once what a program computes twice from the same values.
    """
    table, names = program.tensors(exported), program.tensor_names(exported)
    numbers: dict[Any, int] = {}
    number_of: dict[Node, int] = {}
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for node in exported.graph.nodes:
        key: Any = node.name
        if node.name in names:
            value = table[names[node.name]].detach().cpu().contiguous()
            data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
            key = (str(value.dtype), tuple(value.shape), hashlib.sha256(data).digest())
        elif node.op == "call_function":
            arguments = torch.fx.map_arg((node.args, node.kwargs), lambda n: f"%{number_of[n]}")
            if edges.operator_name(node) == "transpose":  # of two axes in either order
                rank = node.meta["val"].dim()
                arguments = arguments[0][0], sorted(axis % rank for axis in node.args[1:])
            key = (str(node.target), repr(arguments))
        number_of[node] = numbers.setdefault(key, len(numbers))
        edge = edge_of(node) if node.target is QUANTIZE else None
        if edge is not None:
            found[str(edge)] = first.setdefault(number_of[node], str(edge))
    return found
