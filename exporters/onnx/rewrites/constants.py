"""Read and write initializers of an onnx_ir graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the array of an initializer, or None for any other value."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def store(graph: ir.Graph, name: str, data: np.ndarray[Any, Any]) -> ir.Value:
    """Add an initializer, or replace the one of that name, and return its value."""
    tensor = ir.tensor(np.ascontiguousarray(data), name=name)
    existing = graph.initializers.get(name)
    if existing is not None:
        existing.const_value = tensor
        existing.shape = ir.Shape(data.shape)
        existing.type = ir.TensorType(tensor.dtype)
        return existing
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, or None where several do or it is an output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or the default."""
    found = node.attributes.get(name)
    return default if found is None else found.value
