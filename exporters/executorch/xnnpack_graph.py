"""The XNNPACK graphs inside a `.pte`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_NO_ID = 0xFFFFFFFF


_INT8 = frozenset({"qint8", "qcint8", "quint8"})


_PRODUCTS = frozenset(
    {"FullyConnected", "Conv2d", "DepthwiseConv2d", "ConvTranspose2d", "BatchMatrixMultiply"}
)


_INPUTS = (
    "input_id",
    "input1_id",
    "input2_id",
    "input3_id",
    "input4_id",
    "input5_id",
    "query_id",
    "key_id",
    "value_id",
    "scale_id",
    "mask_id",
    "filter_id",
    "bias_id",
)


DATATYPES: Mapping[str, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "qint8": np.int8,
    "qcint8": np.int8,
    "qint32": np.int32,
    "qcint32": np.int32,
}


@dataclasses.dataclass(frozen=True)
class XnnValue:
    """A value of XNNPACK's graph.

    Attributes:
        id: Its number.
        datatype: `fp32`, `qint8`, `qcint8`, ...
        dims: Sizes, channels last where the operator wants it.
        scale: Of per-tensor codes, exactly as stored; else None.
        zero_point: Of per-tensor codes.
        scales_key: Named data that hold the channels' scales, or empty.
        data_key: Named data that hold a constant, or empty.
        external: Whether it enters or leaves the delegate.
    """

    id: int
    datatype: str
    dims: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    scales_key: str = ""
    data_key: str = ""
    external: bool = False

    @property
    def is_int8(self) -> bool:
        """Whether it holds 8-bit codes."""
        return self.datatype in _INT8


@dataclasses.dataclass(frozen=True)
class XnnNode:
    """An operator of XNNPACK's graph.

    Attributes:
        operator: `FullyConnected`, `Add`, ...
        inputs: Values that it reads, the filter and bias last.
        output: The value that it writes.
        handle: The graph node that it came from, or 65535: none.
        attributes: Its other fields.
    """

    operator: str
    inputs: tuple[int, ...]
    output: int
    handle: int
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class XnnGraph:
    """What XNNPACK runs as one delegate."""

    nodes: tuple[XnnNode, ...]
    values: Mapping[int, XnnValue]

    def multiplications(self, node: XnnNode) -> int:
        """Return the multiply-accumulates of a node, at its largest shape."""
        if node.operator not in _PRODUCTS:
            return 0
        out = math.prod(self.values[node.output].dims)
        first, second = (self.values[i].dims for i in node.inputs[:2])
        if node.operator == "FullyConnected":
            return out * second[-1]
        if node.operator == "BatchMatrixMultiply":
            return out * first[-1]
        taps = node.attributes["kernel_height"] * node.attributes["kernel_width"]
        if node.operator == "ConvTranspose2d":
            return math.prod(first) * taps * int(node.attributes["group_output_channels"])
        return out * taps * int(node.attributes["group_input_channels"])

    def precision(self, node: XnnNode) -> str:
        """Return `int8` where every operand is codes, else `float32`."""
        values = [self.values[i] for i in (*node.inputs, node.output)]
        if node.operator == "Convert":
            return "int8" if all(v.is_int8 for v in values) else "float32"
        coded = all(v.is_int8 or v.datatype in ("qint32", "qcint32") for v in values)
        return "int8" if coded else "float32"


def xnn_graph(graph: Mapping[str, Any]) -> XnnGraph:
    constants = [entry["named_key"] for entry in graph["constant_data"]]
    values = dict(_values(graph, constants))
    nodes = []
    for entry in graph["xnodes"]:
        kind, body = entry["xnode_union"]
        inputs = tuple(body[name] for name in _present(kind, body, values))
        nodes.append(
            XnnNode(
                kind.removeprefix("XNN"),
                inputs,
                body["output_id"],
                entry["debug_handle"],
                {k: v for k, v in body.items() if not k.endswith("_id")},
            )
        )
    return XnnGraph(tuple(nodes), values)


def _present(kind: str, body: Mapping[str, Any], values: Mapping[int, XnnValue]) -> list[str]:
    """Return the fields that name inputs; an absent one holds an id that no value has, or 0."""
    names = [name for name in _INPUTS if name in body]
    if kind.startswith("XNNConcatenate"):
        names = names[: int(kind.removeprefix("XNNConcatenate"))]
    return [name for name in names if body[name] != _NO_ID and body[name] in values]


def _values(graph: Mapping[str, Any], constants: list[str]) -> Iterator[tuple[int, XnnValue]]:
    for entry in graph["xvalues"]:
        kind, body = entry["xvalue_union"]
        params: Any = None
        if kind == "XNNQuantizedTensorValue":
            params, body = body["quant_params"], body["tensor_value"]
        held: dict[str, Any] = dict(params[1]) if params is not None else {}
        per_channel = params is not None and params[0].startswith("PerChannel")
        yield (
            body["id_out"],
            XnnValue(
                body["id_out"],
                body["datatype"].removeprefix("xnn_datatype_"),
                tuple(body["dims"]),
                held.get("scale") if params is not None and params[0] == "PerTensorQuant" else None,
                held.get("zero_point", 0),
                constants[held["scale_buffer_idx"]] if per_channel else "",
                constants[body["constant_buffer_idx"]] if body["constant_buffer_idx"] else "",
                body["external_id"] != _NO_ID,
            ),
        )
