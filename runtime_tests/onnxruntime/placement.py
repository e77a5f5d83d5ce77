"""Where each operator runs in ONNX Runtime's own graph."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.artifacts.artifact import TensorEntry
from edgeopt.results.structure import OperatorRow
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.onnxruntime.graph import (
    INT8,
    MOVES,
    PRODUCTS,
    WEIGHT_PORT,
    OrtGraph,
    OrtNode,
    is_integer,
    read_graph,
    run_with_probes,
)
from edgeopt.runtime_tests.onnxruntime.runner import PROVIDER


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the operators of one file run.

    Attributes:
        rows: One per operator of the optimized graph, in its order.
        counts: Precision -> operator -> count.
        macs: Multiply-accumulates of one call.
        int8_macs: Those in integer kernels.
        float_weighted: Sites of the weighted operators that run in float -> reason.
    """

    rows: tuple[OperatorRow, ...]
    counts: Mapping[str, Mapping[str, int]]
    macs: int
    int8_macs: int
    float_weighted: Mapping[str, str]

    @property
    def int8_share(self) -> float | None:
        """The share of the MACs in INT8, from 0 to 1, or None where nothing is multiplied."""
        return self.int8_macs / self.macs if self.macs else None


def placement(
    artifact: str,
    model: Path,
    optimized: Path,
    *,
    tensor_map: Mapping[str, TensorEntry] | None = None,
    inputs: Arrays | None = None,
) -> Placement:
    """Say where each operator of a file runs, what it multiplies, and why it is not INT8.

    Args:
        artifact: The artifact's name, for the rows.
        model: The exported file.
        optimized: What `save_optimized` made of it.
        tensor_map: FQN -> tensor in the exported file.
        inputs: Inputs that set the shapes; else ones of batch 1 are made.

    Raises:
        BundleError: If one of the files cannot be read or run.
    """
    original, graph = read_graph(model), read_graph(optimized)
    values = dict(run_with_probes(optimized, inputs, [o for n in graph.nodes for o in n.outputs]))
    values |= graph.constants
    sites = _Sites(original, tensor_map or {})
    rows, float_weighted = [], {}
    counts: dict[str, Counter[str]] = {}
    for node in graph.nodes:
        source = sites.source(node)
        macs = _macs(node, values, sites.weight(source))
        precision = _precision(node, values)
        reason = ""
        if macs and precision != INT8:
            reason = sites.why_float(source)
            if sites.weight(source) is not None:
                float_weighted[sites.site(source, node)] = reason
        counts.setdefault(precision, Counter())[node.operator] += 1
        rows.append(
            OperatorRow(
                artifact=artifact,
                operator=node.operator,
                site=sites.site(source, node),
                precision=precision,
                where=PROVIDER,
                macs=macs,
                reason=reason,
            )
        )
    return Placement(
        rows=tuple(rows),
        counts={precision: dict(sorted(c.items())) for precision, c in sorted(counts.items())},
        macs=sum(r.macs for r in rows),
        int8_macs=sum(r.macs for r in rows if r.precision == INT8),
        float_weighted=float_weighted,
    )


class _Sites:
    """Finds the exported file's node, and so the model's site, for an optimized node."""

    def __init__(self, original: OrtGraph, tensor_map: Mapping[str, TensorEntry]) -> None:
        self._graph = original
        self._fqn = {entry.name: fqn for fqn, entry in tensor_map.items()}
        self._producers = original.producers()
        self._readers = original.readers()
        self._by_name = {n.name: n for n in original.nodes if n.name}
        self._quantized = any(n.operator == "DequantizeLinear" for n in original.nodes)
        self._by_weight: dict[str, OrtNode] = {}
        for node in original.nodes:
            for index in _weight_ports(node):
                name = self._constant_behind(node.input(index))
                if name:
                    self._by_weight.setdefault(name, node)

    def source(self, node: OrtNode) -> OrtNode | None:
        """Return the exported node that an optimized node came from, or None.

        The weight is the surest way. The optimizer derives names from the old ones: it appends to
        a node's name, and calls a layout-changed node after its output.
        """
        for name in node.inputs:
            if node.operator in PRODUCTS and name in self._by_weight:
                return self._by_weight[name]
        candidates = [node.name, *node.outputs]
        if node.domain.endswith("nchwc"):
            candidates.insert(0, node.name.removesuffix("_nchwc"))
        for name in candidates:
            found = self._named(name)
            if found is None:
                continue
            if node.operator in PRODUCTS and found.operator not in PRODUCTS:
                found = self._product_before(found)
            if found is not None:
                return found
        return None

    def _named(self, name: str) -> OrtNode | None:
        if name in self._by_name:
            return self._by_name[name]
        if name in self._producers:
            return self._producers[name]
        for mark in ("/", "_token_", "_nchwc"):
            head, found, _ = name.rpartition(mark)
            if found and head:
                return self._named(head)
        return None

    def _product_before(self, node: OrtNode) -> OrtNode | None:
        """Follow first inputs upwards, through what a product can have absorbed."""
        for _ in range(8):
            if node.operator in PRODUCTS:
                return node
            before = self._producers.get(node.input(0))
            if before is None:
                return None
            node = before
        return None

    def weight(self, source: OrtNode | None) -> np.ndarray[Any, Any] | None:
        """Return the weight of an exported node, or None where it has none."""
        if source is None:
            return None
        for index in _weight_ports(source):
            name = self._constant_behind(source.input(index))
            if name:
                return self._graph.constants[name]
        return None

    def site(self, source: OrtNode | None, node: OrtNode) -> str:
        """Return the model's address of a node, else its name."""
        if source is None:
            return node.site or node.name or node.operator
        if source.site or ":" in source.name:
            return source.site or source.name
        for index in _weight_ports(source):
            name = self._constant_behind(source.input(index))
            if name:
                fqn = self._fqn.get(name, name)
                if ".weight" in fqn:
                    return fqn.rpartition(".weight")[0]
        return source.name or node.name

    def why_float(self, source: OrtNode | None) -> str:
        """Say why a multiplying node is not INT8, from what stands around it in the file."""
        if source is None:
            return "it has no counterpart in the exported file"
        if not self._quantized:
            return "nothing is quantized in this file"
        coded = [self._reads_codes(name) for name in source.inputs[:2]]
        weighted = self.weight(source) is not None
        if not any(coded):
            what = "operator" if weighted else "product of two activations"
            return f"the plan keeps this {what} in float"
        if not all(coded):
            return (
                f"its {'weight' if weighted else 'second input'} is not quantized"
                if coded[0]
                else "its input is not quantized"
            )
        if PRODUCTS[source.operator] == "convolution" and not self._writes_codes(source):
            return "its output is not quantized, and QLinearConv writes codes only"
        if source.input(2) and not self._reads_codes(source.input(2)):
            return "its bias is not on an int32 grid"
        return "ONNX Runtime did not fuse it with the quantize and dequantize nodes around it"

    def _reads_codes(self, name: str) -> bool:
        before = self._producers.get(name)
        while before is not None and before.operator in MOVES:
            before = self._producers.get(before.input(0))
        return before is not None and before.operator == "DequantizeLinear"

    def _writes_codes(self, node: OrtNode) -> bool:
        readers = self._readers.get(node.outputs[0], [])
        while len(readers) == 1 and readers[0].operator in ("Relu", "Clip", *MOVES):
            readers = self._readers.get(readers[0].outputs[0], [])
        return bool(readers) and all(r.operator == "QuantizeLinear" for r in readers)

    def _constant_behind(self, name: str) -> str:
        """Return the initializer that a value is, or is made of by moves and dequantization."""
        while name and name not in self._graph.constants:
            before = self._producers.get(name)
            if before is None or before.operator not in (*MOVES, "DequantizeLinear", "Cast"):
                return ""
            name = before.input(0)
        return name


def _weight_ports(node: OrtNode) -> tuple[int, ...]:
    """Return the input indices that may hold a weight; a matrix product's may stand on the left."""
    kind = PRODUCTS.get(node.operator)
    if kind is None or kind == "attention":
        return ()
    if node.operator in WEIGHT_PORT:
        return (WEIGHT_PORT[node.operator],)
    return (1, 0) if kind == "matrix" else (1,)


def _precision(node: OrtNode, values: Arrays) -> str:
    """Return `int8` for an integer kernel or an operator on codes, else the type it writes."""
    if node.operator != "DequantizeLinear" and is_integer(node, values):
        return INT8
    dtypes = [values[o].dtype for o in node.outputs if o in values]
    return str(dtypes[0]) if dtypes else "float32"


def _macs(node: OrtNode, values: Arrays, weight: np.ndarray[Any, Any] | None) -> int:
    """Count the multiply-accumulates of a node from the shapes of one run, 0 where it has none.

    A layout-changed convolution pads its channels, so its count is of the exported weight.
    """
    kind = PRODUCTS.get(node.operator)
    output = values.get(node.outputs[0])
    if kind is None or output is None:
        return 0
    port = WEIGHT_PORT.get(node.operator, 1)
    left = values.get(node.input(0))
    right = values.get(node.input(port))
    if kind == "convolution":
        filters = weight if weight is not None and node.domain.endswith("nchwc") else right
        if filters is None:
            return 0
        channels_last = bool(node.attributes.get("channels_last", 0))
        places = output.shape[1:-1] if channels_last else output.shape[2:]
        return int(math.prod((output.shape[0], *places, *filters.shape)))
    if left is None or right is None:
        return 0
    if kind == "transposed convolution":
        return int(left.size * math.prod(right.shape[1:]))
    if kind == "attention":
        keys = values.get(node.input(1))
        return int((left.size + output.size) * (keys.shape[-2] if keys is not None else 0))
    if kind == "recurrent":
        again = values.get(node.input(2))
        return int(math.prod(left.shape[:2]) * (right.size + (0 if again is None else again.size)))
    transposed = bool(node.attributes.get("transA", 0)) and left.ndim > 1
    return int(output.size * (left.shape[-2] if transposed else left.shape[-1]))
