"""Chains of linears and ReLUs as a file of numpy's."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact, TensorEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.errors import BundleError, ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.writing import publish
from edgeopt.ir import edges, program

KNOWN = ("linear", "relu")
HEAD = "head"


@dataclasses.dataclass(frozen=True)
class Chain:
    """What a file holds.

    Attributes:
        input: The input's name.
        output: The output's name.
        steps: Each operator with the names of its tensors.
        tensors: The tensors by name.
    """

    input: str
    output: str
    steps: list[list[str]]
    tensors: dict[str, np.ndarray[Any, Any]]


class NpzExporter(Exporter):
    """Write a chain of linears and ReLUs."""

    format: ClassVar[str] = "sample-npz"

    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        if len(request.programs) != 1:
            return [f"{len(request.programs)} methods: the format holds one"]
        if request.precision != "float32":
            return [f"{request.precision}: the format holds float32"]
        (exported,) = request.programs.values()
        if len(request.input_names) != 1 or len(request.output_names) != 1:
            return ["the format has one input and one output"]
        return [
            f"{edges.require_site(node).address}: the format has no {edges.operator_name(node)}"
            for node in exported.graph.nodes
            if node.op == "call_function" and edges.operator_name(node) not in KNOWN
        ]

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            raise ExportError(f"{self.format}: {request.name}: {problems[0]}")
        ((method, exported),) = request.programs.items()
        names = program.tensor_names(exported)
        steps = [
            [edges.operator_name(node), *(names[a.name] for a in node.args[1:])]
            for node in exported.graph.nodes
            if node.op == "call_function"
        ]
        tensors = {fqn: t.detach().numpy() for fqn, t in program.tensors(exported).items()}
        (given,), (made,) = request.input_names, request.output_names
        head = json.dumps({"input": given, "output": made, "steps": steps})
        name, data = f"{request.name}.npz", io.BytesIO()
        arrays: dict[str, Any] = {HEAD: np.array(head), **tensors}
        np.savez(data, **dict(sorted(arrays.items())))
        files = publish(folder, {name: data.getvalue()})
        if read(folder / name).steps != steps:
            raise ExportError(f"{name}: the written file is not what was meant")
        return Artifact(
            name=request.name,
            target=request.target.name,
            format=self.format,
            precision=request.precision,
            plan="",
            files=files,
            methods=(_method(method, exported, request),),
            tensor_map={fqn: TensorEntry(fqn) for fqn in tensors},
            tools={"numpy": np.__version__},
        )


def _method(name: str, exported: ExportedProgram, request: ExportRequest) -> Method:
    nodes = {node.name: node for node in exported.graph.nodes}
    (given,) = program.user_input_names(exported)
    (out,) = nodes["output"].args[0]
    taken, made = (tuple(node.meta["val"].shape) for node in (nodes[given], out))
    return Method(
        name,
        (IOSpec(request.input_names[0], "float32", taken),),
        (IOSpec(request.output_names[0], "float32", made),),
    )


def read(path: Path) -> Chain:
    """Return what a file holds.

    Raises:
        BundleError: If it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: file[name] for name in file.files}
        return Chain(**json.loads(str(tensors.pop(HEAD))), tensors=tensors)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as failure:
        raise BundleError(f"{path}: cannot be read: {failure}") from None
