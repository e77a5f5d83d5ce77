"""Compare the NPU's integers, value by value, with what integer arithmetic makes of its inputs.

The file is compiled once more with every quantized value among its outputs, and the simulator runs
it on real data. The same file is then cut at every quantized value and ONNX Runtime's integer
kernels (which the reference executor equals to the bit) compute each piece from the codes that the
simulator gave. So no error adds up from one operator to the next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import ExportError
from edgeopt.exporters.qnn.hexagon import Chip, Simulator, compile_context
from edgeopt.integer.arithmetic import ORT_MLAS
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.differences import Comparison
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner
from edgeopt.runtime_tests.qnn.runner import QnnRunner

ARITHMETIC = ORT_MLAS.name
_COMPUTED = "/computed"


def prove(artifact: str, model: Path, chip: Chip, inputs: Arrays) -> ProofResult:
    """Compare each quantized value of a file, as the NPU computes it, with integer arithmetic.

    Args:
        artifact: The artifact's name, for the result.
        model: The Q/DQ file.
        chip: The chip whose NPU is simulated.
        inputs: Inputs by name; real samples, since random ones hardly saturate.

    Raises:
        RuntimeUnavailable: If a runtime is missing.
        ExportError: If the compiler refuses the file with its values as outputs.
    """
    import onnx

    source = onnx.load(model)
    values = _quantized_values(source)
    given = _simulated(source, list(values), chip, inputs)
    cut = _cut(source, values)
    fed = {value.name: given[value.name] for value in cut.graph.input if value.name in given}
    fed |= {name: value for name, value in inputs.items() if name not in fed}
    session = OnnxRuntimeRunner().load_bytes(cut.SerializeToString(), str(model), LoadOptions())
    try:
        wanted = session.run("", {n: v for n, v in fed.items() if n in session.input_names})
    finally:
        session.close()
    compared = Comparison(ARITHMETIC)
    for name, operator in values.items():
        compared.add(name, operator, given[name], wanted[name + _COMPUTED])
    return compared.result(artifact, QnnRunner().version())


def not_compared(artifact: str, reason: str) -> ProofResult:
    """Return a proof of nothing, and why."""
    return ProofResult(artifact, QnnRunner().version(), ARITHMETIC, 0, 0, 0, False, 0.0, reason)


def _simulated(source: Any, names: list[str], chip: Chip, inputs: Arrays) -> Arrays:
    """Return quantized values as the NPU computes them.

    Each is one more output for the compiler to keep apart; where it runs out of memory, half of
    them at a time will do.
    """
    import onnx

    with tempfile.TemporaryDirectory() as work:
        probed = Path(work) / "probed.onnx"
        onnx.save(_with_outputs(source, names), probed)
        try:
            compiled = compile_context(probed, f"probed.{chip.version}.ctx.onnx", chip)
        except ExportError:
            if len(names) < 2:
                raise
            half = len(names) // 2
            parts = (names[:half], names[half:])
            return {k: v for p in parts for k, v in _simulated(source, p, chip, inputs).items()}
        with Simulator(compiled) as simulator:
            return simulator.run(inputs)


def _quantized_values(model: Any) -> dict[str, str]:
    """Map each value that is quantized, in graph order, to the operator that computes it."""
    producers = {out: node for node in model.graph.node for out in node.output}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            source = producers.get(node.input[0])
            found[node.output[0]] = source.op_type if source is not None else "QuantizeLinear"
    return found


def _with_outputs(source: Any, names: Iterable[str]) -> Any:
    """Return a copy that also gives these values."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(source)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(known[name] for name in names if name not in there)
    return model


def _cut(source: Any, values: Mapping[str, str]) -> Any:
    """Return a copy in which readers take each quantized value as an input of its own."""
    import onnx

    model = _with_outputs(source, values)
    shapes = {value.name: value for value in model.graph.output}
    del model.graph.output[:]
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name in values:
                node.output[index] = name + _COMPUTED
    for name in values:
        given = onnx.ValueInfoProto()
        given.CopyFrom(shapes[name])
        model.graph.input.append(given)
        computed = onnx.ValueInfoProto()
        computed.CopyFrom(shapes[name])
        computed.name = name + _COMPUTED
        model.graph.output.append(computed)
    return model
