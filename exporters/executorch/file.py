"""Read an ExecuTorch file from outside: its methods, with their tensors, kernels and delegates.

Nothing is run and `executorch` is not imported; its installed package only lends the two schemas.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.exporters.executorch.flatbuffer import Schema
from edgeopt.exporters.executorch.xnnpack_graph import DATATYPES, XnnGraph, XnnValue, xnn_graph

Array = np.ndarray[Any, Any]


ABOUT = "edgeopt"
"""A constant method that gives the file's own description as JSON."""


XNNPACK = "XnnpackBackend"


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
        dtype = np.dtype(DATATYPES[value.datatype])
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
    return Delegate(entry["id"], xnn_graph(graph), len(data))
