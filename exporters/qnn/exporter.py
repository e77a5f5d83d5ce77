"""Q/DQ ONNX for Qualcomm's NPU, with a context binary for each Hexagon version."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.errors import ExportError, RuntimeUnavailable
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.exporters.onnx.exporter import OnnxExporter
from edgeopt.exporters.qnn import hexagon
from edgeopt.exporters.writing import publish
from edgeopt.ir.dialect import QUANTIZE
from edgeopt.ir.edges import where_is
from edgeopt.quant.reading import quant_nodes
from edgeopt.version import tool_versions

CHIPS = "v73 v75 v79"
COMPILER = "onnxruntime-qnn"
OLDEST_WIDE_OPSET = 21


class QnnExporter(Exporter):
    """Write `NAME.onnx`, and for each chip `NAME.VERSION.ctx.onnx` with its binary.

    The ONNX file is the program, with explicit quantize and dequantize nodes: any version of the
    QNN execution provider compiles it on the device. A context file is what that gives, compiled
    here: it loads in milliseconds there. Where onnxruntime-qnn is missing the program is written
    all the same, and the artifact's notes say what is not compiled and how to install it. The NPU
    computes in float16 what is float in the file.

    Options of the target: `opset`; `hexagon` (`v73 v75 SM8750`: Hexagon versions or part numbers,
    the one that is judged first).
    """

    format: ClassVar[str] = "qnn"
    own_interface: ClassVar[bool] = True
    platforms: ClassVar[tuple[str, ...]] = ("android",)
    runtimes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("ONNX Runtime", "MIT"),
        (
            "Qualcomm AI Engine Direct (QNN) libraries",
            "proprietary: the terms of Qualcomm's SDK; not part of these files",
        ),
    )

    def compilers(self) -> Mapping[str, str]:
        return {COMPILER: tool_versions(COMPILER)[COMPILER]}

    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        found = list(OnnxExporter().unsupported(request))
        hexagon.parse_chips(_hexagon(request))
        if request.dynamic:
            found.append(
                f"dimension {request.dynamic[0]!r} is dynamic, and the NPU's graphs have fixed "
                "shapes; leave out --dynamic"
            )
        for exported in request.programs.values():
            found += _illegal(exported, int(request.target.options.get("opset", OLDEST_WIDE_OPSET)))
        return found

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        problems = self.unsupported(request)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ExportError(f"qnn: {request.name}: {problems[0]}{more}")
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            plain = OnnxExporter().export(request, work)
            artifact = dataclasses.replace(
                plain,
                format=self.format,
                options=dict(sorted({**request.target.options, **plain.options}.items())),
            )
            done = _compiled(artifact, work, _hexagon(request))
            files = publish(folder, {entry.path: work / entry.path for entry in done.files})
            return dataclasses.replace(done, files=files)


def _hexagon(request: ExportRequest) -> str:
    return str(request.target.options.get("hexagon", CHIPS))


def _illegal(exported: ExportedProgram, opset: int) -> Iterator[str]:
    for found in quant_nodes(exported):
        if found.node.target is not QUANTIZE:
            continue
        where = where_is(found.node)
        if found.codes_dtype not in ("uint8", "uint16", "int16"):
            yield (
                f"{where}: {found.codes_dtype} activations, which the NPU computes wrongly without "
                "a word; re-plan by the rules of qnn (unsigned, affine)"
            )
        elif found.codes_dtype != "uint8" and opset < OLDEST_WIDE_OPSET:
            yield f"{where}: {found.codes_dtype} codes need opset {OLDEST_WIDE_OPSET}, not {opset}"


def _compiled(artifact: Artifact, folder: Path, chips: str) -> Artifact:
    """Compile the model file for each chip; return the artifact with what was written."""
    entries, notes, tools = list(artifact.files), list(artifact.notes), dict(artifact.tools)
    model = folder / artifact.model_file.path
    for chip in hexagon.parse_chips(chips):
        try:
            done = hexagon.compile_context(model, f"{artifact.name}.{chip.version}.ctx.onnx", chip)
        except RuntimeUnavailable as reason:
            notes.append(f"not compiled for the NPU: {reason}")
            break
        entries += [FileEntry.of(path) for path in (done.context, *done.binaries)]
        tools |= tool_versions(*hexagon.DISTRIBUTIONS) | {"qnn-sdk": done.sdk}
        notes += _left(done)
    return dataclasses.replace(
        artifact, files=tuple(entries), notes=tuple(dict.fromkeys(notes)), tools=tools
    )


def _left(done: hexagon.Compiled) -> list[str]:
    """Say what does not run on the NPU."""
    if not done.left:
        return []
    named = ", ".join(list(done.left)[:3])
    more = f" and {len(done.left) - 3} more" if len(done.left) > 3 else ""
    return [
        f"{done.chip.version}: {done.partitions} partitions; {named}{more} run on the CPU between "
        "them"
    ]
