"""Read an ExecuTorch file from outside: methods, kernels, delegates, and XNNPACK's own graphs.

Nothing is run and `executorch` is not imported; its installed package only lends the two schemas.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.exporters.executorch.flatbuffer import Schema

Array = np.ndarray[Any, Any]

ABOUT = "edgeopt"
"""A constant method that gives the file's own description as JSON."""
XNNPACK = "XnnpackBackend"
NO_HANDLE = 65535
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
_DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "DOUBLE": "float64",
    "BYTE": "uint8",
    "CHAR": "int8",
    "SHORT": "int16",
    "INT": "int32",
    "LONG": "int64",
    "BOOL": "bool",
}
_PRODUCT_KERNELS: Mapping[str, tuple[int, int]] = {
    # kernel: positions of its two operands
    "aten::bmm": (0, 1),
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::linear": (0, 1),
    "aten::convolution": (0, 1),
}
_DATATYPES: Mapping[str, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "qint8": np.int8,
    "qcint8": np.int8,
    "qint32": np.int32,
    "qcint32": np.int32,
}


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of a method's plan.

    Attributes:
        dtype: numpy's name.
        shape: Sizes; the largest ones where they are dynamic.
        dynamic: Whether they may be smaller.
        data: Index of its constant data, or 0.
        place: Arena and offset in bytes of its planned memory, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    dynamic: bool = False
    data: int = 0
    place: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes at the largest shape."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class XnnValue:
    """A value of XNNPACK's graph.

    Attributes:
        id: Its number.
        datatype: `fp32`, `qint8`, `qcint8`, ...
        dims: Sizes, channels last where the operator wants it.
        scale: Of per-tensor codes, exactly as stored; else None.
        zero_point: Of per-tensor codes.
        channel_axis: Of per-channel codes, or None.
        scales_key: Named data that hold the channels' scales, or empty.
        data_key: Named data that hold a constant, or empty.
        external: Whether it enters or leaves the delegate.
    """

    id: int
    datatype: str
    dims: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    channel_axis: int | None = None
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
        handle: The graph node that it came from, or `NO_HANDLE`.
        attributes: Its other fields.
        bounds: Smallest and largest output, or None.
    """

    operator: str
    inputs: tuple[int, ...]
    output: int
    handle: int
    attributes: Mapping[str, Any]
    bounds: tuple[float, float] | None = None


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


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of an operator outside the delegates.

    Attributes:
        name: `aten::native_layer_norm.out`.
        arguments: Its arguments that are tensors, by position; others are None.
    """

    name: str
    arguments: tuple[FileTensor | None, ...]

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates at the largest shape."""
        positions = _PRODUCT_KERNELS.get(self.name.partition(".")[0])
        if positions is None:
            return 0
        first, second = (self.arguments[p] for p in positions)
        assert first is not None
        assert second is not None
        if self.name.startswith("aten::convolution"):
            out = next(a for a in reversed(self.arguments) if a is not None)
            return math.prod(out.shape) * math.prod(second.shape[1:])
        if self.name.startswith("aten::linear"):
            return math.prod(first.shape) * second.shape[0]
        return math.prod(first.shape) * second.shape[-1]


@dataclasses.dataclass(frozen=True)
class Delegate:
    """A piece of a method that a backend runs; `graph` is set for XNNPACK's."""

    backend: str
    graph: XnnGraph | None
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class FileMethod:
    """One method of a file.

    Attributes:
        name: Its name.
        inputs: In order.
        outputs: In order.
        steps: What it does, in order: a `Kernel`, or the index of a delegate.
        delegates: By index.
        arenas: Bytes of each planned memory.
        planned: Tensors with a place in them.
    """

    name: str
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    steps: tuple[Kernel | int, ...]
    delegates: tuple[Delegate, ...]
    arenas: tuple[int, ...]
    planned: tuple[FileTensor, ...]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """What runs outside the delegates, in order."""
        return tuple(step for step in self.steps if isinstance(step, Kernel))


@dataclasses.dataclass(frozen=True)
class ExecuTorchFile:
    """A `.pte` file.

    Attributes:
        methods: By name; constant methods are left out.
        about: What `edgeopt` wrote about the file, or empty.
        named: Key -> constant bytes of delegates.
        constants: Constant bytes outside delegates, by index from 1.
    """

    methods: Mapping[str, FileMethod]
    about: Mapping[str, Any]
    named: Mapping[str, memoryview]
    constants: tuple[memoryview, ...]

    def constant(self, value: XnnValue) -> Array:
        """Return a delegate's constant in the layout that XNNPACK stores.

        Raises:
            BundleError: If its bytes are not in the file, or do not fill it.
        """
        data = self.named.get(value.data_key)
        if data is None:
            raise BundleError(f"the file lacks the data {value.data_key[:16]!r} of a constant")
        dtype = np.dtype(_DATATYPES[value.datatype])
        wanted = math.prod(value.dims) * dtype.itemsize
        if len(data) < wanted:
            raise BundleError(f"a constant has {len(data)} bytes, not {wanted}")
        return np.frombuffer(data[:wanted], dtype).reshape(value.dims)

    def channel_scales(self, value: XnnValue) -> Array:
        """Return the float32 scales of per-channel codes."""
        return np.frombuffer(self.named[value.scales_key], np.float32)


def read_file(path: Path) -> ExecuTorchFile:
    """Read a `.pte` file.

    Raises:
        BundleError: If it cannot be read, or is damaged.
        RuntimeUnavailable: If `executorch`, whose package holds the schema, is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as failure:
        raise BundleError(f"{path}: cannot be read: {failure.strerror}") from None
    return parse(data, path.name)


def parse(data: bytes, where: str) -> ExecuTorchFile:
    """Read a file's bytes; errors as `read_file`'s."""
    if len(data) < 40 or data[4:6] != b"ET":
        raise BundleError(f"{where}: is no ExecuTorch file")
    program_schema, graph_schema = _schemas()
    program = program_schema.read(data, where)
    try:
        segments = _segments(data, program, where)
        methods = {
            plan["name"]: _method(plan, program, segments, graph_schema, where)
            for plan in program["execution_plan"]
            if plan["name"] != ABOUT
        }
        return ExecuTorchFile(
            methods,
            _about(program),
            {entry["key"]: segments[entry["segment_index"]] for entry in program["named_data"]},
            _constants(program, segments),
        )
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as failure:
        raise BundleError(f"{where}: is damaged: {failure}") from None


def _schemas() -> tuple[Schema, Schema]:
    found = importlib.util.find_spec("executorch")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    if not places:
        raise RuntimeUnavailable("ExecuTorch is not installed: pip install 'edgeopt[executorch]'")
    folder = Path(places[0])
    return (
        Schema.load(folder / "schema" / "program.fbs"),
        Schema.load(folder / "backends" / "xnnpack" / "serialization" / "runtime_schema.fbs"),
    )


def _segments(data: bytes, program: Mapping[str, Any], where: str) -> list[memoryview]:
    base = 0
    if data[8:10] == b"eh":
        _, _, base = struct.unpack_from("<IQQ", data, 12)
    view = memoryview(data)
    found = []
    for segment in program["segments"]:
        start = base + segment["offset"]
        if start + segment["size"] > len(data):
            raise BundleError(f"{where}: is cut short: a segment ends behind the file")
        found.append(view[start : start + segment["size"]])
    return found


def _constants(program: Mapping[str, Any], segments: list[memoryview]) -> tuple[memoryview, ...]:
    about = program["constant_segment"]
    if about is None or not about["offsets"]:
        return ()
    data = segments[about["segment_index"]] if segments else memoryview(b"")
    starts = [*about["offsets"], len(data)]
    return tuple(data[a:b] for a, b in itertools.pairwise(starts))


def _about(program: Mapping[str, Any]) -> Mapping[str, Any]:
    for plan in program["execution_plan"]:
        if plan["name"] != ABOUT:
            continue
        for index in plan["outputs"]:
            value = plan["values"][index]["val"]
            if value is not None and value[0] == "String":
                found = json.loads(value[1]["string_val"])
                return found if isinstance(found, dict) else {}
    return {}


def _method(
    plan: Mapping[str, Any],
    program: Mapping[str, Any],
    segments: list[memoryview],
    schema: Schema,
    where: str,
) -> FileMethod:
    values = [_tensor(entry["val"]) for entry in plan["values"]]
    names = [
        f"{op['name']}.{op['overload']}" if op["overload"] else op["name"]
        for op in plan["operators"]
    ]
    steps: list[Kernel | int] = []
    for chain in plan["chains"]:
        for instruction in chain["instructions"]:
            kind, body = instruction["instr_args"]
            if kind == "KernelCall":
                arguments = tuple(values[i] for i in body["args"])
                steps.append(Kernel(names[body["op_index"]], arguments))
            elif kind == "DelegateCall":
                steps.append(body["delegate_index"])
    return FileMethod(
        name=plan["name"],
        inputs=tuple(v for i in plan["inputs"] if (v := values[i]) is not None),
        outputs=tuple(v for i in plan["outputs"] if (v := values[i]) is not None),
        steps=tuple(steps),
        delegates=tuple(_delegate(d, program, segments, schema, where) for d in plan["delegates"]),
        arenas=tuple(plan["non_const_buffer_sizes"][1:]),
        planned=tuple(v for v in values if v is not None and v.place is not None),
    )


def _tensor(value: Any) -> FileTensor | None:
    if value is None or value[0] != "Tensor":
        return None
    body = value[1]
    place = body["allocation_info"]
    return FileTensor(
        _DTYPES.get(body["scalar_type"], body["scalar_type"].lower()),
        tuple(body["sizes"]),
        body["shape_dynamism"] != "STATIC",
        body["data_buffer_idx"],
        (place["memory_id"], place["memory_offset_low"] + (place["memory_offset_high"] << 32))
        if place is not None
        else None,
    )


def _delegate(
    entry: Mapping[str, Any],
    program: Mapping[str, Any],
    segments: list[memoryview],
    schema: Schema,
    where: str,
) -> Delegate:
    at = entry["processed"]
    if at["location"] == "SEGMENT":
        data = bytes(segments[at["index"]])
    else:
        data = program["backend_delegate_data"][at["index"]]["data"]
    if entry["id"] != XNNPACK:
        return Delegate(entry["id"], None, len(data))
    if data[4:8] != b"XH00":
        raise BundleError(f"{where}: a delegate's payload is not XNNPACK's")
    offset, size = struct.unpack_from("<II", data, 10)
    graph = schema.read(data[offset : offset + size], f"{where}: a delegate's payload")
    return Delegate(entry["id"], _graph(graph), len(data))


def _graph(graph: Mapping[str, Any]) -> XnnGraph:
    constants = [entry["named_key"] for entry in graph["constant_data"]]
    values = dict(_values(graph, constants))
    nodes = []
    for entry in graph["xnodes"]:
        kind, body = entry["xnode_union"]
        inputs = tuple(body[name] for name in _present(kind, body, values))
        bounds = entry["output_min_max"]
        nodes.append(
            XnnNode(
                kind.removeprefix("XNN"),
                inputs,
                body["output_id"],
                entry["debug_handle"],
                {k: v for k, v in body.items() if not k.endswith("_id")},
                (bounds["output_min"], bounds["output_max"]) if bounds is not None else None,
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
                held.get("channel_dim") if per_channel else None,
                constants[held["scale_buffer_idx"]] if per_channel else "",
                constants[body["constant_buffer_idx"]] if body["constant_buffer_idx"] else "",
                body["external_id"] != _NO_ID,
            ),
        )
