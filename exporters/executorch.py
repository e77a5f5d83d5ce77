"""ExecuTorch files whose operators XNNPACK runs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

import edgeopt
from edgeopt import edges, program
from edgeopt.artifact import Artifact, FileEntry, IOSpec, Method, TensorEntry
from edgeopt.dialect import DEQUANTIZE, LOOKUP, QUANTIZE
from edgeopt.edges import operator_name
from edgeopt.errors import BundleError, ExportError
from edgeopt.exporters import executorch_lowering as lowering
from edgeopt.exporters import executorch_tensors as stored
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.executorch_file import ABOUT, ExecuTorchFile, XnnNode, XnnValue, parse
from edgeopt.files import sha256, to_json, write_text
from edgeopt.quant.reading import QuantNode, edge_of, quant_nodes, read

INSTALL = "pip install 'edgeopt[executorch]'"
BATCH = "batch"
DEFAULT_MAX_BATCH = 16
"""Memory is planned ahead, so a dynamic batch needs a largest size."""
SITES = ".sites.json"
MAX_DIMENSIONS = 6  # XNN_MAX_TENSOR_DIMS
_MOVES = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "slice",
        "cat",
        "unsqueeze",
        "max_pool2d",
        "pad",
        "constant_pad_nd",
        "clone",
        "contiguous",
    }
)
"""Operators whose XNNPACK kernels copy codes: input and output must share parameters."""


class ExecuTorchExporter(Exporter):
    """Write all methods as one `NAME.pte`, and `NAME.sites.json` beside it.

    Quantized regions become integer kernels of the XNNPACK delegate; what it has no kernel for
    (layer normalization) stays between delegates, named with the partitioner's reason. The second
    file says of each number that the runtime's profiler prints which operator of the model it is.
    The `.pte` also says it of itself: its constant method `edgeopt` gives names and build key.

    Options of the target: `max_batch`, `max_sequence`, ...: the largest size of each dynamic
    dimension, since memory is planned ahead.
    """

    format: ClassVar[str] = "executorch"
    needs: ClassVar[tuple[str, ...]] = ("executorch",)
    own_interface: ClassVar[bool] = True
    integer_pixels: ClassVar[bool] = False  # XNNPACK's delegate has no unsigned codes

    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        found = []
        if importlib.util.find_spec("executorch") is None:
            found.append(f"ExecuTorch is not installed: {INSTALL}")
        if request.target.backend != "xnnpack":
            found.append(f"backend {request.target.backend!r}: this exporter writes for xnnpack")
        if request.precision == "float16":
            found.append("float16: XNNPACK's delegate takes float32 and int8 here")
        for exported in request.programs.values():
            found += _unbounded(exported, request)
            found += _illegal_quantization(exported)
            found += _illegal_shapes(exported)
        return found

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ExportError(f"executorch: {request.name}: {problems[0]}{more}")
        programs = {
            name: lowering.bounded(exported, _largest(exported, request))
            for name, exported in request.programs.items()
        }
        decomposed = {name: lowering.to_decomposed(p) for name, p in programs.items()}
        lowered = lowering.lower(decomposed, _about(request), ABOUT)
        path = folder / f"{request.name}.pte"
        file = parse(lowered.data, path.name)
        sites = {name: _sites(lowered, name) for name in programs}
        located = _Located(file, sites)
        methods = tuple(_method(name, p, request) for name, p in programs.items())
        _check_interface(file, methods, path.name)
        _refuse_leftovers(file, lowered, path.name)
        tensor_map: dict[str, TensorEntry] = {}
        edge_map: dict[str, str] = {}
        for name, exported in programs.items():
            tensor_map |= _tensor_map(located, name, exported)
            edge_map |= _edge_map(located, name, exported, path.name)
            _check_weights(located, name, exported, tensor_map, path.name)
        beside = folder / f"{request.name}{SITES}"
        _write(path, lowered.data)
        write_text(beside, to_json({"schema": 1, "methods": sites}))
        return Artifact(
            name=request.name,
            target=request.target.name,
            format=self.format,
            precision=request.precision,
            plan=request.plan,
            files=(_entry(path), _entry(beside)),
            methods=methods,
            tensor_map=tensor_map,
            edge_map=edge_map,
            tools=tool_versions(),
            options=dict(sorted({**request.target.options, **_bounds(file, methods)}.items())),
            notes=tuple(_notes(file, methods, request)),
        )


def tool_versions() -> dict[str, str]:
    """Return the versions of what writes ExecuTorch files."""
    import importlib.metadata as metadata

    names = ("torch", "executorch")
    return {"edgeopt": edgeopt.__version__} | {name: metadata.version(name) for name in names}


def _symbols(exported: ExportedProgram, request: ExportRequest) -> dict[str, str]:
    """Return symbol -> the user's name of each dynamic size of the inputs."""
    tensors = [v for v in lowering.inputs_of(exported) if isinstance(v, torch.Tensor)]
    named = request.dimensions or ({0: BATCH},) * len(tensors)
    found: dict[str, str] = {}
    for value, names in zip(tensors, named, strict=False):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                found.setdefault(str(size), names.get(axis, f"dimension_{axis}"))
    return found


def _largest(exported: ExportedProgram, request: ExportRequest) -> dict[str, int]:
    """Return symbol -> the largest size that memory is planned for."""
    options = request.target.options
    return {
        symbol: int(options.get(f"max_{name}", DEFAULT_MAX_BATCH))
        for symbol, name in _symbols(exported, request).items()
    }


def _unbounded(exported: ExportedProgram, request: ExportRequest) -> Iterator[str]:
    options = request.target.options
    for name in dict.fromkeys(_symbols(exported, request).values()):
        size = options.get(f"max_{name}")
        if size is None and name != BATCH:
            yield (
                f"dimension {name!r} is dynamic and memory is planned ahead; set the target's "
                f"option max_{name}"
            )
        elif size is not None and int(size) < 2:
            yield f"max_{name} {size}: a dynamic size is at most 2 or more"


def _where(node: Node) -> str:
    site = edges.site_of(node)
    return site.address if site is not None else node.name


def _illegal_quantization(exported: ExportedProgram) -> Iterator[str]:
    names = program.tensor_names(exported)
    for found in quant_nodes(exported):
        where, node = _where(found.node), found.node
        constant = isinstance(node.args[0], Node) and node.args[0].name in names
        if node.args[4] is not None:
            yield f"{where}: blocks of scales"
        elif found.codes_dtype != "int8":
            hint = "its biases stay float" if found.codes_dtype == "int32" else "re-plan for it"
            yield f"{where}: {found.codes_dtype} codes; XNNPACK takes int8, {hint}"
        elif constant and bool((found.params.zero_point != 0).any()):
            yield f"{where}: a weight with a zero point; XNNPACK takes symmetric weights"
        elif not constant and found.params.axis is not None:
            yield f"{where}: an activation with a scale for each channel"
    yield from (f"{_where(n)}: a table lookup" for n in exported.graph.nodes if n.target is LOOKUP)
    yield from _illegal_moves(exported)


def _illegal_moves(exported: ExportedProgram) -> Iterator[str]:
    """Name operators that copy codes from one grid to another: such a file does not load."""
    table, names = program.tensors(exported), program.tensor_names(exported)

    def grid(found: QuantNode) -> tuple[float, int]:
        return float(found.params.scale), int(found.params.zero_point)

    for node in exported.graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _MOVES:
            continue
        around = [read(n, table, names) for n in (*node.all_input_nodes, *node.users)]
        if not all(around) or not all(f is not None and f.params.axis is None for f in around):
            continue
        grids = {grid(f) for f in around if f is not None}
        if len(grids) > 1:
            yield (
                f"{_where(node)}: moves codes between {len(grids)} grids; XNNPACK copies them, "
                "so input and output share scale and zero point"
            )


def _illegal_shapes(exported: ExportedProgram) -> Iterator[str]:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            yield f"{_where(node)}: complex numbers"
        elif isinstance(value, torch.Tensor) and value.dim() > MAX_DIMENSIONS:
            yield f"{_where(node)}: {value.dim()} dimensions; XNNPACK takes {MAX_DIMENSIONS}"


def _about(request: ExportRequest) -> dict[str, Any]:
    return {
        "build_key": request.build_key,
        "edgeopt": edgeopt.__version__,
        "inputs": {name: list(request.inputs_of(name)) for name in request.programs},
        "outputs": {name: list(request.outputs_of(name)) for name in request.programs},
        "plan": request.plan,
        "precision": request.precision,
    }


def _sites(lowered: lowering.Lowered, method: str) -> dict[str, Any]:
    """Return what the file beside the `.pte` says of a method."""
    nodes = lowered.nodes.get(method, ())
    reasons: dict[str, str] = {}
    for node in nodes:
        if not node.delegated and node.site and node.reason:
            reasons.setdefault(node.site, node.reason)
    return {
        "handles": {str(n.handle): n.site for n in nodes if n.site and n.handle >= 0},
        "kernels": [[name, site] for name, site in lowered.kernels[method]],
        "reasons": dict(sorted(reasons.items())),
    }


class _Located:
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


def _method(name: str, exported: ExportedProgram, request: ExportRequest) -> Method:
    inputs = [v for v in lowering.inputs_of(exported) if isinstance(v, torch.Tensor)]
    output = next(n for n in exported.graph.nodes if n.op == "output")
    specs = exported.graph_signature.output_specs
    outputs = [
        node.meta["val"]
        for spec, node in zip(specs, output.args[0], strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, Node)
    ]
    symbols = _symbols(exported, request)
    roles = request.roles_of(name) or ("tensor",) * len(inputs)
    return Method(
        name,
        tuple(
            _io(n, value, role, f"args.{i}", symbols)
            for i, (n, value, role) in enumerate(
                zip(request.inputs_of(name), inputs, roles, strict=False)
            )
        ),
        tuple(
            _io(n, value, "tensor", f"{i}", symbols)
            for i, (n, value) in enumerate(zip(request.outputs_of(name), outputs, strict=False))
        ),
    )


def _io(name: str, value: torch.Tensor, role: str, path: str, symbols: Mapping[str, str]) -> IOSpec:
    known = re.compile(rf"\b({'|'.join(map(re.escape, symbols)) or '(?!)'})\b")
    shape = tuple(
        d if isinstance(d, int) else known.sub(lambda found: symbols[found[0]], str(d))
        for d in value.shape
    )
    return IOSpec(name, str(value.dtype).removeprefix("torch."), shape, role, path)


def _check_interface(file: ExecuTorchFile, methods: Sequence[Method], where: str) -> None:
    if set(file.methods) != {m.name for m in methods}:
        raise ExportError(f"{where}: holds the methods {', '.join(sorted(file.methods))}")
    for method in methods:
        written = file.methods[method.name]
        for kind, tensors, specs in (
            ("input", written.inputs, method.inputs),
            ("output", written.outputs, method.outputs),
        ):
            if len(tensors) != len(specs):
                raise ExportError(
                    f"{where}: {method.name} has {len(tensors)} {kind}s, not {len(specs)}"
                )
            for tensor, spec in zip(tensors, specs, strict=True):
                fits = len(tensor.shape) == len(spec.shape) and all(
                    not isinstance(b, int) or a == b
                    for a, b in zip(tensor.shape, spec.shape, strict=True)
                )
                if tensor.dtype != spec.dtype or not fits:
                    raise ExportError(
                        f"{where}: {kind} {spec.name} is {tensor.dtype} {tensor.shape}, "
                        f"not {spec.dtype} {spec.shape}"
                    )


def _refuse_leftovers(file: ExecuTorchFile, lowered: lowering.Lowered, where: str) -> None:
    """Refuse quantize and dequantize outside the delegates: such files gave zeros in silence."""
    for name, method in file.methods.items():
        for kernel in method.kernels:
            if not kernel.name.startswith("quantized_decomposed::"):
                continue
            site = next((s for k, s in lowered.kernels[name] if k == kernel.name), "")
            raise ExportError(
                f"{where}: {site or name}: {kernel.name} stands outside the delegates; keep the "
                "operator float (--keep-float), or re-plan for XNNPACK"
            )


def _tensor_map(
    located: _Located, method: str, exported: ExportedProgram
) -> dict[str, TensorEntry]:
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
    import hashlib

    return hashlib.sha256(data).digest()


def _edge_map(
    located: _Located, method: str, exported: ExportedProgram, where: str
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
            raise ExportError(f"{where}: {_where(node)} lost its codes")
        found[str(edge)] = stored.place_of(method, *place)
    return found


def _codes_of(
    located: _Located, method: str, quantize: Node, wanted: tuple[float, int]
) -> tuple[int, int] | None:
    """Return (delegate, value) of codes: the quantize's own, or what its producer writes.

    XNNPACK fuses activations into what is before them, and drops views that change nothing.
    """
    node: Any = quantize
    for _ in range(4):
        for delegate, source in reversed(located.at(method, _where(node))):
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


def _check_weights(
    located: _Located,
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
    located: _Located,
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


def _bounds(file: ExecuTorchFile, methods: Sequence[Method]) -> dict[str, int]:
    """Return `max_NAME` -> the largest size of each dynamic dimension that the file takes."""
    found: dict[str, int] = {}
    for method in methods:
        for tensor, spec in zip(file.methods[method.name].inputs, method.inputs, strict=True):
            for got, size in zip(tensor.shape, spec.shape, strict=True):
                if isinstance(size, str):
                    found[f"max_{size}"] = min(got, found.get(f"max_{size}", got))
    return found


def _notes(
    file: ExecuTorchFile, methods: Sequence[Method], request: ExportRequest
) -> Iterator[str]:
    for described in methods:
        name, method = described.name, file.methods[described.name]
        left = Counter(kernel.name.removeprefix("aten::") for kernel in method.kernels)
        words = ", ".join(f"{count} {kernel}" for kernel, count in sorted(left.items()))
        yield (
            f"{name}: {len(method.delegates)} delegates; outside: {words or 'nothing'}; planned "
            f"memory {sum(method.arenas)} bytes (XNNPACK's workspace not counted)"
        )
    for option, got in _bounds(file, methods).items():
        asked = int(request.target.options.get(option, DEFAULT_MAX_BATCH))
        # torch guards the choice of a convolution's kernel below a batch of 16
        less = f", not {asked}: the captured operators hold only below that" if got < asked else ""
        yield f"{option.removeprefix('max_')} is at most {got}{less} (option {option})"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as failure:
        partial.unlink(missing_ok=True)
        raise BundleError(f"{path}: cannot be written: {failure.strerror or failure}") from None


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.name, sha256(path), path.stat().st_size)
