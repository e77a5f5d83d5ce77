"""ExecuTorch files whose operators XNNPACK runs."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from edgeopt.artifacts.artifact import Artifact, TensorEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.errors import ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.executorch import lowering
from edgeopt.exporters.executorch.file import ABOUT, ExecuTorchFile, parse
from edgeopt.exporters.executorch.legal import illegal_quantization, illegal_shapes
from edgeopt.exporters.executorch.mapping import Located, check_weights, map_edges, map_tensors
from edgeopt.exporters.writing import publish
from edgeopt.files import to_json
from edgeopt.version import __version__, tool_versions

INSTALL = "pip install 'edgeopt[executorch]'"
BATCH = "batch"
DEFAULT_MAX_BATCH = 16
"""Memory is planned ahead, so a dynamic batch needs a largest size."""
SITES = ".sites.json"


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
    own_interface: ClassVar[bool] = True
    integer_pixels: ClassVar[bool] = False  # XNNPACK's delegate has no unsigned codes
    suffix: ClassVar[str] = ".pte"
    platforms: ClassVar[tuple[str, ...]] = ("android", "ios")
    runtimes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("ExecuTorch", "BSD-3-Clause"),
        ("XNNPACK", "BSD-3-Clause"),
    )

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
            found += illegal_quantization(exported)
            found += illegal_shapes(exported)
        return found

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ExportError(f"executorch: {request.name}: {problems[0]}{more}")
        programs = {
            method: lowering.bounded(exported, _largest(exported, request))
            for method, exported in request.programs.items()
        }
        decomposed = {method: lowering.to_decomposed(p) for method, p in programs.items()}
        lowered = lowering.lower(decomposed, _about(request), ABOUT)
        name = f"{request.name}.pte"
        file = parse(lowered.data, name)
        sites = {method: _sites(lowered, method) for method in programs}
        located = Located(file, sites)
        methods = tuple(_method(method, p, request) for method, p in programs.items())
        _check_interface(file, methods, name)
        _refuse_leftovers(file, lowered, name)
        tensor_map: dict[str, TensorEntry] = {}
        edge_map: dict[str, str] = {}
        for method, exported in programs.items():
            tensor_map |= map_tensors(located, method, exported)
            edge_map |= map_edges(located, method, exported, name)
            check_weights(located, method, exported, tensor_map, name)
        beside = to_json({"schema": 1, "methods": sites})
        files = publish(folder, {name: lowered.data, f"{request.name}{SITES}": beside})
        return Artifact(
            name=request.name,
            target=request.target.name,
            format=self.format,
            precision=request.precision,
            plan=request.plan,
            files=files,
            methods=methods,
            tensor_map=tensor_map,
            edge_map=edge_map,
            tools=tool_versions("torch", "executorch"),
            options=dict(sorted({**request.target.options, **_bounds(file, methods)}.items())),
            notes=tuple(_notes(file, methods, request)),
        )


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


def _about(request: ExportRequest) -> dict[str, Any]:
    return {
        "build_key": request.build_key,
        "edgeopt": __version__,
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
