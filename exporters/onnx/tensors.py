"""Read an ONNX file's tensors by the FQN that they had in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.artifacts.artifact import Artifact


class OnnxTensors:
    """The `FileTensors` of an ONNX artifact; contracts check themselves on it."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        import onnx_ir as ir

        self._artifact = artifact
        self._graph = ir.load(path).graph
        self._types = {
            value.name: value.dtype.name.lower()
            for value in (*self._graph.inputs, *(v for n in self._graph for v in n.outputs))
            if value.dtype is not None and value.name is not None
        }

    def tensor(self, fqn: str) -> np.ndarray[Any, Any] | None:
        """Return the stored values in torch's layout, or None."""
        entry = self._artifact.tensor_map.get(fqn)
        value = self._graph.initializers.get(entry.name) if entry is not None else None
        if entry is None or value is None or value.const_value is None:
            return None
        data = value.const_value.numpy()
        return np.transpose(data) if entry.transform == "transpose" else data

    def edge_dtype(self, edge: str) -> str | None:
        """Return the type of a quantized edge's codes, or None."""
        name = self._artifact.edge_map.get(edge)
        return self._types.get(name) if name is not None else None


def stored_tensors(path: Path) -> list[tuple[str, str, int]]:
    """Return (name, type, bytes) of each initializer of an ONNX file, in its order."""
    import onnx_ir as ir

    return [
        (name, value.const_value.dtype.name.lower(), int(value.const_value.nbytes))
        for name, value in ir.load(path).graph.initializers.items()
        if value.const_value is not None
    ]
