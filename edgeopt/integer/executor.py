"""The reference executor: a quantized program, computed in integers by a runtime's arithmetic.

What stands between dequantize and quantize nodes is computed by an integer kernel of numpy, from
codes to codes; an activation behind it is a clamp of its codes. What is no kernel's work is
computed by torch, in float, and named with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Node, map_arg

from edgeopt.errors import ConfigError
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import Arithmetic
from edgeopt.integer.call import Call, Kernel, NoKernelError, Parameters
from edgeopt.integer.grid import Array, Grid
from edgeopt.integer.operators import ACTIVATIONS, HANDLERS, MOVES, between_codes, bind
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import operator_name, where_is


@dataclasses.dataclass(frozen=True)
class Step:
    """How the codes of one quantized value come about.

    Attributes:
        quantize: The node whose result they are.
        operator: The operator whose kernel writes them, or None where floats are quantized.
        activations: What that kernel takes in behind the operator, in order.
        kernel: The kernel, or None where there is none for this form of the operator.
        reason: Why there is none.
    """

    quantize: Node
    operator: Node | None
    activations: tuple[Node, ...] = ()
    kernel: Kernel | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The operator's short name, or `quantize`."""
        return operator_name(self.operator) if self.operator is not None else "quantize"

    @property
    def address(self) -> str:
        """Where the codes come from, as people read it."""
        return where_is(self.operator if self.operator is not None else self.quantize)

    @property
    def moves(self) -> bool:
        """Whether codes are only moved."""
        return self.name in MOVES


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one run gave.

    Attributes:
        codes: Quantize node -> its codes, of every step.
        outputs: The program's outputs in order; constants among them are left out.
    """

    codes: Mapping[Node, Array]
    outputs: tuple[Array, ...]


class Executor:
    """Compute a quantized program in integers.

    Attributes:
        steps: One for each quantize node, in graph order.
        floats: Operators that compute in float -> why; what only moves values is left out.
        arithmetic: How the kernels compute.
    """

    def __init__(self, exported: ExportedProgram, arithmetic: Arithmetic) -> None:
        """Choose a kernel for every quantized value.

        Args:
            exported: A program in the dialect; captured, or legalized for a target.
            arithmetic: How the kernels compute.
        """
        self.arithmetic = arithmetic
        self._exported = exported
        self._parameters = Parameters(exported)
        nodes = [n for n in exported.graph.nodes if n.target is QUANTIZE]
        self.steps = tuple(self._step(node) for node in nodes)
        self._step_of = {step.quantize: step for step in self.steps}
        self.floats: Mapping[Node, str] = self._floats()

    def codes(self, step: Step, values: Mapping[Node, Array]) -> Array | None:
        """Return the codes of one step from what is known, or None where that is not enough.

        Given a runtime's own codes, each step is judged by itself: no error adds up.

        Args:
            step: One of `steps`.
            values: Codes of quantize nodes, the program's inputs, and floats that are quantized.
                What a step reads and is missing here is computed from what it reads in turn.
        """
        if step.kernel is None:
            return None
        found = [self._value(node, values) for node in step.kernel.reads]
        known = [value for value in found if value is not None]
        return step.kernel.compute(*known) if len(known) == len(found) else None

    def run(self, inputs: Sequence[Array]) -> Trace:
        """Run the whole program on its own codes.

        Args:
            inputs: The program's tensor inputs, in order.

        Raises:
            ConfigError: If their number is not the program's, or a rescale is one that the
                arithmetic does not hold.
        """
        given = self._given(inputs)
        needed = self._needed()
        values: dict[Node, Any] = {}
        with torch.no_grad():
            for node in self._exported.graph.nodes:
                if node in needed:
                    values[node] = self._evaluate(node, given, values)
        return Trace(
            {step.quantize: values[step.quantize].numpy() for step in self.steps},
            tuple(values[node].numpy() for node in self._outputs()),
        )

    def _step(self, quantize: Node) -> Step:
        source = quantize.args[0]
        assert isinstance(source, Node)
        producer, activations = _producer(source)
        try:
            grid, axis = self._parameters.grid(quantize)
            if producer is None:
                kernel = self._rounding(source, grid, axis)
            else:
                call = Call(producer, grid, self._parameters, self.arithmetic)
                kernel = bind(call, activations)
        except NoKernelError as reason:
            return Step(quantize, producer, activations, reason=str(reason))
        return Step(quantize, producer, activations, _within(kernel, quantize))

    def _rounding(self, source: Node, grid: Grid, axis: int | None) -> Kernel:
        """Return the kernel that quantizes floats."""

        def compute(floats: Array) -> Array:
            spread = grid if axis is None else grid.along(axis, floats.ndim)
            return kernels.quantize(floats, spread, self.arithmetic)

        return Kernel((source,), compute)

    def _floats(self) -> dict[Node, str]:
        integer = {
            node
            for step in self.steps
            if step.kernel is not None and step.operator is not None
            for node in (step.operator, *step.activations)
        }
        reasons = {s.operator: s.reason for s in self.steps if s.reason and s.operator is not None}
        found = {}
        for node in self._exported.graph.nodes:
            if node.op == "call_function" and node not in integer and _computes_floats(node):
                found[node] = reasons.get(node) or _why_float(node)
        return found

    def _value(self, node: Node, values: Mapping[Node, Array]) -> Array | None:
        if node in values:
            return values[node]
        if node in self._step_of:
            return self.codes(self._step_of[node], values)
        stored = self._parameters.stored(node)
        return None if stored is None else np.asarray(stored.numpy())

    def _given(self, inputs: Sequence[Array]) -> dict[str, Any]:
        """Return the user's inputs by the names of their placeholders; constants are filled in."""
        names = program.tensor_input_names(self._exported)
        if len(names) != len(inputs):
            raise ConfigError(f"executor: {len(inputs)} inputs, and the program takes {len(names)}")
        given: dict[str, Any] = {
            spec.arg.name: spec.arg.value
            for spec in self._exported.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)
        }
        return given | {n: torch.tensor(a) for n, a in zip(names, inputs, strict=True)}

    def _needed(self) -> frozenset[Node]:
        """Return what a run evaluates: an operator inside a kernel is not computed in float too."""
        todo = [*self._step_of, *self._outputs()]
        found: set[Node] = set()
        while todo:
            node = todo.pop()
            if node in found:
                continue
            found.add(node)
            step = self._step_of.get(node)
            kernel = step.kernel if step is not None else None
            todo += kernel.reads if kernel is not None else node.all_input_nodes
        return frozenset(found)

    def _evaluate(self, node: Node, given: Mapping[str, Any], values: Mapping[Node, Any]) -> Any:
        if node.op == "placeholder":
            stored = self._parameters.stored(node)
            return given[node.name] if stored is None else stored
        if node.op == "get_attr":
            return getattr(self._exported.graph_module, str(node.target))
        step = self._step_of.get(node)
        if step is not None and step.kernel is not None:
            read = [_plain(values[n]) for n in step.kernel.reads]
            return torch.from_numpy(step.kernel.compute(*read))
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        return target(*args, **kwargs)

    def _outputs(self) -> list[Node]:
        output = next(n for n in self._exported.graph.nodes if n.op == "output")
        specs = self._exported.graph_signature.output_specs
        leaves: Any = output.args[0]
        return [
            node
            for spec, node in zip(specs, leaves, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, Node)
        ]


def _producer(source: Node) -> tuple[Node | None, tuple[Node, ...]]:
    """Return the operator whose kernel writes codes, and the activations that it takes in."""
    activations: list[Node] = []
    node: Any = source
    while isinstance(node, Node) and operator_name(node) in ACTIVATIONS and len(node.users) == 1:
        activations.insert(0, node)
        node = node.args[0]
    is_operator = isinstance(node, Node) and node.op == "call_function"
    if is_operator and operator_name(node) in HANDLERS and between_codes(node):
        return node, tuple(activations)
    return None, ()


def _within(kernel: Kernel, quantize: Node) -> Kernel:
    """Keep codes in the range of the quantize node, where that is narrower than their type."""
    low, high = quantize.args[6], quantize.args[7]

    def compute(*values: Array) -> Array:
        codes = kernel.compute(*values)
        info = np.iinfo(codes.dtype)
        if (low, high) == (info.min, info.max):
            return codes
        return np.clip(codes, low, high).astype(codes.dtype)  # type: ignore[arg-type]

    return Kernel(kernel.reads, compute)


def _computes_floats(node: Node) -> bool:
    if node.target in (QUANTIZE, DEQUANTIZE) or operator_name(node) in MOVES:
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _why_float(node: Node) -> str:
    name = operator_name(node)
    if name not in HANDLERS:
        return f"no integer kernel for {name}"
    return "its result is not quantized" if between_codes(node) else "it reads floats"


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value
