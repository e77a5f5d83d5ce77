"""ONNX with explicit quantize and dequantize nodes."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.export import ExportedProgram
from torch.fx import Node

import edgeopt
from edgeopt.artifacts.artifact import Artifact, FileEntry, IOSpec, Method, TensorEntry
from edgeopt.errors import BundleError, ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.files import sha256
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.quant.reading import edge_of

if TYPE_CHECKING:
    import onnx_ir as ir

OPSETS = range(18, 26)
"""torch 2.13 writes invalid models in silence above opset 25."""

SITE_KEY = "edgeopt.site"
"""Node metadata: the address of the site that a node came from."""


class OnnxExporter(Exporter):
    """Write one method as an ONNX file.

    Weights keep their FQN as initializer name, nodes are named by their site's address, and the
    codes of a quantized edge by the edge's address. Source paths and stack traces are stripped,
    so the same program gives the same bytes.
    """

    format: ClassVar[str] = "onnx"
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnx_ir")
    own_interface: ClassVar[bool] = True

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
        model, written = _translated(exported, int(request.target.options.get("opset", 20)))
        sites = _site_of_nodes(model, written)
        _name_nodes(model, sites)
        transforms, folded = _rewrite(model)
        transforms |= _name_weights(model, exported)
        own_constants(model)
        if request.precision == "float16":
            from edgeopt.exporters.onnx.rewrites.to_float16 import to_float16

            notes = tuple(to_float16(model).notes)
        else:
            notes = ()
        _name_interface(model, request)
        edge_map = _name_codes(model, exported, folded)
        _strip(model, request)
        path = folder / f"{request.name}.onnx"
        _save(model, path)
        tensor_map = _tensor_map(model, exported, transforms)
        artifact = Artifact(
            name=request.name,
            target=request.target.name,
            format=self.format,
            precision=request.precision,
            plan=request.plan,
            files=(FileEntry(path.name, sha256(path), path.stat().st_size),),
            methods=(_method(method, model, request),),
            tensor_map=tensor_map,
            edge_map=edge_map,
            tools=tool_versions(),
            options={"opset": int(request.target.options.get("opset", 20))},
            notes=notes,
        )
        check_file(path, artifact, exported)
        return artifact


def tool_versions() -> dict[str, str]:
    """Return the versions of what writes ONNX files."""
    import importlib.metadata as metadata

    names = ("torch", "onnx", "onnxscript", "onnx-ir")
    return {"edgeopt": edgeopt.__version__} | {name: metadata.version(name) for name in names}


_TRANSLATED: weakref.WeakKeyDictionary[
    ExportedProgram, dict[int, tuple[bytes, ExportedProgram]]
] = weakref.WeakKeyDictionary()
"""Program -> opset -> what torch.onnx made of it, which takes seconds: a float program is
written once for each precision and target."""


def _translated(exported: ExportedProgram, opset: int) -> tuple[ir.Model, ExportedProgram]:
    """Return a model of its own, and the program that torch.onnx made it from."""
    import onnx
    import onnx_ir as ir

    known = _TRANSLATED.setdefault(exported, {})
    if opset not in known:
        model, decomposed = _to_onnx(exported, opset)
        # bytes: the tensors of a model made from a proto are the proto's own, names included
        known[opset] = ir.to_proto(model).SerializeToString(), decomposed
    data, decomposed = known[opset]
    return ir.from_proto(onnx.ModelProto.FromString(data)), decomposed


def _to_onnx(exported: ExportedProgram, opset: int) -> tuple[ir.Model, ExportedProgram]:
    """Return the model, and the program that torch.onnx made it from: it decomposes first."""
    import onnxscript

    # The functions below are traced by onnxscript, which wants the opset as a plain name.
    op = getattr(onnxscript, f"opset{opset}")

    def quantize(
        x: Any,
        scale: Any,
        zero_point: Any,
        axis: int | None = None,
        block_shape: Any = None,
        codes_dtype: str = "int8",
        qmin: int = 0,
        qmax: int = 0,
    ) -> Any:
        if axis is None:
            return op.QuantizeLinear(x, scale, zero_point)
        return op.QuantizeLinear(x, scale, zero_point, axis=axis)

    def dequantize(
        codes: Any,
        scale: Any,
        zero_point: Any,
        axis: int | None = None,
        block_shape: Any = None,
        codes_dtype: str = "int8",
        out_dtype: int = 1,
    ) -> Any:
        if axis is None:
            return op.DequantizeLinear(codes, scale, zero_point)
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    # torch.onnx optimizes with onnxscript, which tells of every constant that it cannot fold
    chatter = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in chatter]
    for logger in chatter:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            result = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                custom_translation_table={QUANTIZE: quantize, DEQUANTIZE: dequantize},
            )
    except Exception as failure:  # torch.onnx raises many unrelated types
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        raise ExportError(
            f"onnx: torch.onnx cannot write the program: {lines[0] if lines else 'no message'}"
        ) from failure
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)
    assert result is not None
    assert result.exported_program is not None
    return result.model, result.exported_program


def _site_of_nodes(model: ir.Model, exported: ExportedProgram) -> dict[ir.Node, str]:
    """Map ONNX nodes to the addresses of the operators that they came from.

    torch.onnx records the text of a graph node. Only in the program that it decomposed itself does
    that name stand for the same node.
    """
    known = {node.name: node for node in exported.graph.nodes if node.op == "call_function"}
    found: dict[ir.Node, str] = {}
    for node in model.graph:
        text = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
        match = re.match(r"%(\w+) .*?target=([\w.]+)", text)
        source = known.get(match.group(1)) if match else None
        if (
            match is None
            or source is None
            or str(source.target)
            not in (
                match.group(2),
                match.group(2).removeprefix("torch.ops."),
            )
        ):
            continue
        site = edges.site_of(source)
        if site is not None:
            found[node] = site.address
    return found


def _name_nodes(model: ir.Model, sites: dict[ir.Node, str]) -> None:
    seen: Counter[str] = Counter()
    for node in model.graph:
        site = sites.get(node)
        base = f"{site}/{node.op_type}" if site else f"{node.op_type}"
        node.name = base if not seen[base] else f"{base}_{seen[base]}"
        seen[base] += 1
        node.metadata_props.clear()
        if site:
            node.metadata_props[SITE_KEY] = site


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


def _name_weights(model: ir.Model, exported: ExportedProgram) -> dict[str, str]:
    """Give weights that torch.onnx stored transposed, under a number, their FQN again.

    Returns:
        Initializer -> `transpose`, for those that were found.
    """
    import numpy as np

    initializers, table = model.graph.initializers, program.tensors(exported)
    numbered = [
        value
        for name, value in initializers.items()
        if name not in table and value.const_value is not None and len(value.const_value.shape) == 2
    ]
    found: dict[str, str] = {}
    for fqn, tensor in table.items():
        if fqn in initializers or tensor.dim() != 2:
            continue
        wanted = tensor.detach().cpu().numpy().T
        for value in numbered:
            assert value.const_value is not None
            if tuple(value.const_value.shape) != wanted.shape:
                continue
            if np.array_equal(value.const_value.numpy(), wanted):
                value.name = fqn
                numbered.remove(value)
                found[fqn] = "transpose"
                break
    return found


def _name_interface(model: ir.Model, request: ExportRequest) -> None:
    named = [
        *zip(model.graph.inputs, request.input_names, strict=False),
        *zip(model.graph.outputs, request.output_names, strict=False),
    ]
    wanted = {name for _, name in named}
    for node in model.graph:  # a value in between may have the name that the user wants
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}_inside"
    for value, name in named:
        value.name = name
    _name_dimensions(model, request)


def _name_dimensions(model: ir.Model, request: ExportRequest) -> None:
    """Call the symbols of dynamic dimensions as the user does, wherever they stand."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    batch = ({0: "batch"},) * len(model.graph.inputs)
    for value, wanted in zip(model.graph.inputs, request.dimensions or batch, strict=False):
        for axis, name in wanted.items():
            size = value.shape[axis] if value.shape is not None else 0
            if not isinstance(size, int):
                names.setdefault(str(size.value), name)
    if not names:
        return
    symbols = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                size
                if isinstance(size, int)
                else symbols.sub(lambda found: names[found[0]], str(size.value))
                for size in value.shape
            ]
        )


def _name_codes(
    model: ir.Model, exported: ExportedProgram, folded: dict[str, ir.Value]
) -> dict[str, str]:
    """Name the codes of each quantized edge by its address; return edge id -> name."""
    edge_at: dict[str, tuple[str, str]] = {}
    for source, at in edges.sites(exported.graph):
        edge = edge_of(source) if source.target is QUANTIZE else None
        if edge is not None:
            operator = at.op.rpartition("/")[0]
            edge_at[at.address] = (str(edge), f"{at.fqn}:{operator}#{at.index}.{edge.port}")
    found: dict[str, str] = {}
    results = set(model.graph.outputs)
    for node in model.graph:
        known = edge_at.get(node.metadata_props.get(SITE_KEY, ""))
        if node.op_type == "QuantizeLinear" and known is not None:
            edge_id, name = known
            if node.outputs[0] in results:
                name = str(node.outputs[0].name)  # the user's own
            node.outputs[0].name = name
            found[edge_id] = name
    for site, codes in folded.items():
        if site in edge_at and codes.name is not None:
            found[edge_at[site][0]] = codes.name
    missing = {edge for edge, _ in edge_at.values()} - set(found)
    if missing:
        twins = _twins(exported)
        found |= {edge: found[twins[edge]] for edge in sorted(missing) if twins[edge] in found}
    return found


def _twins(exported: ExportedProgram) -> dict[str, str]:
    """Map each quantized edge to the first that carries the same codes.

    torch.onnx computes only once what a program computes twice from the same values.
    """
    table, names = program.tensors(exported), program.tensor_names(exported)
    numbers: dict[Any, int] = {}
    number_of: dict[Node, int] = {}
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for node in exported.graph.nodes:
        key: Any = node.name
        if node.name in names:
            value = table[names[node.name]].detach().cpu().contiguous()
            data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
            key = (str(value.dtype), tuple(value.shape), hashlib.sha256(data).digest())
        elif node.op == "call_function":
            arguments = torch.fx.map_arg((node.args, node.kwargs), lambda n: f"%{number_of[n]}")
            if edges.operator_name(node) == "transpose":  # of two axes in either order
                rank = node.meta["val"].dim()
                arguments = arguments[0][0], sorted(axis % rank for axis in node.args[1:])
            key = (str(node.target), repr(arguments))
        number_of[node] = numbers.setdefault(key, len(numbers))
        edge = edge_of(node) if node.target is QUANTIZE else None
        if edge is not None:
            found[str(edge)] = first.setdefault(number_of[node], str(edge))
    return found


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
    model.producer_version = edgeopt.__version__
    model.graph.name = request.name
    model.metadata_props["edgeopt.build_key"] = request.build_key
    model.metadata_props["edgeopt.precision"] = request.precision
    model.metadata_props["edgeopt.plan"] = request.plan


def _save(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    try:
        ir.save(model, path)
    except OSError as failure:
        raise BundleError(f"{path}: cannot be written: {failure.strerror or failure}") from None


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


def check_file(path: Path, artifact: Artifact, exported: ExportedProgram) -> None:
    """Read the written file again and check it.

    Raises:
        ExportError: If the ONNX checker refuses it, the signature differs, or a quantized
            operator lost its codes.
    """
    import onnx

    try:
        written = onnx.load(path)
        onnx.checker.check_model(written, full_check=True)
    except Exception as failure:  # the checker raises several unrelated types
        lines = str(failure).strip().splitlines()
        raise ExportError(f"{path.name}: the written file is not valid ONNX: {lines[0]}") from None
    method = artifact.methods[0]
    names = [value.name for value in written.graph.input]
    if names != [spec.name for spec in method.inputs]:
        raise ExportError(f"{path.name}: inputs {names} are not those of the program")
    missing = {
        str(edge)
        for node in exported.graph.nodes
        if node.target is QUANTIZE and (edge := edge_of(node)) is not None
    } - set(artifact.edge_map)
    produced = {name for node in written.graph.node for name in node.output}
    folded = {edge for edge, name in artifact.edge_map.items() if name not in produced}
    gone = sorted(missing | folded)
    if gone:
        raise ExportError(f"{path.name}: edges {', '.join(gone[:3])} lost their codes")
