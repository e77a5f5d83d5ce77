"""Write everything that is not quantized as float16; inputs and outputs stay float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ExportError

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
_MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPE_ATTRIBUTES = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
    "DequantizeLinear": "output_dtype",
}
# A lone constant (an epsilon, a divisor) may change by this much; it has no neighbours to drown in.
_SCALAR_CHANGE = 0.01


@dataclasses.dataclass(frozen=True)
class Float16Result:
    """What `to_float16` did.

    Attributes:
        tensors: Initializers that became float16.
        casts: Casts inserted, those at inputs and outputs included.
        islands: Node that stays float32 -> why.
        scale_change: Largest relative change of a quantization scale.
    """

    tensors: int
    casts: int
    islands: Mapping[str, str]
    scale_change: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, one line each."""
        found = [f"{self.tensors} tensors became float16"] if self.tensors else []
        if self.scale_change:
            found[0] += f"; quantization scales changed by up to {100 * self.scale_change:.2g} %"
        found += [f"{name} stays float32: {why}" for name, why in self.islands.items()]
        return tuple(found)


def to_float16(model: ir.Model) -> Float16Result:
    """Rewrite a float32 model in place; names of inputs, outputs and tensors stay.

    Initializers, scales, constants and the targets of casts become float16. Casts stand at the
    inputs and outputs, and around *islands*: nodes that stay float32 since a scale is below
    float16's normal range, a constant is beyond 65504, or the operator takes no float16. Where a
    scale makes an island, the convolution or product that reads it joins it, so that it can still
    be fused with its quantization. A model that is float16 already stays as it is.

    Args:
        model: A float32 model, opset 19 or newer where it is quantized; changed in place.

    Raises:
        ExportError: For an opset that has no float16 scales, or a model with subgraphs.
    """
    from onnx_ir.passes import common

    graph = model.graph
    _check(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass()(model)
    floats = {v for v in _values(graph) if v.dtype == ir.DataType.FLOAT}
    islands = _islands(graph)
    # Before anything is converted: both lists are read from the float32 model.
    wanted = {
        (node, i): _reads_float32(node, i, islands)
        for node in graph
        for i, value in enumerate(node.inputs)
        if value is not None and value in floats
    }
    tensors, scale_change = _convert_initializers(graph, floats, wanted)
    _convert_nodes(graph, floats, islands)
    casts = _insert_casts(graph, floats, islands, wanted)
    return Float16Result(
        tensors, casts, {str(n.name): why for n, why in islands.items()}, scale_change
    )


def _check(model: ir.Model) -> None:
    opset = model.graph.opset_imports.get("", 0)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and opset < 19:
            raise ExportError(f"float16 scales need opset 19 or newer, not {opset}")
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _own(node)):
            raise ExportError(f"to_float16: {node.name} ({node.op_type}) holds a subgraph")


def _own(node: ir.Node) -> list[ir.Attr]:
    return [a for a in node.attributes.values() if isinstance(a, ir.Attr)]


def _values(graph: ir.Graph) -> list[ir.Value]:
    found = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        found += node.outputs
    return found


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def _takes_float16(node: ir.Node, index: int, *, output: bool = False) -> bool:
    import onnx

    if not onnx.defs.has(node.op_type, node.domain):
        return True
    version = node.version or (node.graph.opset_imports.get(node.domain, 1) if node.graph else 1)
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    formal = schema.outputs if output else schema.inputs
    if not formal:
        return True
    types = formal[min(index, len(formal) - 1)].types  # the last one may be variadic
    return "tensor(float16)" in types or "tensor(float)" not in types


def _islands(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return the nodes that stay float32, in graph order, with the reason."""
    found = {node: reason for node in graph if (reason := _reason(node))}
    for node in graph:
        if node.op_type not in _MULTIPLY or node in found:
            continue
        for value in node.inputs:
            source = value.producer() if value is not None else None
            if source in found and source.op_type == "DequantizeLinear":
                found[node] = found[source]
    for node in list(found):
        if node.op_type in _MULTIPLY:
            _join_dequantizers(graph, node, found)
    return {node: found[node] for node in graph if node in found}


def _join_dequantizers(graph: ir.Graph, node: ir.Node, found: dict[ir.Node, str]) -> None:
    """Give an island's product float32 dequantizers of its own, so that it still fuses."""
    for index, value in enumerate(list(node.inputs)):
        source = value.producer() if value is not None else None
        if source is None or source.op_type != "DequantizeLinear" or source in found:
            continue
        if any(reader not in found for reader, _ in source.outputs[0].uses()):
            own = ir.Node(
                "",
                "DequantizeLinear",
                list(source.inputs),
                list(source.attributes.values()),
                name=f"{source.name}_{node.name}",
            )
            own.outputs[0].name = f"{source.outputs[0].name}_{node.name}"
            own.outputs[0].dtype = ir.DataType.FLOAT
            own.outputs[0].shape = source.outputs[0].shape
            graph.insert_before(node, own)
            node.replace_input_with(index, own.outputs[0])
            source = own
        found[source] = found[node]


def _reason(node: ir.Node) -> str:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = _constant(node.inputs[1])
        if scale is None:
            return ""
        name, low, high = node.inputs[1].name, float(scale.min()), float(scale.max())  # type: ignore[union-attr]
        if low < SMALLEST_NORMAL:
            return f"scale {name} has {low:.3g}, below float16's normal range"
        return f"scale {name} has {high:.3g}, beyond {LARGEST:g}" if high > LARGEST else ""
    if any(o.dtype == ir.DataType.FLOAT and not _takes_float16(node, i, output=True)
           for i, o in enumerate(node.outputs)):  # fmt: skip
        return f"{node.op_type} gives no float16"
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        constant = _constant(value)
        if not _takes_float16(node, index):
            if constant is None:
                return f"{node.op_type} takes no float16"
            continue  # such as Resize's scales: that input alone stays float32
        if constant is not None and (reason := _unfit(constant)):
            return f"constant {value.name} {reason}"
    return ""


def _unfit(constant: np.ndarray[Any, Any]) -> str:
    """Say why a constant cannot be float16, or return an empty string; infinities can."""
    finite = constant[np.isfinite(constant)]
    largest = float(np.abs(finite).max(initial=0.0))
    if largest > LARGEST:
        return f"holds {largest:.3g}, beyond {LARGEST:g}"
    if constant.size == 1 and largest:
        change = abs(float(np.float16(largest)) - largest) / largest
        if change > _SCALAR_CHANGE:
            return f"is {largest:.3g}, which float16 changes by {100 * change:.2g} %"
    return ""


def _reads_float32(node: ir.Node, index: int, islands: Mapping[ir.Node, str]) -> bool:
    return node in islands or not _takes_float16(node, index)


def _convert_initializers(
    graph: ir.Graph, floats: set[ir.Value], wanted: Mapping[tuple[ir.Node, int], bool]
) -> tuple[int, float]:
    """Convert each initializer for its readers; return how many, and the scales' change."""
    count, scale_change = 0, 0.0
    for name, value in list(graph.initializers.items()):
        if value not in floats or value.is_graph_output():
            continue
        uses = list(value.uses())
        wide = [use for use in uses if wanted[use]]
        if uses and len(wide) == len(uses):
            continue
        assert value.const_value is not None
        before = value.const_value.numpy()
        narrow = before.astype(np.float16)
        if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n, _ in uses):
            change = np.abs(narrow.astype(np.float32) - before) / before
            scale_change = max(scale_change, float(change.max(initial=0.0)))
        value.const_value = ir.tensor(narrow, name=name)
        value.dtype = ir.DataType.FLOAT16
        count += 1
        if wide:  # the same numbers for both kinds of reader
            _widened(graph, value, narrow.astype(np.float32), wide, floats)
    return count, scale_change


def _widened(
    graph: ir.Graph,
    value: ir.Value,
    numbers: np.ndarray[Any, Any],
    uses: Sequence[tuple[ir.Node, int]],
    floats: set[ir.Value],
) -> None:
    name = f"{value.name}_float32"
    copy = ir.Value(name=name, const_value=ir.tensor(numbers, name=name))
    copy.dtype, copy.shape = ir.DataType.FLOAT, ir.Shape(numbers.shape)
    graph.initializers[name] = copy
    floats.add(copy)
    for node, index in uses:
        node.replace_input_with(index, copy)


def _convert_nodes(graph: ir.Graph, floats: set[ir.Value], islands: Mapping[ir.Node, str]) -> None:
    for node in graph:
        if node in islands or _widens_an_output(node):
            continue
        key = _TYPE_ATTRIBUTES.get(node.op_type, "")
        kind = node.attributes.get(key)
        if kind is not None and kind.value == ir.DataType.FLOAT:
            node.attributes[key] = ir.AttrInt64(key, int(ir.DataType.FLOAT16))
        if node.op_type == "ConstantOfShape":
            filled = node.attributes.get("value")
            number = filled.value.numpy() if filled is not None else np.zeros(1, np.float32)
            if number.dtype == np.float32:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float16(number)))
        for output in node.outputs:
            if output in floats:
                output.dtype = ir.DataType.FLOAT16


def _widens_an_output(node: ir.Node) -> bool:
    (value, *_) = node.outputs
    return node.op_type == "Cast" and value.is_graph_output() and not list(value.uses())


def _insert_casts(
    graph: ir.Graph,
    floats: set[ir.Value],
    islands: Mapping[ir.Node, str],
    wanted: Mapping[tuple[ir.Node, int], bool],
) -> int:
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(list(node.inputs)):
            if value is None or value not in floats or value.is_initializer():
                continue
            kind = ir.DataType.FLOAT if wanted[node, index] else ir.DataType.FLOAT16
            if value.dtype == kind or node.op_type == "Cast":
                continue
            if (value, kind) not in made:
                made[value, kind] = _cast(graph, value, kind)
            node.replace_input_with(index, made[value, kind])
    count = len(made)
    for position, value in enumerate(list(graph.outputs)):
        if value in floats and value.dtype == ir.DataType.FLOAT16:
            name = value.name
            value.name = f"{name}_float16"
            wide = _cast(graph, value, ir.DataType.FLOAT)
            wide.name = name
            graph.outputs[position] = wide
            count += 1
    return count


def _cast(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> ir.Value:
    name = f"{value.name}_{kind.name.lower()}"
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))], name=f"{name}_cast")
    out = cast.outputs[0]
    out.name, out.dtype, out.shape = name, kind, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(next(iter(graph)), cast)
    else:
        graph.insert_after(producer, cast)
    return out
