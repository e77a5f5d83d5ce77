"""Read an ExecuTorch file's tensors by the FQN that they had in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.artifacts.artifact import Artifact
from edgeopt.exporters.executorch.file import ExecuTorchFile, read_file
from edgeopt.exporters.executorch.xnnpack_graph import XnnNode, XnnValue

Array = np.ndarray[Any, Any]

CONSTANT = "constant:"
"""Prefix of the names of tensors outside the delegates; inside, a tensor's name is its key."""
IDENTITY = "identity"
CODES = "codes"
"""The stored integers lie on the grid `s_x * s_w`; the model's bias is their product with it."""

_LAYOUTS: dict[str, tuple[int, ...]] = {
    # how stored axes become torch's
    "channels-last": (0, 3, 1, 2),
    "channels-last-depthwise": (3, 0, 1, 2),
}


def transform_of(node: XnnNode, rank: int) -> str:
    """Return how XNNPACK stores the filter of a product.

    Args:
        node: The product.
        rank: Of the weight in torch: 2 for a linear, 3 for a convolution over one dimension.
    """
    if node.operator == "FullyConnected":
        return IDENTITY
    depthwise = node.operator in ("DepthwiseConv2d", "ConvTranspose2d")
    layout = "channels-last-depthwise" if depthwise else "channels-last"
    return f"{layout}-1d" if rank == 3 else layout


def in_torch_layout(stored: Array, transform: str) -> Array:
    """Return a stored tensor with torch's axes."""
    layout = _LAYOUTS.get(transform.removesuffix("-1d"))
    if layout is None:
        return stored
    turned = np.transpose(stored, layout)
    return turned[..., 0] if transform.endswith("-1d") else turned


class ExecuTorchTensors:
    """The `FileTensors` of an ExecuTorch artifact; contracts check themselves on it."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        """Open a file.

        Raises:
            BundleError: If it cannot be read, or is damaged.
        """
        self._artifact = artifact
        self._file = read_file(path)
        self._values = values_by_key(self._file)

    def tensor(self, fqn: str) -> Array | None:
        """Return the stored values in torch's layout, or None."""
        entry = self._artifact.tensor_map.get(fqn)
        if entry is None:
            return None
        if entry.name.startswith(CONSTANT):
            index = int(entry.name.removeprefix(CONSTANT))
            return np.frombuffer(self._file.constants[index], np.float32)
        value = self._values.get(entry.name)
        return in_torch_layout(self._file.constant(value), entry.transform) if value else None

    def edge_dtype(self, edge: str) -> str | None:
        """Return the type of a quantized edge's codes, or None."""
        place = self._artifact.edge_map.get(edge)
        if place is None:
            return None
        for method in self._artifact.methods:
            names = [spec.name for spec in method.inputs]
            if place in names:  # the file takes the codes
                return self._file.methods[method.name].inputs[names.index(place)].dtype
        value = value_at(self._file, place)
        return "int8" if value is not None and value.is_int8 else None


def values_by_key(file: ExecuTorchFile) -> dict[str, XnnValue]:
    """Return key -> the first constant value that holds its bytes."""
    found: dict[str, XnnValue] = {}
    for method in file.methods.values():
        for delegate in method.delegates:
            for value in delegate.graph.values.values() if delegate.graph is not None else ():
                if value.data_key:
                    found.setdefault(value.data_key, value)
    return found


def place_of(method: str, delegate: int, value: int) -> str:
    """Return how an artifact's edge map names a value: `forward/3/17`."""
    return f"{method}/{delegate}/{value}"


def value_at(file: ExecuTorchFile, place: str) -> XnnValue | None:
    """Return the value that an edge map names, or None where the file has none."""
    method, delegate, value = place.rsplit("/", 2)
    found = file.methods.get(method)
    if found is None or int(delegate) >= len(found.delegates):
        return None
    graph = found.delegates[int(delegate)].graph
    return graph.values.get(int(value)) if graph is not None else None


def stored_tensors(path: Path) -> list[tuple[str, str, int]]:
    """Return (name, type, bytes) of each constant of a file, in its order."""
    file = read_file(path)
    types = {key: value.datatype for key, value in values_by_key(file).items()}
    inside = [(key, types.get(key, "float32"), len(data)) for key, data in file.named.items()]
    outside = [
        (f"{CONSTANT}{index}", "float32", len(data))
        for index, data in enumerate(file.constants)
        if len(data)
    ]
    return [(n, _plain(t), size) for n, t, size in (*inside, *outside)]


def _plain(datatype: str) -> str:
    return {
        "fp32": "float32",
        "qint8": "int8",
        "qcint8": "int8",
        "qint32": "int32",
        "qcint32": "int32",
    }.get(datatype, datatype)
