"""Where each operator runs: work on the graph that ONNX Runtime saves after its optimizations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner, one_line

SITE_KEY = "edgeopt.site"


INT8 = "int8"


_CODES = (np.dtype(np.int8), np.dtype(np.uint8))


_INTEGER_KERNELS = frozenset(
    [
        "QGemm",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "QAttention",
    ]
)


# Operators that multiply: name -> kind of the count.
PRODUCTS: Mapping[str, str] = {
    **dict.fromkeys(("Conv", "FusedConv", "QLinearConv", "ConvInteger"), "convolution"),
    **dict.fromkeys(
        [
            "MatMul",
            "FusedMatMul",
            "QLinearMatMul",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
            "MatMulInteger",
            "Gemm",
            "FusedGemm",
            "QGemm",
            "MatMulNBits",
            "MatMulBnb4",
        ],
        "matrix",
    ),
    "ConvTranspose": "transposed convolution",
    "Attention": "attention",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
}


WEIGHT_PORT: Mapping[str, int] = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3}


# Moves codes or floats without changing them.
MOVES = frozenset(
    [
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Expand",
        "Slice",
        "Split",
        "Pad",
        "Concat",
        "Gather",
        "DepthToSpace",
        "SpaceToDepth",
        "Tile",
        "ReorderInput",
        "ReorderOutput",
    ]
)


@dataclasses.dataclass(frozen=True)
class OrtNode:
    """One node of a file.

    Attributes:
        name: Its name.
        domain: `""`, `com.microsoft`, `com.microsoft.nchwc`.
        operator: Its operator.
        inputs: Names of its inputs; empty where an optional one is left out.
        outputs: Names of its outputs.
        attributes: As Python values.
        site: The model's address that the exporter noted, or empty.
    """

    name: str
    domain: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    site: str = ""

    def input(self, index: int) -> str:
        """Return the name of an input, or empty where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclasses.dataclass(frozen=True)
class OrtGraph:
    """The top level of a file.

    Attributes:
        nodes: In execution order.
        constants: Initializer -> its array.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
    """

    nodes: tuple[OrtNode, ...]
    constants: Mapping[str, np.ndarray[Any, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def producers(self) -> dict[str, OrtNode]:
        """Return value -> the node that computes it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def readers(self) -> dict[str, list[OrtNode]]:
        """Return value -> the nodes that read it."""
        found: dict[str, list[OrtNode]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found


def read_graph(path: Path) -> OrtGraph:
    """Read the top level of a file.

    Raises:
        BundleError: If it cannot be read.
    """
    import onnx_ir as ir

    model = _load(path)
    nodes = tuple(
        OrtNode(
            name=node.name or "",
            domain=node.domain,
            operator=node.op_type,
            inputs=tuple(v.name or "" if v is not None else "" for v in node.inputs),
            outputs=tuple(v.name or "" for v in node.outputs),
            attributes={
                key: attribute.value
                for key, attribute in node.attributes.items()
                if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            },
            site=node.metadata_props.get(SITE_KEY, ""),
        )
        for node in model.graph
    )
    return OrtGraph(
        nodes=nodes,
        constants={
            name: value.const_value.numpy()
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        },
        inputs=tuple(v.name or "" for v in model.graph.inputs),
        outputs=tuple(v.name or "" for v in model.graph.outputs),
    )


def run_with_probes(path: Path, inputs: Arrays | None, names: Iterable[str]) -> Arrays:
    """Run an optimized file as it is and return the named values beside its inputs and outputs.

    Args:
        path: What `save_optimized` made; it is not optimized again.
        inputs: Its inputs, or None: they are made.
        names: Values to probe; initializers, empty and unknown names are left out.

    Raises:
        BundleError: If the file cannot be read or run.
        DataError: If the inputs do not fit.
    """
    import onnx_ir as ir

    model = _load(path)
    known = {out.name: out for node in model.graph for out in node.outputs if out.name}
    present = {out.name for out in model.graph.outputs}
    for name in dict.fromkeys(names):
        if name in known and name not in present:
            model.graph.outputs.append(known[name])
    proto = ir.to_proto(model)
    session = OnnxRuntimeRunner().load_bytes(
        proto.SerializeToString(), str(path), LoadOptions(optimize=False)
    )
    try:
        given = session.example_inputs() if inputs is None else inputs
        return {**given, **session.run("forward", given)}
    finally:
        session.close()


def _load(path: Path) -> Any:
    import onnx_ir as ir

    try:
        return ir.load(path)
    except Exception as failure:  # protobuf and onnx_ir raise many kinds
        raise BundleError(f"{path}: is no ONNX file: {one_line(failure)}") from failure


def is_move(node: OrtNode) -> bool:
    """Say whether a node only moves values."""
    return node.operator in MOVES


def is_integer(node: OrtNode, values: Arrays) -> bool:
    """Say whether a node computes on codes: an integer kernel, or it reads or writes 8 bits."""
    if node.operator.startswith("QLinear") or node.operator in _INTEGER_KERNELS:
        return True
    if node.operator == "DequantizeLinear":
        return True
    return any(values[o].dtype in _CODES for o in node.outputs if o in values)
