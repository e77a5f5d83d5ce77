"""Compile an ONNX file with TensorRT-RTX and say how it fuses and types each layer.

The builder needs no GPU. It shows that the file is legal, which kernels the operators fuse into
and with which types; it measures nothing. TensorRT on the device may choose other kernels.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import ExportError, RuntimeUnavailable
from edgeopt.exporters import child
from edgeopt.exporters.onnx.macs import Product, multiplications
from edgeopt.files import write_text
from edgeopt.results.structure import OperatorRow

PACKAGE = "tensorrt_rtx_bindings"
MODULE = "edgeopt.runtime_tests.tensorrt.rtx_compiler"  # started in a process of its own
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
_PRECISION = {"Int8": "int8", "Half": "float16", "Float": "float32", "BFloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class ShapeRange:
    """An optimization profile of one input: what the engine takes, and what it is tuned for."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the engine, as the builder lists it.

    Attributes:
        name: The builder's name.
        kind: `gemm`, `correlation` (a convolution), `kgen` (a generated kernel), ...
        inputs: Types of the tensors that it reads (`Int8`, `Half`, `Float`).
        constants: Types of its constants: weights, scales, biases.
        outputs: Types of what it writes.
        nodes: ONNX nodes behind it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """Whether the layer is a whole attention: both products and the softmax."""
        return "mha" in self.name


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What the compiler made of a file.

    Attributes:
        artifact: Which artifact.
        compiler: Name and version.
        compute_capability: The GPU generation compiled for.
        engine_bytes: Size of the engine.
        engine_sha256: Of the engine; the same file gives the same bytes.
        layers: In the order they run.
        operators: Each multiplying operator of the model, then the other layers.
        macs: Multiply-accumulates of one call.
        int8_macs: Share of them in layers that read only INT8, or None where there are none.
        warnings: What the builder warned of.
    """

    artifact: str
    compiler: str
    compute_capability: str
    engine_bytes: int
    engine_sha256: str
    layers: tuple[Layer, ...]
    operators: tuple[OperatorRow, ...]
    macs: int
    int8_macs: float | None
    warnings: tuple[str, ...] = ()

    @property
    def fused_attentions(self) -> int:
        """Number of attentions that became one kernel."""
        return sum(layer.fused_attention for layer in self.layers)

    def summary(self) -> dict[str, Any]:
        """Return what `BuildReport.compile` holds for the target."""
        return {
            "compiler": self.compiler,
            "compute_capability": self.compute_capability,
            "engine_bytes": self.engine_bytes,
            "layers": len(self.layers),
            "fused_attentions": self.fused_attentions,
            "macs": self.macs,
            "int8_macs": self.int8_macs,
            "measured": "no: compiled without a GPU; legality, fusion and types only",
            "warnings": list(self.warnings),
        }


def unavailable() -> str | None:
    """Return why nothing can be compiled here, in words a user can act on, or None."""
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "TensorRT-RTX is not installed: pip install --no-deps tensorrt-rtx-cu13-libs "
            "tensorrt-rtx-cu13-bindings"
        )
    return None


def compile_report(
    model_path: Path | str,
    compute_capability: str = "SM80",
    *,
    artifact: str = "",
    profiles: Mapping[str, ShapeRange] | None = None,
    timeout_s: float = 600.0,
) -> CompileReport:
    """Compile an ONNX file in a child process and read the builder's layer report.

    Args:
        model_path: The file.
        compute_capability: One of `CAPABILITIES`; A100 is SM80, and Orin (SM87) is nearest to it.
        artifact: The artifact's name for the rows.
        profiles: Input -> shapes; needed for inputs with dynamic dimensions.
        timeout_s: How long the compiler may take.

    Raises:
        RuntimeUnavailable: If the package is missing or cannot be loaded.
        ExportError: If the compiler refuses the file, crashes, or takes too long.
    """
    path = Path(model_path)
    if (reason := unavailable()) is not None:
        raise RuntimeUnavailable(reason)
    if compute_capability not in CAPABILITIES:
        raise ExportError(
            f"TensorRT-RTX compiles for {', '.join(CAPABILITIES)}, not {compute_capability}"
        )
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    answer = _compile(path, compute_capability, dict(profiles or {}), timeout_s)
    layers = parse_layers(answer["layers"])
    sizes = {name: shape.optimum for name, shape in (profiles or {}).items()}
    products = multiplications(path, sizes)
    where = f"{answer['compiler']} {compute_capability}"
    rows, int8 = _rows(layers, products, artifact or path.stem, where)
    macs = sum(product.macs for product in products)
    return CompileReport(
        artifact=artifact or path.stem,
        compiler=answer["compiler"],
        compute_capability=compute_capability,
        engine_bytes=answer["engine_bytes"],
        engine_sha256=answer["engine_sha256"],
        layers=layers,
        operators=rows,
        macs=macs,
        int8_macs=int8 / macs if macs else None,
        warnings=tuple(answer["warnings"]),
    )


def _compile(
    path: Path, capability: str, profiles: Mapping[str, ShapeRange], timeout_s: float
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        order = {
            "package": PACKAGE,
            "model": str(path.resolve()),
            "capability": capability,
            "profiles": {n: dataclasses.astuple(p) for n, p in sorted(profiles.items())},
            "answer": str(answer),
        }
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "edgeopt.runtime_tests.tensorrt.rtx_compiler",
                    json.dumps(order),
                ],
                env=child.environment(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"{path.name}: TensorRT-RTX did not finish in {timeout_s:g} s"
            ) from None
        if not answer.is_file():
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"{done.returncode}"
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"{path.name}: TensorRT-RTX ended with {how}: {last}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "unavailable" in found:
        raise RuntimeUnavailable(f"TensorRT-RTX cannot be loaded: {found['unavailable']}")
    if found["errors"] or not found["engine_bytes"]:
        raise ExportError(f"{path.name}: TensorRT-RTX refuses it: {refusal(found['errors'])}")
    return found


def refusal(errors: Sequence[str]) -> str:
    """Return the builder's reason in one line; the parser spreads it over several messages."""
    if not errors:
        return "no engine, and no reason given"
    node = next((m.group(1) for e in errors if (m := re.search(r"Node name: (.+)", e))), "")
    reason = next((e for e in errors if "Assertion failed" in e), errors[0])
    reason = " ".join(reason.rpartition("Assertion failed: ")[2].split())
    return f"{node}: {reason}" if node else reason


def parse_layers(text: str) -> tuple[Layer, ...]:
    """Read the builder's layer list, one line a layer."""
    layers = []
    for line in text.splitlines():
        head = re.match(r"(?:Layers:\s*)?Name: (.*?), LayerType: (\w+),", line)
        if head is None:
            continue
        nodes = re.findall(r"\[ONNX Layer: (.*?)\]", line)
        layers.append(
            Layer(
                name=head.group(1),
                kind=head.group(2),
                inputs=_types(line, "Inputs"),
                constants=_types(line, "Constants"),
                outputs=_types(line, "Outputs"),
                nodes=tuple(dict.fromkeys(nodes)),
            )
        )
    return tuple(layers)


def _types(line: str, section: str) -> tuple[str, ...]:
    """Return the types in `Section: [ {...}, {...} ]`; brackets nest."""
    start = line.find(f", {section}: [")
    if start < 0:
        return ()
    start = line.index("[", start)
    depth = 0
    for end in range(start, len(line)):
        depth += (line[end] == "[") - (line[end] == "]")
        if depth == 0:
            return tuple(re.findall(r"Datatype: (\w+)", line[start:end]))
    return ()


def _rows(
    layers: Sequence[Layer], products: Sequence[Product], artifact: str, where: str
) -> tuple[tuple[OperatorRow, ...], int]:
    """Return a row for each product and each other layer, and the INT8 multiplications.

    The rows are in the engine's order; a product that no layer names follows the one before it.
    """
    placed: list[tuple[int, OperatorRow]] = []
    position = {layer.name: index for index, layer in enumerate(layers)}
    int8, at = 0, -1
    taken: set[str] = set()
    for product in products:
        layer = _layer_of(product.node, layers)
        precision, reason = "unknown", "the compiler's report names no layer for it"
        if layer is not None:
            taken.add(layer.name)
            at = position[layer.name]
            precision, reason = _judge(layer, product)
        int8 += product.macs if precision == "int8" else 0
        row = OperatorRow(
            artifact=artifact,
            operator=f"{product.operator} ({layer.kind})" if layer else product.operator,
            site=product.site,
            precision=precision,
            where=where,
            macs=product.macs,
            reason=reason,
        )
        placed.append((at, row))
    for index, layer in enumerate(layers):
        if layer.name not in taken:
            placed.append((index, _other_row(layer, artifact, where)))
    placed.sort(key=lambda item: item[0])
    return tuple(row for _, row in placed), int8


def _layer_of(node: str, layers: Sequence[Layer]) -> Layer | None:
    """Return the layer that multiplies; generated kernels also list nodes they only finish."""
    found = [layer for layer in layers if node in layer.nodes and layer.inputs]
    for wanted in (
        [layer for layer in found if layer.kind != "kgen"],
        [layer for layer in found if layer.fused_attention],
        found,
    ):
        if wanted:
            return wanted[0]
    return None


def _judge(layer: Layer, product: Product) -> tuple[str, str]:
    """Return the precision that a product runs in, and why it is not INT8."""
    only_codes = set(layer.inputs) == {"Int8"}
    if product.weight and "Int8" in layer.constants:
        # A later input may be a float residual that the layer adds.
        int8 = only_codes or (layer.kind != "kgen" and layer.inputs[0] == "Int8")
    else:
        int8 = only_codes and len(layer.inputs) > 1
    if int8:
        return "int8", ""
    precision = _precision(layer.inputs)
    if product.quantized:
        return precision, (
            f"quantized in the file, but layer {layer.name} ({layer.kind}) reads "
            f"{', '.join(layer.inputs)}"
        )
    if layer.fused_attention:
        return precision, "a product of two activations, inside one fused attention kernel"
    if not product.weight:
        return precision, "a product of two activations that are not quantized"
    return precision, "not quantized in the file"


def _precision(types: Sequence[str]) -> str:
    for name in ("Float", "Half", "BFloat16", "Int8"):
        if name in types:
            return _PRECISION[name]
    return "integer"


def _other_row(layer: Layer, artifact: str, where: str) -> OperatorRow:
    return OperatorRow(
        artifact=artifact,
        operator=layer.kind,
        site=", ".join(layer.nodes[:4]) or layer.name,
        precision=_precision((*layer.inputs, *layer.outputs)),
        where=where,
        macs=0,
    )


def _child(order: Mapping[str, Any]) -> None:
    """Compile, and write the answer as JSON; runs in a process of its own."""
    answer = Path(order["answer"])
    try:
        trt = importlib.import_module(order["package"])
    except Exception as failure:  # a missing shared library raises several types
        write_text(answer, json.dumps({"unavailable": str(failure)}))
        return
    found = _build(trt, order)
    write_text(answer, json.dumps(found))


def _build(trt: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    import hashlib

    messages: list[tuple[Any, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append((severity, message))

    log = Log()
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    engine = None
    if parser.parse_from_file(order["model"]):
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, order["capability"]), 0)
        if order["profiles"]:
            profile = builder.create_optimization_profile()
            for name, shapes in order["profiles"].items():
                profile.set_shape(name, *(tuple(shape) for shape in shapes))
            config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
    severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
    warned = dict.fromkeys(m.strip() for s, m in messages if s == trt.ILogger.Severity.WARNING)
    data = bytes(memoryview(engine)) if engine is not None else b""
    return {
        "compiler": f"tensorrt-rtx {trt.__version__}",
        "engine_bytes": len(data),
        "engine_sha256": hashlib.sha256(data).hexdigest(),
        "errors": [] if data else [m for s, m in messages if s in severe],
        "warnings": list(warned),
        "layers": "\n".join(m for _, m in messages if m.lstrip().startswith("Layers:")),
    }


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
