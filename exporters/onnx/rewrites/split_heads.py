"""Split a packed query-key-value projection along an axis of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def split_heads(model: ir.Model) -> tuple[str, ...]:
    """Rewrite `Split(axis=-1) -> Reshape` of a packed projection, in place; exact.

    TensorRT's builder slices the weights of a projection whose output is split along its last
    axis. For an INT8 weight it then multiplies in float16. Split along a leading axis the
    projection stays one INT8 product, and attention still becomes one kernel.

    Before: `[B, T, k D] -> Split(axis=2) -> k times [B, T, D] -> Reshape [B, T, H, D / H]`.
    After: `[B, T, k D] -> Reshape [B, T, k, D] -> Transpose [k, B, T, D] -> Split(axis=0)
    -> k times [1, B, T, D] -> Reshape [B, T, H, D / H]`.

    A split acts if its parts are equal, its input has three axes, and each part is read by one
    Reshape that names its sizes.

    Returns:
        Names of the Split nodes that were rewritten.
    """
    graph = model.graph
    done: list[str] = []
    for node in list(graph):
        width = _part_width(node)
        if width is None or not all(_read_by_a_reshape(part) for part in node.outputs):
            continue
        packed = node.inputs[0]
        assert packed is not None
        sizes = np.array([0, 0, len(node.outputs), width], np.int64)
        name = f"{node.name}_sizes"
        shape = ir.Value(name=name, const_value=ir.tensor(sizes, name=name))
        shape.dtype, shape.shape = ir.DataType.INT64, ir.Shape(sizes.shape)
        graph.initializers[name] = shape
        unpack = _node("Reshape", [packed, shape], [], f"{node.name}_unpack", packed.dtype)
        order = [ir.AttrInt64s("perm", [2, 0, 1, 3])]
        lead = _node("Transpose", [unpack.outputs[0]], order, f"{node.name}_lead", packed.dtype)
        graph.insert_before(node, [unpack, lead])
        node.replace_input_with(0, lead.outputs[0])
        node.attributes["axis"] = ir.AttrInt64("axis", 0)
        if len(node.inputs) > 1:  # sizes along the old axis
            node.resize_inputs(1)
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
        for part in node.outputs:
            part.shape = None
        done.append(str(node.name))
    return tuple(done)


def _node(
    kind: str,
    inputs: list[ir.Value | None],
    attributes: list[ir.Attr],
    name: str,
    dtype: ir.DataType | None,
) -> ir.Node:
    node = ir.Node("", kind, inputs, attributes, name=name)
    node.outputs[0].name = f"{name}_out"
    if dtype is not None:
        node.outputs[0].dtype = dtype
    return node


def _part_width(node: ir.Node) -> int | None:
    """Return the width of each part of a Split that may act, or None."""
    packed = node.inputs[0] if node.inputs else None
    if node.op_type != "Split" or packed is None or packed.shape is None or len(packed.shape) != 3:
        return None
    axis = node.attributes["axis"].value if "axis" in node.attributes else 0
    total = packed.shape[2]
    if axis not in (-1, 2) or not isinstance(total, int) or total % len(node.outputs):
        return None
    width = total // len(node.outputs)
    if len(node.inputs) > 1:
        sizes = node.inputs[1]
        if sizes is None or sizes.const_value is None:
            return None
        if sizes.const_value.numpy().tolist() != [width] * len(node.outputs):
            return None
    return width


def _read_by_a_reshape(part: ir.Value) -> bool:
    uses = list(part.uses())
    if part.is_graph_output() or len(uses) != 1:
        return False
    reader, index = uses[0]
    if reader.op_type != "Reshape" or index != 0 or reader.inputs[1] is None:
        return False
    # A zero would copy a size of the part, whose axes change.
    sizes = reader.inputs[1].const_value
    return sizes is None or 0 not in sizes.numpy()
