"""Find a program's tensors and codes in the `.pte` written from it, and hold them against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.artifacts.artifact import TensorEntry
from edgeopt.errors import ExportError
from edgeopt.exporters.executorch import lowering
from edgeopt.exporters.executorch import tensors as stored
from edgeopt.exporters.executorch.file import ExecuTorchFile
from edgeopt.exporters.executorch.xnnpack_graph import XnnNode, XnnValue
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import where_is
from edgeopt.quant.reading import edge_of, read


class Located:
    """Finds the delegates' nodes by the model's addresses."""

    def __init__(self, file: ExecuTorchFile, sites: Mapping[str, Any]) -> None:
        self.file = file
        self._nodes: dict[tuple[str, str], list[tuple[int, XnnNode]]] = {}
        for name, method in file.methods.items():
            handles = sites[name]["handles"]
            for index, delegate in enumerate(method.delegates):
                for node in delegate.graph.nodes if delegate.graph is not None else ():
                    site = handles.get(str(node.handle))
                    if site is not None:
                        self._nodes.setdefault((name, site), []).append((index, node))

    def at(self, method: str, site: str) -> list[tuple[int, XnnNode]]:
        """Return (delegate, node) of each node that came from an address."""
        return self._nodes.get((method, site), [])

    def value(self, method: str, delegate: int, value: int) -> XnnValue:
        """Return a value of a delegate."""
        graph = self.file.methods[method].delegates[delegate].graph
        assert graph is not None
        return graph.values[value]


def map_tensors(located: Located, method: str, exported: ExportedProgram) -> dict[str, TensorEntry]:
    """Map FQNs by the operator that reads them; what no product reads, by its bytes."""
    found: dict[str, TensorEntry] = {}
    table = program.tensors(exported)
    for fqn, (site, reader) in lowering.weights(exported).items():
        for delegate, node in located.at(method, site):
            if len(node.inputs) < 2 or not located.value(method, delegate, node.inputs[1]).data_key:
                continue
            filter_ = located.value(method, delegate, node.inputs[1])
            transform = stored.transform_of(node, table[fqn].dim())
            found[fqn] = TensorEntry(filter_.data_key, transform)
            bias_fqn = _bias_of(reader, exported)
            if bias_fqn is not None and len(node.inputs) > 2:
                bias = located.value(method, delegate, node.inputs[2])
                kind = stored.CODES if bias.datatype in ("qint32", "qcint32") else stored.IDENTITY
                found[bias_fqn] = TensorEntry(bias.data_key, kind)
    by_bytes = {sha: name for name, sha in _digests(located.file)}
    for fqn, value in table.items():
        if fqn not in found and value.numel():
            data = value.detach().cpu().contiguous().numpy().tobytes()
            name = by_bytes.get(_digest(data))
            if name is not None:
                found[fqn] = TensorEntry(name, stored.IDENTITY)
    return found


def _bias_of(reader: Node, exported: ExportedProgram) -> str | None:
    bias = reader.args[2] if len(reader.args) > 2 else None
    names = program.tensor_names(exported)
    return names.get(bias.name) if isinstance(bias, Node) else None


def _digests(file: ExecuTorchFile) -> Iterator[tuple[str, bytes]]:
    for index, data in enumerate(file.constants):
        if len(data):
            yield f"{stored.CONSTANT}{index}", _digest(bytes(data))
    for key, data in file.named.items():
        yield key, _digest(bytes(data))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def map_edges(
    located: Located, method: str, exported: ExportedProgram, where: str
) -> dict[str, str]:
    """Find the value that carries each quantized edge's codes.

    Raises:
        ExportError: If an edge has none, or other parameters.
    """
    table, names = program.tensors(exported), program.tensor_names(exported)
    found: dict[str, str] = {}
    for node in exported.graph.nodes:
        edge = edge_of(node) if node.target is QUANTIZE else None
        if edge is None:
            continue
        params = read(node, table, names)
        assert params is not None
        wanted = float(params.params.scale), int(params.params.zero_point)
        place = _codes_of(located, method, node, wanted)
        if place is None:
            raise ExportError(f"{where}: {where_is(node)} lost its codes")
        found[str(edge)] = stored.place_of(method, *place)
    return found


def _codes_of(
    located: Located, method: str, quantize: Node, wanted: tuple[float, int]
) -> tuple[int, int] | None:
    """Return (delegate, value) of codes: the quantize's own, or what its producer writes.

    XNNPACK fuses activations into what is before them, and drops views that change nothing.
    """
    node: Any = quantize
    for _ in range(4):
        for delegate, source in reversed(located.at(method, where_is(node))):
            value = located.value(method, delegate, source.output)
            if value.is_int8 and (value.scale, value.zero_point) == wanted:
                return delegate, value.id
        node = node.args[0] if node.args else None
        while isinstance(node, Node) and node.target in (QUANTIZE, DEQUANTIZE):
            node = node.args[0]
        if isinstance(node, (list, tuple)):
            node = node[0]
        if not isinstance(node, Node):
            return None
    return None


def check_weights(
    located: Located,
    method: str,
    exported: ExportedProgram,
    tensor_map: Mapping[str, TensorEntry],
    where: str,
) -> None:
    """Hold the stored codes, scales and biases of every quantized product against the program.

    Raises:
        ExportError: If one runs in float, or has other numbers.
    """
    table, names = program.tensors(exported), program.tensor_names(exported)
    for fqn, (site, reader) in lowering.weights(exported).items():
        operand = reader.args[1]
        if not isinstance(operand, Node) or operand.target is not DEQUANTIZE:
            continue
        params = read(operand, table, names)
        assert params is not None
        graphs = [
            (delegate, node)
            for delegate, node in located.at(method, site)
            if len(node.inputs) > 1 and located.value(method, delegate, node.inputs[1]).is_int8
        ]
        if not graphs:
            raise ExportError(f"{where}: {site}: is quantized in the program and not in the file")
        delegate, node = graphs[-1]
        graph = located.file.methods[method].delegates[delegate].graph
        assert graph is not None
        if graph.precision(node) != "int8":
            raise ExportError(f"{where}: {site}: does not read and write codes in the file")
        filter_ = graph.values[node.inputs[1]]
        codes = stored.in_torch_layout(located.file.constant(filter_), tensor_map[fqn].transform)
        if not np.array_equal(codes, table[fqn].detach().cpu().numpy()):
            raise ExportError(f"{where}: {fqn} has other codes in the file")
        scales = params.params.scale.detach().cpu().numpy().reshape(-1)
        kept = (
            located.file.channel_scales(filter_)
            if filter_.scales_key
            else np.asarray([filter_.scale], np.float32)
        )
        if not np.array_equal(kept, scales):
            raise ExportError(f"{where}: {fqn} has other scales in the file")
        _check_bias(located, graph.values, node, reader, exported, scales, where)


def _check_bias(
    located: Located,
    values: Mapping[int, XnnValue],
    node: XnnNode,
    reader: Node,
    exported: ExportedProgram,
    scales: Any,
    where: str,
) -> None:
    fqn = _bias_of(reader, exported)
    if fqn is None:
        return
    bias = program.tensors(exported)[fqn].detach().cpu().double().numpy()
    grid = np.float64(np.float32(values[node.inputs[0]].scale) * scales)
    wanted = np.rint(bias / grid)
    if not np.array_equal(located.file.constant(values[node.inputs[2]]), wanted):
        raise ExportError(f"{where}: {fqn} has other codes in the file")
