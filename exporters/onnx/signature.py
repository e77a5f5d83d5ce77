"""The inputs and outputs of an ONNX file, read from the file alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.errors import BundleError


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a file takes, gives and needs beside it.

    Attributes:
        method: Its one entry point.
        external: Names of the files that hold weights, relative to its folder, sorted.
    """

    method: Method
    external: tuple[str, ...]


def read_signature(path: Path, method: str = "forward") -> Signature:
    """Read a file's inputs and outputs, without its weights.

    Args:
        path: The ONNX file.
        method: What its one entry point is called.

    Raises:
        BundleError: If the file cannot be read, or an input is no tensor.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as failure:
        raise BundleError(f"{path}: cannot be read: {failure.strerror or failure}") from None
    except Exception:  # protobuf's error has no base of its own
        raise BundleError(f"{path}: is no ONNX file") from None
    stored = {tensor.name for tensor in graph.initializer}
    external = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return Signature(
        Method(
            method,
            tuple(_spec(value, path) for value in graph.input if value.name not in stored),
            tuple(_spec(value, path) for value in graph.output),
        ),
        tuple(sorted(external)),
    )


def _spec(value: Any, path: Path) -> IOSpec:
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type:
        raise BundleError(f"{path}: {value.name} is no tensor of a known type")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    return IOSpec(value.name, str(dtype), tuple(shape))
