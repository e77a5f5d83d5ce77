"""The only way from MODULE to GRAPH."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgeopt.contracts.contract import Contract
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.contracts.tied import tied_contracts
from edgeopt.errors import CaptureError
from edgeopt.ir import edges, program, trees
from edgeopt.ir.calls import FORWARD
from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.passes.capture.linear_form import as_linears
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage

_IDENTITIES = frozenset({"dropout", "alias", "detach", "lift_fresh_copy"})
"""`contiguous` stays: a view behind it may need the copy."""


@dataclasses.dataclass(frozen=True)
class CaptureConfig:
    """Options of `capture`.

    Attributes:
        dynamic_batch: Keep the first dimension of the inputs dynamic where the model allows it.
    """

    dynamic_batch: bool = True


class Capture(Pass[CaptureConfig]):
    """Capture the module with `torch.export` as functional ATen operators.

    In eval mode, with the context's example (a batch of at least 2: a batch of 1 is burnt in) and
    a dynamic batch where the model allows it. Parameters are copied, so nothing that happens to
    the graph reaches the user's module. Every operator gets its edge ids here, once. Operators
    that do nothing in eval mode (dropout, detach) are dropped. Further methods become programs of
    their own over the same weights, at the shapes of their examples.
    """

    name = "capture"
    config_type = CaptureConfig
    stage = Stage.MODULE
    effect = Effect.EQUIVALENT
    produces = Stage.GRAPH

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        module = state.carrier_module
        programs: dict[str, ExportedProgram] = {}
        captured: list[str] = []
        notes: tuple[str, ...] = ()
        transposed: frozenset[str] = frozenset()
        clones: dict[tuple[Any, ...], Tensor] = {}
        for method in (FORWARD, *ctx.methods):
            exported, note = self._export(module, ctx, method)
            refuse_higher_order(exported)
            exported = functional(exported)
            exported, found = as_linears(exported)
            more = ctx.methods.get(method)
            names = ctx.input_names if more is None else more.input_names
            programs[method], dropped = _own_and_clean(exported, names, method, clones)
            transposed |= found
            operators = sum(1 for n in programs[method].graph.nodes if n.op == "call_function")
            captured.append(f"captured {operators} operators" + f" of {method}" * bool(ctx.methods))
            notes += (note,) if note else ()
            if dropped:
                notes += (f"dropped without effect in eval mode: {', '.join(sorted(dropped))}",)
        after = dataclasses.replace(
            state,
            module=None,
            programs=programs,
            stage=Stage.GRAPH,
            contracts=(*_mapped(state.contracts, transposed), *tied_contracts(module)),
        )
        return PassResult(after, {"the model": "; ".join(captured)}, {}, notes)

    def _export(
        self, module: torch.nn.Module, ctx: PassContext, method: str
    ) -> tuple[ExportedProgram, str]:
        shapes = ctx.dynamic_shapes
        attempts: list[tuple[Any, str]] = []
        if method != FORWARD:
            attempts.append((None, ""))  # its shapes are the example's
        elif shapes is not None:
            attempts.append((shapes, ""))
        else:
            dynamic = dynamic_batch(ctx.example_args, ctx.example_kwargs, module)
            if self.config.dynamic_batch and dynamic is not None:
                attempts.append((dynamic, ""))
            attempts.append((None, "the batch is static: the model fixes it"))
        failure: Exception | None = None
        for wanted, note in attempts:
            example = ctx.example(method)
            args, kwargs = program.copied_inputs(example.args, example.kwargs)
            try:
                with program.quiet_export(), torch.no_grad(), as_forward(module, method):
                    exported = torch.export.export(module, args, kwargs, dynamic_shapes=wanted)
                return exported, note if len(attempts) > 1 else ""
            except Exception as caught:  # torch.export raises many unrelated types
                failure = caught  # the last attempt asks for least, so its failure is the reason
        assert failure is not None
        raise CaptureError(_explain(failure)) from failure


@contextmanager
def as_forward(module: torch.nn.Module, method: str) -> Iterator[None]:
    """Let a call of the module run one of its other methods, so that FQNs stay what they are."""
    if method == FORWARD:
        yield
        return
    module.forward = getattr(module, method)
    try:
        yield
    finally:
        del module.forward  # the class's own shows again


def _mapped(contracts: tuple[Contract, ...], transposed: frozenset[str]) -> tuple[Contract, ...]:
    """Return the contracts with the axes of transposed weights exchanged."""
    return tuple(
        dataclasses.replace(c, axis=1 - c.axis)
        if isinstance(c, NMSparse) and c.fqn in transposed
        else c
        for c in contracts
    )


def dynamic_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any], module: torch.nn.Module) -> Any:
    """Return dynamic shapes that leave dimension 0 of all tensor inputs open.

    None where inputs have no common first dimension of at least 2.
    """
    leaves = [x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
    sizes = {x.shape[0] for x in leaves if x.dim()}
    if len(sizes) != 1 or min(sizes) < 2 or any(x.dim() == 0 for x in leaves):
        return None
    free = [{0: Dim.DYNAMIC}] * len(leaves)
    return trees.export_shapes(args, kwargs, free, module.forward)


def refuse_higher_order(exported: ExportedProgram) -> None:
    """Refuse control flow inside the graph.

    Raises:
        CaptureError: Naming the operator and its module.
    """
    for node in exported.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"capture: {edges.owner(node) or 'the model'} holds {node.target} (control flow "
                "in the graph), which no exporter takes; rewrite it without torch.cond or scan"
            )


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Return the program without operators that write into their inputs.

    An in-place activation on a fresh value that nobody else reads becomes its functional twin at
    once; anything else goes through torch's own functionalization, which takes seconds.
    """
    mutable = [
        n
        for n in exported.graph.nodes
        if n.op == "call_function"
        and getattr(n.target, "_schema", None) is not None
        and n.target._schema.is_mutable
    ]
    if not mutable:
        return exported
    twins = {node.name: twin for node in mutable if (twin := _functional_twin(node)) is not None}
    if len(twins) < len(mutable):
        with torch.no_grad():
            return _without_dropout(exported).run_decompositions({})
    editor = ProgramEditor(exported)
    for node in editor.graph.nodes:
        if node.name in twins:
            node.target = twins[node.name]
    return editor.finish()


def _without_dropout(exported: ExportedProgram) -> ExportedProgram:
    """Drop dropout, whose schema hides from functionalization that its output is its input."""
    editor = ProgramEditor(exported)
    for node in list(editor.graph.nodes):
        if operator_name(node) == "dropout" and _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            editor.graph.erase_node(node)
    return editor.finish()


def _functional_twin(node: Node) -> Any:
    """Return the functional overload of an in-place operator, or None where it is not safe."""
    source = node.args[0] if node.args else None
    while isinstance(source, Node) and operator_name(source) in _IDENTITIES:
        if len(source.users) > 1:
            return None
        source = source.args[0]  # in eval mode it is the same storage
    if not isinstance(source, Node) or source.op != "call_function" or len(source.users) > 1:
        return None
    schema = getattr(source.target, "_schema", None)
    if schema is None or any(r.alias_info is not None for r in schema.returns):
        return None  # a view: the write reaches what it views
    name = operator_name(node)
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(node.target, "_overloadname", "default")
    return getattr(packet, overload, None) if name.endswith("_") and packet is not None else None


def _explain(failure: Exception) -> str:
    lines = [line.strip() for line in str(failure).strip().splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("File ")), "")
    frames = [line for line in lines if ".py" in line and "line" in line]
    place = where or (frames[-1] if frames else "")
    return (
        f"capture: the model cannot be captured: {type(failure).__name__}: "
        f"{lines[0] if lines else 'no message'}"
        + (f" [{place}]" if place else "")
        + "; module passes before it ran, export needs a capture"
    )


def _own_and_clean(
    exported: ExportedProgram,
    input_names: tuple[str, ...],
    method: str,
    clones: dict[tuple[Any, ...], Tensor],
) -> tuple[ExportedProgram, set[str]]:
    """Copy every tensor, give each operator its site, and drop what does nothing.

    Args:
        exported: A method's program.
        input_names: Names of its tensor inputs, or none.
        method: The method's name.
        clones: What was copied already: methods and tied weights share their storage.
    """
    editor = ProgramEditor(exported)
    for fqn, value in editor.table.items():
        key = (value.data_ptr() if value.numel() else id(value), value.shape, value.stride())
        if key not in clones:
            clones[key] = value.detach().clone()
        editor.table[fqn] = clones[key]
    users = program.tensor_input_names(exported)
    names = dict(zip(users, input_names or users, strict=False))
    inputs = {user: names.get(user, user) for user in users}
    edges.assign(editor.graph, inputs, prefix="" if method == FORWARD else f"{method}.")
    dropped: set[str] = set()
    for node in list(editor.graph.nodes):
        if _does_nothing(node):
            source = node.args[0]
            assert isinstance(source, Node)
            dropped.add(operator_name(node))
            node.replace_all_uses_with(source)
            editor.graph.erase_node(node)
    return editor.finish(), dropped


def _does_nothing(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if operator_name(node) == "slice":
        return _takes_all(node)
    if operator_name(node) not in _IDENTITIES:
        return False
    if operator_name(node) == "dropout":
        return len(node.args) > 2 and node.args[2] is False
    return True


def _takes_all(node: Node) -> bool:
    """Say whether a slice is of the whole axis, as `x[:, 1:]` has one for the first."""
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    source, axis, start, end, step = given
    size = source.meta["val"].shape[axis]
    whole = end is None or end == sys.maxsize or (isinstance(size, int) and end == size)
    return bool(whole and start in (None, 0) and step == 1)
