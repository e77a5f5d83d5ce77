"""Check a written ONNX file against what was to be written."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.errors import ExportError
from edgeopt.ir.dialect import QUANTIZE
from edgeopt.quant.reading import edge_of


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
