"""Write splits as slices."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.fx import Node

from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Stage

_SPLITS = frozenset(
    {"chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unsafe_split"}
)
_ATEN = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class SliceSplitsConfig:
    """`slice_splits` has no options."""


class SliceSplits(Pass[SliceSplitsConfig]):
    """Write an operator with several results as one operator for each.

    A list of tensors has no scale, so codes cannot pass through a split; they pass through slices.

    Before: `q, k, v = chunk(x, 3, -1)`. After: `q = slice(x, -1, 0, n)`, `k = slice(..)`, ...;
    `unbind` becomes `select`.
    """

    name = "slice_splits"
    config_type = SliceSplitsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    if operator_name(node) not in _SPLITS:
        return None
    reason = _unsupported(node)
    return Left(reason) if reason else Rewritten(f"{_write(editor, node)} slices")


def _unsupported(node: Node) -> str:
    if not all(u.target is operator.getitem for u in node.users):
        return "its list of results is used as a whole"
    axis = _axis(node)
    if not all(isinstance(part.shape[axis], int) for part in node.meta["val"]) and (
        operator_name(node) != "unbind"
    ):
        return "the length of its parts is dynamic"
    return ""


def _axis(node: Node) -> int:
    """Return the axis; `dim` is the last positional argument, 0 where it is left out."""
    position = 1 if operator_name(node) == "unbind" else 2
    axis = node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0)
    assert isinstance(axis, int)
    source = node.args[0]
    assert isinstance(source, Node)
    return axis % int(source.meta["val"].dim())


def _write(editor: ProgramEditor, node: Node) -> int:
    """Replace the readers of a split's results; return how many there are."""
    source, axis = node.args[0], _axis(node)
    starts = [0]
    for part in node.meta["val"]:
        starts.append(starts[-1] + (part.shape[axis] if operator_name(node) != "unbind" else 1))
    getters = [user for user in node.users if isinstance(user.args[1], int)]
    for getter in getters:
        index = int(getter.args[1]) % len(node.meta["val"])  # type: ignore[arg-type]
        target: Any = _ATEN.slice.Tensor
        args: tuple[Any, ...] = (source, axis, starts[index], starts[index + 1])
        if operator_name(node) == "unbind":
            target, args = _ATEN.select.int, (source, axis, index)
        part = editor.call(target, args, parent=node, suffix=f"{index}", before=getter)
        getter.replace_all_uses_with(part)
        editor.graph.erase_node(getter)
    editor.graph.erase_node(node)
    return len(getters)
