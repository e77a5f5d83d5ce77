"""What XNNPACK cannot take, in words, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name, where_is
from edgeopt.quant.reading import QuantNode, quant_nodes, read

MAX_DIMENSIONS = 6  # XNN_MAX_TENSOR_DIMS
_MOVES = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "slice",
        "cat",
        "unsqueeze",
        "max_pool2d",
        "pad",
        "constant_pad_nd",
        "clone",
        "contiguous",
    }
)
"""Operators whose XNNPACK kernels copy codes: input and output must share parameters."""


def illegal_quantization(exported: ExportedProgram) -> Iterator[str]:
    names = program.tensor_names(exported)
    for found in quant_nodes(exported):
        where, node = where_is(found.node), found.node
        constant = isinstance(node.args[0], Node) and node.args[0].name in names
        if node.args[4] is not None:
            yield f"{where}: blocks of scales"
        elif found.codes_dtype != "int8":
            hint = "its biases stay float" if found.codes_dtype == "int32" else "re-plan for it"
            yield f"{where}: {found.codes_dtype} codes; XNNPACK takes int8, {hint}"
        elif constant and bool((found.params.zero_point != 0).any()):
            yield f"{where}: a weight with a zero point; XNNPACK takes symmetric weights"
        elif not constant and found.params.axis is not None:
            yield f"{where}: an activation with a scale for each channel"
    yield from _illegal_moves(exported)


def _illegal_moves(exported: ExportedProgram) -> Iterator[str]:
    """Name operators that copy codes from one grid to another: such a file does not load."""
    table, names = program.tensors(exported), program.tensor_names(exported)

    def grid(found: QuantNode) -> tuple[float, int]:
        return float(found.params.scale), int(found.params.zero_point)

    for node in exported.graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _MOVES:
            continue
        around = [read(n, table, names) for n in (*node.all_input_nodes, *node.users)]
        if not all(around) or not all(f is not None and f.params.axis is None for f in around):
            continue
        grids = {grid(f) for f in around if f is not None}
        if len(grids) > 1:
            yield (
                f"{where_is(node)}: moves codes between {len(grids)} grids; XNNPACK copies them, "
                "so input and output share scale and zero point"
            )


def illegal_shapes(exported: ExportedProgram) -> Iterator[str]:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            yield f"{where_is(node)}: complex numbers"
        elif isinstance(value, torch.Tensor) and value.dim() > MAX_DIMENSIONS:
            yield f"{where_is(node)}: {value.dim()} dimensions; XNNPACK takes {MAX_DIMENSIONS}"
