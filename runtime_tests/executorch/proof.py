"""Compare XNNPACK's integer kernels with the reference executor, element by element.

A `.pte` shows its inputs and outputs only. So the program that it was written from is lowered once
more with all of its codes among the outputs, run in the same runtime, and each integer operator is
computed again from the runtime's own codes: no error adds up, and every operator is judged on
integers that really occur. The shipped file must give the same outputs to the bit.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from edgeopt.devices.machine import machine
from edgeopt.exporters.executorch import lowering
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import XNNPACK, Arithmetic
from edgeopt.integer.kernels import Grid, Window
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import operator_name
from edgeopt.quant.reading import read
from edgeopt.results.structure import NodeProof, ProofResult
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.differences import first_difference, node_proof
from edgeopt.runtime_tests.executorch.runner import ExecuTorchRunner

Array = np.ndarray[Any, Any]
ABOUT = "edgeopt"
_FUSED = frozenset({"relu", "relu6", "hardtanh"})
_MOVES = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "slice", "cat", "pad", "unsqueeze"}
)


def prove(
    artifact: str,
    model: Path,
    inputs: Arrays,
    exported: ExportedProgram,
    *,
    method: str = "forward",
    arithmetic: Arithmetic = XNNPACK,
) -> ProofResult:
    """Compare each integer operator of a program, as XNNPACK runs it here, with the executor.

    Args:
        artifact: The artifact's name, for the result.
        model: The exported file.
        inputs: Inputs by name, in the program's order; real samples.
        exported: The legalized program that the file was written from, at any batch.
        method: The file's method.
        arithmetic: How the executor rescales.

    Raises:
        RuntimeUnavailable: If ExecuTorch is missing.
        BundleError: If a file cannot be loaded or run.
        DataError: If the inputs do not fit.
        ExportError: If the program with its codes as outputs cannot be lowered.
    """
    tensors = [torch.from_numpy(np.asarray(value)) for value in inputs.values()]
    fixed = _at_inputs(exported, tensors)
    probes = _probes(fixed)
    shipped = _run(model, method, list(inputs.values()))
    with tempfile.TemporaryDirectory() as work:
        probed = Path(work) / "probed.pte"
        probed.write_bytes(_lowered(fixed, probes, tensors))
        outputs = _run(probed, method, list(inputs.values()))
    count = len(outputs) - len(probes)
    values = dict(zip(probes, outputs[count:], strict=True))
    placeholders = {n.name: n for n in fixed.graph.nodes if n.op == "placeholder"}
    given = [placeholders[name] for name in program.user_input_names(fixed)]
    shown = [n for n in given if isinstance(n.meta.get("val"), Tensor)]
    values |= dict(zip(shown, inputs.values(), strict=True))
    proof = _Proof(fixed, values, arithmetic)
    proof.judge()
    result = proof.result(artifact)
    ends = zip(shipped, outputs[:count], strict=True)
    if result.first_difference or all(np.array_equal(a, b) for a, b in ends):
        return result
    return dataclasses.replace(
        result, exact=False, first_difference="the file's outputs are not those of the program "
        "that shows its codes; the operators were proven on the latter",
    )  # fmt: skip


def _run(path: Path, method: str, arrays: Sequence[Array]) -> list[Array]:
    session = ExecuTorchRunner().load([path], LoadOptions())
    try:
        names = session.input_names(method)
        return list(session.run(method, dict(zip(names, arrays, strict=True))).values())
    finally:
        session.close()


def _at_inputs(exported: ExportedProgram, tensors: list[Tensor]) -> ExportedProgram:
    """Return the program with all sizes fixed to those of the inputs."""
    args, kwargs = program.unflattened(exported, tensors)
    return program.retrace(exported, args, kwargs)


def _probes(exported: ExportedProgram) -> list[Node]:
    """Return the values to show: codes, and the floats that XNNPACK quantizes itself.

    Codes behind a border are left out: a second reader would keep it from being folded.
    """
    found: dict[Node, None] = {}
    for node in exported.graph.nodes:
        if node.target is not QUANTIZE or _is_border(node):
            continue
        source = node.args[0]
        if _integer_producer(node) is None and source.op == "call_function":
            found[source] = None
        found[node] = None
    return list(found)


def _is_border(quantize: Node) -> bool:
    source = quantize.args[0]
    return (
        isinstance(source, Node)
        and operator_name(source) in ("pad", "constant_pad_nd")
        and isinstance(source.args[0], Node)
        and source.args[0].target is DEQUANTIZE
    )


def _integer_producer(quantize: Node) -> Node | None:
    """Return the operator whose kernel writes these codes, or None where floats are quantized."""
    node: Any = quantize.args[0]
    while isinstance(node, Node) and operator_name(node) in _FUSED and len(node.users) == 1:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    operands = [n for n in node.all_input_nodes if n.op == "call_function"]
    reads = bool(operands) and all(n.target is DEQUANTIZE for n in operands)
    known = operator_name(node) in _HANDLERS or operator_name(node) in _MOVES
    return node if reads and known else None


class _Probed(nn.Module):
    """The program, with more of its values among the outputs."""

    def __init__(self, module: torch.fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._names = names

    def forward(self, *args: Any) -> tuple[Any, ...]:
        shown: dict[str, Any] = {}
        wanted = frozenset(self._names)

        class Watch(Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted:
                    shown[n.name] = value
                return value

        outputs = Watch(self.module).run(*args)
        return (*pytree.tree_leaves(outputs), *(shown[name] for name in self._names))


def _lowered(exported: ExportedProgram, probes: list[Node], tensors: list[Tensor]) -> bytes:
    module = program.runnable(exported)
    shown = _Probed(module, [node.name for node in probes])
    flat = program.flat_inputs(exported, *program.unflattened(exported, tensors))
    with torch.no_grad(), program.quiet_export():
        again = torch.export.export(shown, tuple(flat))
    decomposed = lowering.to_decomposed(again)
    return lowering.lower({"forward": decomposed}, {}, ABOUT).data


class _Unproven(Exception):
    """A form of an operator that the executor does not compute."""


class _Proof:
    """Judges every quantized value of one program."""

    def __init__(
        self, exported: ExportedProgram, values: Mapping[Node, Array], arithmetic: Arithmetic
    ) -> None:
        self._exported = exported
        self._values = values
        self.arithmetic = arithmetic
        self._table = program.tensors(exported)
        self._names = program.tensor_names(exported)
        self._details: list[NodeProof] = []
        self._unproven: dict[str, str] = {}
        self._islands: Counter[str] = Counter()
        self._first = ""

    def judge(self) -> None:
        """Compare the codes of each edge with what the executor gives."""
        for node in self._exported.graph.nodes:
            if node.op != "call_function" or node.target is DEQUANTIZE:
                continue
            if node.target is QUANTIZE:
                self._judge_codes(node)
            elif self._is_island(node):
                self._islands[operator_name(node)] += 1

    def _is_island(self, node: Node) -> bool:
        """Say whether an operator computes in float."""
        name = operator_name(node)
        value = node.meta.get("val")
        if name in _MOVES or not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        quantized = any(
            reader.target is QUANTIZE and _integer_producer(reader) is not None
            for reader in _after_fused(node)
        )
        return not quantized

    def _judge_codes(self, quantize: Node) -> None:
        if quantize not in self._values:
            return
        producer = _integer_producer(quantize)
        if producer is not None and operator_name(producer) in _MOVES:
            return
        shown = producer if producer is not None else quantize
        name = edges.require_site(shown).address
        operator = operator_name(producer) if producer is not None else "quantize"
        try:
            wanted = self._wanted(quantize, producer)
        except _Unproven:
            self._unproven[name] = operator
            return
        got = self._values[quantize]
        proof = node_proof(name, operator, got, wanted)
        self._details.append(proof)
        if proof.equal < proof.elements and not self._first:
            self._first = first_difference(proof, got, wanted, self.arithmetic.name)

    def _wanted(self, quantize: Node, producer: Node | None) -> Array:
        out = self.grid(quantize)
        if producer is None:
            source = quantize.args[0]
            assert isinstance(source, Node)
            floats = self._values.get(source)
            if floats is None:
                raise _Unproven
            return kernels.quantize(floats, out, self.arithmetic)
        codes = _HANDLERS[operator_name(producer)](self, producer, out)
        node = quantize.args[0]
        bounds = []
        while isinstance(node, Node) and node is not producer:
            bounds.append(_bounds(node))
            node = node.args[0]
        for low, high in reversed(bounds):
            codes = np.clip(codes, _code(low, out), _code(high, out)).astype(codes.dtype)
        return codes

    def grid(self, node: Node) -> Grid:
        """Return the grid of a quantize or dequantize node."""
        found = read(node, self._table, self._names)
        assert found is not None
        return Grid.of(
            found.params.scale.detach().numpy(), found.params.zero_point.detach().numpy(), np.int8
        )

    def operand(self, node: Any) -> tuple[Array, Grid]:
        """Return the codes behind a dequantize node, and their grid."""
        if not isinstance(node, Node) or node.target is not DEQUANTIZE:
            raise _Unproven
        return self._codes(node.args[0]), self.grid(node)

    def _codes(self, node: Any) -> Array:
        assert isinstance(node, Node)
        if node.name in self._names:
            return np.asarray(self._table[self._names[node.name]].detach().numpy())
        if node in self._values:
            return self._values[node]
        if node.target is QUANTIZE and _is_border(node):
            pad = node.args[0]
            assert isinstance(pad, Node)
            codes, grid = self.operand(pad.args[0])
            return _padded(codes, pad, int(grid.zero_point))
        raise _Unproven

    def bias(self, node: Node, x: Grid, weight: Grid) -> Array | None:
        """Return the int32 codes of an operator's bias, or None."""
        given = node.args[2] if len(node.args) > 2 else None
        if not isinstance(given, Node):
            return None
        value = self._table[self._names[given.name]].detach().double().numpy()
        grid = np.float64(np.float32(x.scale) * weight.scale)
        return np.asarray(np.rint(value / grid).astype(np.int32))

    def result(self, artifact: str) -> ProofResult:
        """Return what was found."""
        elements = sum(d.elements for d in self._details)
        equal = sum(d.equal for d in self._details)
        return ProofResult(
            artifact=artifact,
            runtime=ExecuTorchRunner().version(),
            arithmetic=self.arithmetic.name,
            nodes=len(self._details),
            elements=elements,
            equal=equal,
            exact=equal == elements > 0,
            max_lsb=max((d.max_lsb for d in self._details), default=0.0),
            first_difference=self._first,
            details=tuple(self._details),
            unproven=self._unproven,
            float_islands=dict(sorted(self._islands.items())),
            features=machine().features,
        )


def _after_fused(node: Node) -> list[Node]:
    """Return the readers of a value behind the activations that its kernel takes in."""
    while len(node.users) == 1 and operator_name(next(iter(node.users))) in _FUSED:
        (node,) = node.users
    return list(node.users)


def _bounds(node: Node) -> tuple[float, float]:
    """Return the smallest and largest output of a fused activation."""
    name = operator_name(node)
    if name == "relu":
        return 0.0, float("inf")
    if name == "relu6":
        return 0.0, 6.0
    low = float(node.args[1]) if len(node.args) > 1 else -1.0  # type: ignore[arg-type]
    high = float(node.args[2]) if len(node.args) > 2 else 1.0  # type: ignore[arg-type]
    return low, high


def _code(real: float, grid: Grid) -> int:
    info = np.iinfo(grid.dtype)
    if not np.isfinite(real):
        return int(info.max if real > 0 else info.min)
    code = float(np.rint(np.float32(real) / np.float32(grid.scale))) + float(grid.zero_point)
    return int(np.clip(code, info.min, info.max))


def _padded(codes: Array, pad: Node, zero: int) -> Array:
    amounts: Any = pad.args[1]
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    widths = [(0, 0)] * (codes.ndim - len(pairs)) + [(int(a), int(b)) for a, b in pairs]
    return np.pad(codes, widths, constant_values=zero)


def _argument(node: Node, index: int, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else default


def _spread(value: Any, rank: int) -> list[int]:
    if isinstance(value, str):
        raise _Unproven
    sizes = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return sizes * rank if len(sizes) == 1 else sizes


def _conv(proof: _Proof, node: Node, out: Grid) -> Array:
    x, x_grid = proof.operand(node.args[0])
    weight, weight_grid = proof.operand(node.args[1])
    rank = weight.ndim - 2
    pads = _spread(_argument(node, 4, 0), rank)
    window = Window.of(
        weight.shape[2:],
        _spread(_argument(node, 3, 1), rank),
        pads * 2,
        _spread(_argument(node, 5, 1), rank),
    )
    return kernels.conv(
        x,
        x_grid,
        weight,
        weight_grid,
        out,
        window,
        groups=int(_argument(node, 6, 1)),
        bias=proof.bias(node, x_grid, weight_grid),
        arithmetic=proof.arithmetic,
    )


def _linear(proof: _Proof, node: Node, out: Grid) -> Array:
    x, x_grid = proof.operand(node.args[0])
    weight, weight_grid = proof.operand(node.args[1])
    return kernels.gemm(
        x,
        x_grid,
        weight.T,
        weight_grid,
        out,
        bias=proof.bias(node, x_grid, weight_grid),
        arithmetic=proof.arithmetic,
    )


def _pair(kernel: Callable[..., Array]) -> Callable[[_Proof, Node, Grid], Array]:
    def handler(proof: _Proof, node: Node, out: Grid) -> Array:
        first, second = (proof.operand(a) for a in node.args[:2])
        return kernel(*first, *second, out, proof.arithmetic)

    return handler


def _mean(proof: _Proof, node: Node, out: Grid) -> Array:
    x, x_grid = proof.operand(node.args[0])
    dims: Any = _argument(node, 1, ())
    if sorted(int(d) % x.ndim for d in dims) != [2, 3] or x.ndim != 4:
        raise _Unproven
    return kernels.global_average_pool(x, x_grid, out, proof.arithmetic)


def _max_pool(proof: _Proof, node: Node, out: Grid) -> Array:
    x, _ = proof.operand(node.args[0])
    kernel = _spread(node.args[1], 2)
    strides = _argument(node, 2, ()) or kernel
    window = Window.of(
        kernel,
        _spread(strides, 2),
        _spread(_argument(node, 3, 0), 2) * 2,
        _spread(_argument(node, 4, 1), 2),
        ceil=bool(_argument(node, 5, False)),
    )
    return kernels.max_pool(x, window)


_HANDLERS: Mapping[str, Callable[[_Proof, Node, Grid], Array]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "linear": _linear,
    "add": _pair(kernels.add),
    "sub": _pair(kernels.subtract),
    "mul": _pair(kernels.multiply),
    "mean": _mean,
    "max_pool2d": _max_pool,
}
