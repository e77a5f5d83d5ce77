"""ONNX with explicit quantize and dequantize nodes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact, FileEntry, TensorEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.errors import ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.onnx.checking import check_file
from edgeopt.exporters.onnx.naming import (
    SITE_KEY,
    name_codes,
    name_interface,
    name_nodes,
    name_weights,
    site_of_nodes,
)
from edgeopt.exporters.onnx.translation import OPSETS, translated
from edgeopt.exporters.writing import publish
from edgeopt.files import atomic_file
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.version import __version__, tool_versions

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxExporter(Exporter):
    """Write one method as an ONNX file.

    Weights keep their FQN as initializer name, nodes are named by their site's address, and the
    codes of a quantized edge by the edge's address. Source paths and stack traces are stripped,
    so the same program gives the same bytes.
    """

    format: ClassVar[str] = "onnx"
    own_interface: ClassVar[bool] = True
    suffix: ClassVar[str] = ".onnx"
    extra_precisions: ClassVar[tuple[str, ...]] = ("float32", "float16")
    platforms: ClassVar[tuple[str, ...]] = ("android", "ios")
    runtimes: ClassVar[tuple[tuple[str, str], ...]] = (("ONNX Runtime", "MIT"),)

    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        found = []
        opset = int(request.target.options.get("opset", 20))
        if opset not in OPSETS:
            found.append(
                f"opset {opset}: torch writes valid models from {OPSETS.start} to {OPSETS.stop - 1}"
            )
        if len(request.programs) != 1:
            found.append(f"{len(request.programs)} methods: an ONNX file holds one")
        for exported in request.programs.values():
            for node in exported.graph.nodes:
                if node.target in (QUANTIZE, DEQUANTIZE) and node.args[4] is not None:
                    found.append(f"{edges.require_site(node).address}: blocks of scales")
        return found

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            raise ExportError(f"onnx: {request.name}: {problems[0]}")
        from edgeopt.exporters.onnx.rewrites.own_constants import own_constants

        (method,) = request.programs
        exported = request.programs[method]
        model, written = translated(exported, int(request.target.options.get("opset", 20)))
        sites = site_of_nodes(model, written)
        name_nodes(model, sites)
        transforms, folded = _rewrite(model)
        transforms |= name_weights(model, exported)
        own_constants(model)
        if request.precision == "float16":
            from edgeopt.exporters.onnx.rewrites.to_float16 import to_float16

            notes = tuple(to_float16(model).notes)
        else:
            notes = ()
        name_interface(model, request)
        edge_map = name_codes(model, exported, folded)
        _strip(model, request)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / f"{request.name}.onnx"
            _save(model, path)
            artifact = Artifact(
                name=request.name,
                target=request.target.name,
                format=self.format,
                precision=request.precision,
                plan=request.plan,
                files=(FileEntry.of(path),),
                methods=(_method(method, model, request),),
                tensor_map=_tensor_map(model, exported, transforms),
                edge_map=edge_map,
                tools=tool_versions("torch", "onnx", "onnxscript", "onnx-ir"),
                options={"opset": int(request.target.options.get("opset", 20))},
                notes=notes,
            )
            check_file(path, artifact, exported)
            publish(folder, {path.name: path})
        return artifact


def _rewrite(model: ir.Model) -> tuple[dict[str, str], dict[str, ir.Value]]:
    """Run the rewrites that every runtime wants.

    Returns:
        Initializer -> transform, and site of a folded quantize -> the codes that stand for it.
    """
    from edgeopt.exporters.onnx.rewrites.fold_pad import fold_pad
    from edgeopt.exporters.onnx.rewrites.fold_weight_transpose import fold_weight_transpose
    from edgeopt.exporters.onnx.rewrites.gather_codes import gather_codes
    from edgeopt.exporters.onnx.rewrites.global_average_pool import global_average_pool

    gather_codes(model)
    transforms = fold_weight_transpose(model)
    folded = fold_pad(model)
    global_average_pool(model)
    return transforms, {
        node.metadata_props[SITE_KEY]: codes
        for node, codes in folded.items()
        if codes is not None and SITE_KEY in node.metadata_props
    }


def _strip(model: ir.Model, request: ExportRequest) -> None:
    """Drop what differs between machines, and write the build key."""
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name = "edgeopt"
    model.producer_version = __version__
    model.graph.name = request.name
    model.metadata_props["edgeopt.build_key"] = request.build_key
    model.metadata_props["edgeopt.precision"] = request.precision
    model.metadata_props["edgeopt.plan"] = request.plan


def _save(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    with atomic_file(path) as partial:
        ir.save(model, partial)


def _tensor_map(
    model: ir.Model, exported: ExportedProgram, transforms: dict[str, str]
) -> dict[str, TensorEntry]:
    import numpy as np

    initializers = model.graph.initializers
    found: dict[str, TensorEntry] = {}
    for fqn, value in program.tensors(exported).items():
        if fqn in initializers:
            found[fqn] = TensorEntry(fqn, transforms.get(fqn, "identity"))
            continue
        # torch.onnx merges equal initializers, and stores a float linear's weight transposed.
        wanted = value.detach().cpu().numpy()
        for name, other in initializers.items():
            if other.const_value is None or other.const_value.size != wanted.size:
                continue
            data = other.const_value.numpy()
            if data.shape == wanted.shape and np.array_equal(data, wanted):
                found[fqn] = TensorEntry(name, transforms.get(name, "identity"))
                break
            if wanted.ndim == 2 and data.shape == wanted.T.shape and np.array_equal(data, wanted.T):
                found[fqn] = TensorEntry(name, "transpose")
                break
    return found


def _method(method: str, model: ir.Model, request: ExportRequest) -> Method:
    roles = request.input_roles or ("tensor",) * len(model.graph.inputs)
    return Method(
        method,
        tuple(
            _io(value, role, f"args.{index}")
            for index, (value, role) in enumerate(zip(model.graph.inputs, roles, strict=False))
        ),
        tuple(_io(value, "tensor", f"{index}") for index, value in enumerate(model.graph.outputs)),
    )


def _io(value: ir.Value, role: str, path: str) -> IOSpec:
    assert value.name is not None
    assert value.dtype is not None
    shape = tuple(d if isinstance(d, int) else str(d) for d in value.shape or ())
    return IOSpec(value.name, str(value.dtype.numpy()), shape, role, path)
