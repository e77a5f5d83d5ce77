"""Pick rows of a table of codes before they are dequantized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.exporters.onnx.rewrites.constants import array, attribute, store


def gather_codes(model: ir.Model) -> int:
    """Move the dequantization of a table behind the Gather that picks its rows.

    Runtimes would otherwise dequantize the whole table in each call, and the table's other reader
    (a tied head) could not have the codes for itself. The zero points are 0, so `code * scale` is
    what DequantizeLinear gives; it takes no scale for each row of a gathered tensor.

    Before: `codes [V, D] -> DequantizeLinear(scale [V], axis=0) -> Gather(tokens)`.
    After: `Cast(Gather(codes, tokens)) * Unsqueeze(Gather(scale, tokens))`.

    Returns:
        How many Gathers read codes now.
    """
    graph = model.graph
    count = 0
    for gather in list(graph):
        table = gather.inputs[0] if gather.op_type == "Gather" else None
        if table is None or attribute(gather, "axis", 0) != 0:
            continue
        dequantize = table.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        codes, scales, *zero = dequantize.inputs
        shift = array(zero[0]) if zero else np.zeros(1)
        if array(codes) is None or array(scales) is None or shift is None or shift.any():
            continue
        if codes is None or scales is None or codes.shape is None or len(codes.shape) != 2:
            continue
        if scales.shape is not None and len(scales.shape) and attribute(dequantize, "axis", 1) != 0:
            continue
        _pick_rows(graph, gather, codes, scales)
        count += 1
    return count


def _pick_rows(graph: ir.Graph, gather: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    tokens, result = gather.inputs[1], gather.outputs[0]
    row_shape = tokens.shape if tokens is not None else None
    rows = _node(gather, "Gather", [codes, tokens], "codes", codes.dtype, result.shape)
    real = _node(
        gather, "Cast", rows.outputs, "cast", result.dtype, result.shape,
        [ir.AttrInt64("to", int(ir.DataType.FLOAT))],
    )  # fmt: skip
    nodes = [rows, real]
    factor = scales
    if scales.shape is not None and len(scales.shape):
        picked = _node(gather, "Gather", [scales, tokens], "scales", scales.dtype, row_shape)
        last = store(graph, f"{gather.name}_last", np.array([-1], np.int64))
        wide = None if row_shape is None else ir.Shape([*row_shape, 1])
        column = _node(gather, "Unsqueeze", [picked.outputs[0], last], "column", scales.dtype, wide)
        nodes += [picked, column]
        factor = column.outputs[0]
    product = _node(gather, "Mul", [real.outputs[0], factor], "", result.dtype, result.shape)
    product.outputs[0].name = result.name
    graph.insert_before(gather, [*nodes, product])
    result.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
    graph.remove(gather, safe=True)


def _node(
    gather: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value | None],
    role: str,
    dtype: ir.DataType | None,
    shape: ir.Shape | None,
    attributes: list[ir.Attr] | None = None,
) -> ir.Node:
    """Return a node that stands at the Gather's site, named after it."""
    name = f"{gather.name}_{role}" if role else f"{gather.name}_rows"
    node = ir.Node("", kind, list(inputs), attributes or [], name=name)
    node.metadata_props.update(gather.metadata_props)
    (output,) = node.outputs
    output.name = f"{name}_out"
    output.shape = shape
    if dtype is not None:
        output.dtype = dtype
    return node
