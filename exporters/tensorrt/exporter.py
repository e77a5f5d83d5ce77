"""TensorRT: an ONNX file in explicit quantization, a build description and an on-device script."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar

import torch
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.errors import ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.onnx.checking import check_file
from edgeopt.exporters.onnx.exporter import OnnxExporter
from edgeopt.exporters.tensorrt import operators as table
from edgeopt.exporters.tensorrt.engine import EngineDescription, describe_engine, parse_profile
from edgeopt.exporters.writing import publish
from edgeopt.files import to_json
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.ir.edges import where_is
from edgeopt.quant.reading import quant_nodes

SCRIPT = "build_engine.py"


class TensorRTExporter(Exporter):
    """Write `NAME.onnx`, `NAME.engine.json` and `build_engine.py`.

    The file is strongly typed and carries its precision: symmetric int8 quantize and dequantize
    nodes with zero point 0, everything else in the target's float type, inputs and outputs in
    float32. TensorRT 10 and 11 build the same engine from it without a precision flag.

    Options of the target: `opset`; `sparse_weights` (let the builder choose 2:4 kernels);
    `optimization_profile` (`batch=1:4:8, tokens=16:64:128`, minimum, optimum and maximum of each
    dynamic dimension); `golden_tolerance` (largest error allowed on the device, as a share of the
    largest golden output).
    """

    format: ClassVar[str] = "tensorrt"
    device_script: ClassVar[str] = SCRIPT
    platforms: ClassVar[tuple[str, ...]] = ("jetson",)
    runtimes: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            "TensorRT",
            "proprietary: NVIDIA's software licence; comes with JetPack, not part of these files",
        ),
    )

    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        found = list(OnnxExporter().unsupported(request))
        target = request.target
        opset = int(target.options.get("opset", 20))
        newest = table.newest_opset(table.parse_version(target.minimum_runtime))
        if not table.OLDEST_OPSET <= opset <= newest:
            found.append(
                f"opset {opset}: TensorRT {target.minimum_runtime or '10.0'} reads "
                f"{table.OLDEST_OPSET} to {newest}"
            )
        if target.float_type == "float16" and opset < table.OLDEST_FLOAT16_OPSET:
            found.append(
                f"opset {opset}: float16 scales need {table.OLDEST_FLOAT16_OPSET} or newer"
            )
        for exported in request.programs.values():
            found += _illegal_quantization(exported)
        profile = parse_profile(str(target.options.get("optimization_profile", "")))
        found += [
            f"dimension {name!r} is dynamic and has no optimization profile; set "
            f'optimization_profile = "{name}=MIN:OPT:MAX"'
            for name in request.dynamic
            if name not in profile
        ]
        return found

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ExportError(f"tensorrt: {request.name}: {problems[0]}{more}")
        with tempfile.TemporaryDirectory() as work:
            plain = OnnxExporter().export(request, Path(work))
            path = Path(work) / plain.model_file.path
            notes = _rewrite(path, request)
            artifact = dataclasses.replace(
                plain,
                format=self.format,
                files=(FileEntry.of(path),),
                notes=(*plain.notes, *notes),
                options=dict(sorted(request.target.options.items())),
            )
            exported = request.programs[artifact.methods[0].name]
            check_file(path, artifact, exported)
            description = describe_engine(artifact, request)
            _check_written(path, description, artifact, exported)
            about = f"{artifact.name}.engine.json"
            files = publish(
                folder, {path.name: path, about: to_json(description), SCRIPT: script_text()}
            )
            return dataclasses.replace(artifact, files=files)


def _illegal_quantization(exported: ExportedProgram) -> Iterator[str]:
    for found in quant_nodes(exported):
        where = where_is(found.node)
        if found.codes_dtype != "int8":
            advice = "; biases stay float" if found.codes_dtype == "int32" else ""
            yield f"{where}: {found.codes_dtype} codes; TensorRT takes int8{advice}"
        elif bool((found.params.zero_point != 0).any()):
            yield f"{where}: zero point is not 0; re-plan for TensorRT (symmetric)"
        scale = found.params.scale
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            yield f"{where}: a scale is not positive and finite"


def _rewrite(path: Path, request: ExportRequest) -> tuple[str, ...]:
    """Rewrite the ONNX file in place for TensorRT; return what a user should know."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    from edgeopt.exporters.onnx.rewrites.split_heads import split_heads
    from edgeopt.exporters.onnx.rewrites.to_float16 import to_float16

    model = ir.load(path)
    notes: list[str] = []
    if split := split_heads(model):
        notes.append(f"{len(split)} packed projections are split along an axis of their own")
    if request.precision != "float32" and request.target.float_type == "float16":
        notes += to_float16(model).notes
    common.RemoveUnusedNodesPass()(model)
    rewritten = path.with_suffix(".rewritten")  # tensors are still read from the other file
    ir.save(model, rewritten)
    os.replace(rewritten, path)
    return tuple(notes)


def _check_written(
    path: Path, engine: EngineDescription, artifact: Artifact, exported: ExportedProgram
) -> None:
    """Read the file again: operators, signature, and that what was quantized still is."""
    import onnx

    from edgeopt.exporters.onnx.macs import multiplications

    written = onnx.load(path)
    version = table.parse_version(engine.minimum_tensorrt)
    for node in written.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(f"{path.name}: {node.name}: TensorRT has no {node.domain} operators")
        if not table.takes_operator(node.op_type, version):
            raise ExportError(
                f"{path.name}: {node.name}: TensorRT {engine.minimum_tensorrt} has no "
                f"{node.op_type}"
            )
    method = artifact.methods[0]
    outputs = [value.name for value in written.graph.output]
    if outputs != [spec.name for spec in method.outputs]:
        raise ExportError(f"{path.name}: outputs {outputs} are not those of the program")
    for value, spec in zip(
        (*written.graph.input, *written.graph.output), (*method.inputs, *method.outputs),
        strict=True,
    ):  # fmt: skip
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if str(dtype) != spec.dtype:
            raise ExportError(f"{path.name}: {value.name} is {dtype}, not {spec.dtype}")
    sizes = {profile.name: profile.optimum for profile in engine.profiles}
    quantized = {p.weight for p in multiplications(path, sizes) if p.quantized and p.weight}
    for fqn in _quantized_weights(exported):
        if fqn in artifact.tensor_map and artifact.tensor_map[fqn].name not in quantized:
            raise ExportError(f"{path.name}: {fqn} is quantized in the program and not in the file")


def _quantized_weights(exported: ExportedProgram) -> Iterator[str]:
    """Yield the FQN of each weight that the program multiplies with codes."""
    names = program.tensor_names(exported)
    for node in exported.graph.nodes:
        operands = node.args[:2]
        if node.target is DEQUANTIZE or len(operands) < 2:
            continue
        if not all(isinstance(o, torch.fx.Node) and o.target is DEQUANTIZE for o in operands):
            continue
        codes = operands[1].args[0]
        if codes.name in names:
            yield names[codes.name]


def script_text() -> str:
    """Return the on-device script as it ships."""
    place = resources.files("edgeopt.exporters.tensorrt.on_device").joinpath(SCRIPT)
    return place.read_text(encoding="utf-8")
