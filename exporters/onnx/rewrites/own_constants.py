"""Give each dequantized constant an initializer of its own."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir


def own_constants(model: ir.Model) -> tuple[str, ...]:
    """Copy initializers that several dequantize nodes read with different parameters.

    torch.onnx merges equal initializers: the codes of 0.3 and of 1.5 are both 255. The file still
    means the right thing, but a runtime that keeps one scale with each stored tensor (QNN) then
    computes with the first one, without a word.

    Before: `DequantizeLinear(c, s1, z1)`, `DequantizeLinear(c, s2, z2)`.
    After: `DequantizeLinear(c1, s1, z1)`, `DequantizeLinear(c2, s2, z2)`, where c1 and c2 equal c.

    Returns:
        The names of the copies.
    """
    initializers = model.graph.initializers
    readers: dict[str, dict[Hashable, list[ir.Node]]] = {}
    for node in model.graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.name is None or codes.const_value is None:
            continue
        if codes.name not in initializers:
            continue
        key = tuple(_content(value) for value in node.inputs[1:])
        readers.setdefault(codes.name, {}).setdefault(key, []).append(node)
    taken = {value.name for node in model.graph for value in node.outputs}
    taken |= {value.name for value in model.graph.inputs} | set(initializers)
    added: list[str] = []
    for shared, groups in readers.items():
        if len(groups) == 1:
            continue
        value = initializers.pop(shared)
        taken.discard(shared)
        assert value.const_value is not None
        for nodes in groups.values():
            name = _name(nodes[0].inputs[1], shared, taken)
            data = value.const_value.numpy().copy()
            own = ir.Value(name=name, const_value=ir.tensor(data, name=name))
            own.type, own.shape = value.type, value.shape
            initializers[name] = own
            added.append(name)
            for node in nodes:
                node.replace_input_with(0, own)
        if list(value.uses()):  # it also is somebody's zero point
            value.name = _name(None, shared, taken)
            initializers[value.name] = value
    return tuple(added)


def _content(value: ir.Value | None) -> Hashable:
    if value is None or value.const_value is None:
        return value
    return value.const_value.numpy().tobytes()


def _name(scale: ir.Value | None, codes: str, taken: set[str | None]) -> str:
    """Take the name that the tensor had in the model: its scale still carries it."""
    if scale is not None and scale.name is not None and scale.name.endswith("_scale"):
        name = scale.name.removesuffix("_scale")
        if name not in taken:
            taken.add(name)
            return name
    number = 0
    while (name := f"{codes}_{number}" if number else codes) in taken:
        number += 1
    taken.add(name)
    return name
