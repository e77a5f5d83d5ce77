"""Give each dequantized constant an initializer of its own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import onnx_ir as ir


def own_constants(model: ir.Model) -> tuple[str, ...]:
    """Copy initializers that several dequantize nodes read with different parameters.

    torch.onnx merges equal initializers: the codes of 0.3 and of 1.5 are both 255. The file still
    means the right thing, but a runtime that keeps one scale with each stored tensor (QNN) then
    computes with the first one, without a word.

    Before: `DequantizeLinear(c, s1, z1)`, `DequantizeLinear(c, s2, z2)`.
    After: `DequantizeLinear(c, s1, z1)`, `DequantizeLinear(c', s2, z2)`, where c' equals c.

    Returns:
        The names of the new initializers.
    """
    initializers = model.graph.initializers
    owners: dict[str, dict[Hashable, ir.Value]] = {}
    added: list[str] = []
    for node in model.graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.name not in initializers or codes.const_value is None:
            continue
        key = tuple(_content(value) for value in node.inputs[1:])
        known = owners.setdefault(codes.name, {})
        if not known:
            known[key] = codes
        if key not in known:
            name = _name(node.inputs[1], codes.name, initializers)
            data = codes.const_value.numpy().copy()
            copy = ir.Value(name=name, const_value=ir.tensor(data, name=name))
            copy.type, copy.shape = codes.type, codes.shape
            initializers[name] = copy
            known[key] = copy
            added.append(name)
        node.replace_input_with(0, known[key])
    return tuple(added)


def _content(value: ir.Value | None) -> Hashable:
    if value is None or value.const_value is None:
        return value
    return value.const_value.numpy().tobytes()


def _name(scale: ir.Value | None, codes: str, taken: Any) -> str:
    """Return the name that the tensor had in the model: its scale still carries it."""
    if scale is not None and scale.name is not None and scale.name.endswith("_scale"):
        name = scale.name.removesuffix("_scale")
        if name not in taken:
            return name
    number = 1
    while f"{codes}_{number}" in taken:
        number += 1
    return f"{codes}_{number}"
