"""Write selections and squeezes as slices and views."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage

_ATEN = torch.ops.aten
_RESHAPES = frozenset({"squeeze", "unsqueeze"})


@dataclasses.dataclass(frozen=True)
class SlicesAndViewsConfig:
    """`slices_and_views` has no options."""


class SlicesAndViews(Pass[SlicesAndViewsConfig]):
    """Replace operators that only pick or reshape by `slice` and `reshape`.

    XNNPACK has a kernel for a slice and for a reshape, and none for select, squeeze or unsqueeze:
    each of those would be a copy outside the delegate, and cut it in two. Splits have become
    slices and selections by `slice_splits`.

    Before: `select(x, 0, 1)`. After: `reshape(slice(x, 0, 1, 2))`.
    Before: `squeeze(x, 1)`, `unsqueeze(x, 1)`. After: `reshape(x)`.

    Skipped where the dimension that is cut is dynamic, or more than one other is.
    """

    name = "slices_and_views"
    config_type = SlicesAndViewsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.FLOAT
    to_phase = Phase.FLOAT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    name = operator_name(node)
    if name == "select":
        reason = _select(editor, node)
    elif name in _RESHAPES:
        reason = _reshape(editor, node)
    else:
        return None
    return Left(reason) if reason else Rewritten(f"{name} written as slices and views")


def _select(editor: ProgramEditor, node: Node) -> str:
    source, dim, index = node.args[:3]
    assert isinstance(source, Node)
    value: Tensor = source.meta["val"]
    axis = int(dim) % value.dim()  # type: ignore[arg-type]
    size = value.shape[axis]
    if not isinstance(size, int) or not isinstance(index, int):
        return "the dimension that it cuts is dynamic"
    if _shape(node.meta["val"]) is None:
        return "more than one other dimension is dynamic"
    at = index % size
    cut = editor.call(
        _ATEN.slice.Tensor, (source, axis, at, at + 1), parent=node, suffix="slice", before=node
    )
    _replace(editor, node, _reshaped(editor, cut, node))
    return ""


def _reshape(editor: ProgramEditor, node: Node) -> str:
    if _shape(node.meta["val"]) is None:
        return "more than one dimension is dynamic"
    source = node.args[0]
    assert isinstance(source, Node)
    _replace(editor, node, _reshaped(editor, source, node))
    return ""


def _reshaped(editor: ProgramEditor, source: Node, like: Node) -> Node:
    shape = _shape(like.meta["val"])
    assert shape is not None
    return editor.call(
        _ATEN.reshape.default, (source, shape), parent=like, suffix="view", before=like
    )


def _replace(editor: ProgramEditor, node: Node, new: Node) -> None:
    node.replace_all_uses_with(new)
    editor.graph.erase_node(node)


def _shape(value: Tensor) -> list[int] | None:
    """Return the sizes with -1 for a dynamic one, or None where there are several."""
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    return sizes if sizes.count(-1) <= 1 else None
