"""Count the multiplications of an ONNX file, node by node."""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import ExportError

SITE_KEY = "edgeopt.site"
"""Node metadata: the address of the site that a node came from."""


@dataclasses.dataclass(frozen=True)
class Product:
    """One node that multiplies and accumulates.

    Attributes:
        node: The node's name.
        operator: `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
        site: The address that the exporter recorded, else the FQN of the weight's module, else
            the node's name.
        macs: Multiply-accumulates of one call.
        weight: The initializer behind the second operand, or empty: an activation.
        quantized: Whether both operands are dequantized from codes.
    """

    node: str
    operator: str
    site: str
    macs: int
    weight: str
    quantized: bool


def multiplications(
    path: Path, sizes: Mapping[str, Sequence[int]] | None = None
) -> tuple[Product, ...]:
    """Return the products of a file, in graph order.

    Args:
        path: The ONNX file.
        sizes: Input -> shape, for inputs with dynamic dimensions.

    Raises:
        ExportError: If a shape cannot be inferred.
    """
    import onnx

    model = onnx.load(path)
    if sizes:
        _fix(model.graph, sizes)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value for d in dims)
    producers = {out: node for node in graph.node for out in node.output}
    weights = {i.name for i in graph.initializer}
    return tuple(
        _product(node, shapes, producers, weights)
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    )


def _fix(graph: Any, sizes: Mapping[str, Sequence[int]]) -> None:
    """Put sizes in place of the names of dynamic dimensions, wherever they are recorded.

    What no name determines is left to shape inference, which alone would not see through the
    arithmetic on shapes that attention masks are made with.
    """
    known: dict[str, int] = {}
    for value in graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False
        ):
            if dim.dim_param:
                known[dim.dim_param] = size
            dim.dim_value = size
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_param"):
                continue
            found = _evaluated(dim.dim_param, known)
            dim.Clear()
            if found is not None:
                dim.dim_value = found


_ARITHMETIC: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _evaluated(text: str, known: Mapping[str, int]) -> int | None:
    """Return the value of a size such as `4*batch`, or None where it has none."""

    def value(node: ast.AST) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return known.get(node.id)
        function = _ARITHMETIC.get(type(node.op)) if isinstance(node, ast.BinOp) else None
        if function is None:
            return None
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        division = isinstance(node.op, ast.FloorDiv)
        if left is None or right is None or (division and right == 0):
            return None
        return function(left, right)

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, ValueError):
        return None


def _product(
    node: Any,
    shapes: Mapping[str, tuple[int, ...]],
    producers: Mapping[str, Any],
    weights: set[str],
) -> Product:
    first, second, out = (shapes.get(n, ()) for n in (*node.input[:2], node.output[0]))
    if not (first and second and out) or 0 in (*first, *second, *out):
        raise ExportError(f"{node.name}: its shape is not known; give the sizes of the inputs")
    if node.op_type == "Conv":
        macs = math.prod(out) * math.prod(second[1:])
    elif node.op_type == "ConvTranspose":
        macs = math.prod(first) * math.prod(second[1:])
    else:
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        macs = math.prod(out) * (first[0] if turned else first[-1])
    weight = _weight(node.input[1], producers, weights)
    quantized = all(_from_codes(name, producers) for name in node.input[:2])
    recorded = {entry.key: entry.value for entry in node.metadata_props}.get(SITE_KEY)
    site = recorded or (weight.removesuffix(".weight") if weight else node.name)
    return Product(node.name, node.op_type, site, macs, weight, quantized)


def _from_codes(name: str, producers: Mapping[str, Any]) -> bool:
    producer = producers.get(name)
    return producer is not None and producer.op_type == "DequantizeLinear"


def _weight(name: str, producers: Mapping[str, Any], weights: set[str]) -> str:
    """Return the initializer behind an operand, or an empty string for an activation."""
    while name not in weights:
        producer = producers.get(name)
        if producer is None or producer.op_type not in ("DequantizeLinear", "Transpose", "Cast"):
            return ""
        name = producer.input[0]
    return name
