"""Lower programs to ExecuTorch with the XNNPACK delegate, and keep where everything went."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgeopt.errors import ExportError
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor

_WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"})


@dataclasses.dataclass(frozen=True)
class LoweredNode:
    """A node of the program that the partitioner saw.

    Attributes:
        handle: The number that the delegate's own graph keeps of it.
        site: The model's address, or empty.
        operator: `aten.linear.default`.
        delegated: Whether a delegate took it.
        reason: Why not, in the partitioner's words, or empty.
    """

    handle: int
    site: str
    operator: str
    delegated: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What lowering gave.

    Attributes:
        data: The file's bytes.
        nodes: Method -> the nodes that were partitioned, in order.
        kernels: Method -> (operator, site) of each call outside the delegates, in order.
    """

    data: bytes
    nodes: Mapping[str, tuple[LoweredNode, ...]]
    kernels: Mapping[str, tuple[tuple[str, str], ...]]


def lower(
    programs: Mapping[str, ExportedProgram], about: Mapping[str, Any], about_name: str
) -> Lowered:
    """Lower programs into one file.

    Args:
        programs: Method -> program of quantized_decomposed operators (`to_decomposed`).
        about: What the file is to say of itself.
        about_name: The constant method that says it.

    Raises:
        ExportError: If ExecuTorch cannot take a program.
    """
    with _quiet(), torch.no_grad():  # without no_grad mutable buffers fail
        _import()
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        recorder: dict[str, tuple[LoweredNode, ...]] = {}
        try:
            lowered = to_edge_transform_and_lower(
                dict(programs),
                partitioner={name: [_recording(name, recorder)] for name in programs},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods={about_name: json.dumps(about, sort_keys=True)},
            )
            finished = lowered.to_executorch()
        except Exception as failure:  # ExecuTorch raises many unrelated types
            raise ExportError(f"executorch: cannot lower the program: {_one_line(failure)}") from (
                failure
            )
        kernels = {
            name: tuple(_kernels(finished.exported_program(name).graph)) for name in programs
        }
        return Lowered(bytes(finished.buffer), recorder, kernels)


def _recording(method: str, recorder: dict[str, tuple[LoweredNode, ...]]) -> Any:
    """Return XNNPACK's partitioner that also writes down what it decided, and why."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class Recording(XnnpackPartitioner):  # type: ignore[misc]
        def partition(self, exported_program: ExportedProgram) -> Any:
            with _reasons() as reasons:
                result = super().partition(exported_program)
            recorder[method] = tuple(
                LoweredNode(
                    int(node.meta.get("debug_handle", -1)),
                    _address(node),
                    str(node.target),
                    "delegation_tag" in node.meta,
                    reasons.get(node.name, ""),
                )
                for node in result.tagged_exported_program.graph.nodes
                if node.op == "call_function"
            )
            return result

    return Recording()


@contextlib.contextmanager
def _reasons() -> Iterator[dict[str, str]]:
    """Collect what the partitioner's rules say of the nodes that they refuse, by node name.

    They hand an object with `node` and `reason` to their loggers, at debug level.
    """
    found: dict[str, str] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            node, reason = (getattr(record.msg, key, None) for key in ("node", "reason"))
            if node is not None and reason:
                found[str(node)] = str(reason).rstrip(".")

    prefix = "executorch.backends.xnnpack.partition"
    loggers = [
        logging.getLogger(name)
        for name in sorted(logging.root.manager.loggerDict)
        if name.startswith(prefix)
    ]
    before = [(log.level, log.propagate) for log in loggers]
    collector = Collector(logging.DEBUG)
    try:
        for log in loggers:
            log.addHandler(collector)
            log.setLevel(logging.DEBUG)
            log.propagate = False
        yield found
    finally:
        for log, (level, propagate) in zip(loggers, before, strict=True):
            log.removeHandler(collector)
            log.setLevel(level)
            log.propagate = propagate


def _kernels(graph: torch.fx.Graph) -> Iterator[tuple[str, str]]:
    """Yield (name in the file, site) of each call that becomes a kernel of the plan."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        overload = schema.overload_name
        yield (f"{schema.name}.{overload}" if overload else str(schema.name)), _address(node)


def _address(node: Node) -> str:
    site = edges.site_of(node)
    return site.address if site is not None else ""


def inputs_of(exported: ExportedProgram) -> list[Any]:
    """Return the recorded value of each user input, in order; tensors and constants."""
    values = {n.name: n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder"}
    return [values[name] for name in program.user_input_names(exported)]


def bounded(exported: ExportedProgram, largest: Mapping[str, int]) -> ExportedProgram:
    """Return the program with its dynamic sizes bounded; memory is planned for the largest.

    ExecuTorch takes the bound from the shape environment, so the program is captured again.

    Args:
        exported: Any program; a static one is returned as it is.
        largest: Symbol of a dynamic size -> what it does not exceed.

    Raises:
        ExportError: If a dynamic size cannot be that large.
    """
    if not largest:
        return exported
    inputs = inputs_of(exported)
    dims = {
        symbol: torch.export.Dim(f"size{index}", min=1, max=size)
        for index, (symbol, size) in enumerate(largest.items())
    }

    def shape_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return {i: dims[str(d)] for i, d in enumerate(value.shape) if not isinstance(d, int)}

    examples = [
        torch.zeros([d if isinstance(d, int) else 2 for d in t.shape], dtype=t.dtype)
        for t in inputs
        if isinstance(t, Tensor)
    ]
    args, kwargs = program.unflattened(exported, examples)
    shapes = pytree.tree_unflatten([shape_of(v) for v in inputs], exported.call_spec.in_spec)
    forward = inspect.signature(program.runnable(exported).forward)
    try:
        named = forward.bind(*shapes[0], **shapes[1]).arguments
        return program.retrace(exported, args, kwargs, named)
    except Exception as failure:  # torch.export raises many unrelated types
        sizes = ", ".join(map(str, largest.values()))
        raise ExportError(
            f"executorch: dynamic sizes up to {sizes} do not go: {_one_line(failure)}"
        ) from failure


def to_decomposed(exported: ExportedProgram) -> ExportedProgram:
    """Write the dialect's quantize and dequantize as torch's `quantized_decomposed`.

    Codes behind a zero border go: XNNPACK pads codes only where no quantize stands between the pad
    and the convolution.

    Before: `edgeopt.quantize(x, s, z, ...)`. After: `quantize_per_tensor(x, 0.02, -3, ...)`.

    Args:
        exported: A program whose codes are int8.
    """
    import torch.ao.quantization.fx._decomposed

    decomposed = torch.ops.quantized_decomposed
    editor = ProgramEditor(exported)
    widened: set[str] = set()
    for node in list(editor.graph.nodes):
        if node.target is QUANTIZE:
            x, scale, zero, _, _, _, low, high = node.args
            node.target = decomposed.quantize_per_tensor.default
            node.args = (x, *_numbers(editor, scale, zero), low, high, torch.int8)
        elif node.target is DEQUANTIZE and node.args[3] is None:
            codes, scale, zero = node.args[:3]
            node.target = decomposed.dequantize_per_tensor.default
            node.args = (codes, *_numbers(editor, scale, zero), -128, 127, torch.int8)
        elif node.target is DEQUANTIZE:
            codes, scale, zero, axis = node.args[:4]
            assert isinstance(zero, Node)
            fqn = editor.fqn(zero)
            assert fqn is not None
            if fqn not in widened:
                editor.replace(fqn, editor.table[fqn].to(torch.int64))
                widened.add(fqn)
            node.target = decomposed.dequantize_per_channel.default
            node.args = (codes, scale, zero, axis, -127, 127, torch.int8)
    _codes_through_borders(editor)
    for node in editor.graph.nodes:
        node.meta.pop("from_node", None)  # ExecuTorch numbers nodes by it: one number each
    return editor.finish()


def _numbers(editor: ProgramEditor, scale: Any, zero: Any) -> tuple[float, int]:
    scale_value, zero_value = editor.tensor(scale), editor.tensor(zero)
    assert scale_value is not None
    assert zero_value is not None
    return float(scale_value), int(zero_value)


def _codes_through_borders(editor: ProgramEditor) -> None:
    for node in list(editor.graph.nodes):
        if node.op != "call_function" or operator_name(node) not in ("pad", "constant_pad_nd"):
            continue
        before = node.args[0]
        if not isinstance(before, Node) or operator_name(before) != "dequantize_per_tensor":
            continue  # a float border
        for codes in [u for u in node.users if operator_name(u) == "quantize_per_tensor"]:
            for back in list(codes.users):
                if operator_name(back) == "dequantize_per_tensor":
                    back.replace_all_uses_with(node)


def weights(exported: ExportedProgram) -> dict[str, tuple[str, Node]]:
    """Return FQN -> (site, reader) of the first product that reads each stored weight."""
    names = program.tensor_names(exported)
    found: dict[str, tuple[str, Node]] = {}
    for node in exported.graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _WEIGHTED:
            continue
        weight = node.args[1]
        if isinstance(weight, Node) and weight.target is DEQUANTIZE:
            weight = weight.args[0]
        if isinstance(weight, Node) and weight.name in names:
            found.setdefault(names[weight.name], (_address(node), node))
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ExecuTorch from printing warnings about itself; what goes wrong is in the exception."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _import() -> None:
    """Import what lowering takes; torch and torchao log deprecations of each other meanwhile."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import executorch.backends.xnnpack.partition.xnnpack_partitioner
        import executorch.kernels.quantized  # noqa: F401  (out variants of what stays outside)
    finally:
        logging.disable(disabled)


def _one_line(failure: BaseException) -> str:
    lines = [line for line in str(failure).strip().splitlines() if line.strip()]
    text = f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"
    return text if len(text) <= 300 else text[:297] + "..."
