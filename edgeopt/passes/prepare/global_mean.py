"""Write means as the global average pool that they are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch.fx import Node

from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage

_ATEN = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class GlobalMeanConfig:
    """`global_mean` has no options."""


class GlobalMean(Pass[GlobalMeanConfig]):
    """Replace means over fixed dimensions by `mean(x, [2, 3], keepdim=True)` on four dimensions.

    That is the one form which XNNPACK takes (its global average pool, with an INT8 kernel); any
    other mean runs outside the delegate, in float.

    Before: `mean(x, 1)`, x `[B, T, D]`. After: `reshape(mean(reshape(permute(x)), [2, 3], True))`
    with the permuted x as `[B, D, T, 1]`.
    Before: `adaptive_avg_pool2d(x, 1)`. After: `mean(x, [2, 3], True)`.

    Skipped: a mean over everything or over a dynamic dimension, one that changes the type, more
    than two kept dimensions, and pools with a larger output.
    """

    name = "global_mean"
    config_type = GlobalMeanConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.FLOAT
    to_phase = Phase.FLOAT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    if operator_name(node) not in ("mean", "adaptive_avg_pool2d") or _is_pool(node):
        return None
    found = _reduced(node)
    if isinstance(found, str):
        return Left(found)
    _write(editor, node, found)
    return Rewritten("written as a global average pool")


def _is_pool(node: Node) -> bool:
    if operator_name(node) != "mean" or len(node.args) < 3 or not node.args[2]:
        return False
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    return rank == 4 and _reduced(node) == [2, 3]


def _reduced(node: Node) -> list[int] | str:
    """Return the dimensions that are averaged, in order, or why the node stays as it is."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = source.meta["val"].shape
    rank = len(shape)
    if operator_name(node) == "adaptive_avg_pool2d":
        sizes = node.args[1]
        assert isinstance(sizes, (list, tuple))
        if list(sizes) != [1, 1]:
            return f"a pool to {list(sizes)} is no mean"
        dims = [rank - 2, rank - 1]
    else:
        given = node.args[1] if len(node.args) > 1 else None
        if not isinstance(given, (list, tuple)) or not given:
            return "it is over everything"
        if node.kwargs.get("dtype") is not None:
            return "it changes the type"
        dims = sorted(d % rank for d in given if isinstance(d, int))
    if not all(isinstance(shape[d], int) for d in dims):
        return "a dimension that it averages is dynamic"
    kept = [shape[d] for d in range(rank) if d not in dims]
    if not 1 <= len(kept) <= 2:
        return f"it keeps {len(kept)} dimensions, not one or two"
    if sum(not isinstance(size, int) for size in kept) > 1:
        return "more than one dimension is dynamic"
    return dims


def _write(editor: ProgramEditor, node: Node, dims: list[int]) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    shape = source.meta["val"].shape
    rank = len(shape)
    kept = [d for d in range(rank) if d not in dims]

    def call(target: Any, args: tuple[Any, ...], suffix: str) -> Node:
        return editor.call(target, args, parent=node, suffix=suffix, before=node)

    order = [*kept, *dims]
    value = source
    if order != list(range(rank)):
        value = call(_ATEN.permute.default, (value, order), "permute")
    if not (rank == 4 and len(kept) == 2):
        value = call(_ATEN.reshape.default, (value, _as_pictures(shape, kept, dims)), "pictures")
    value = call(_ATEN.mean.dim, (value, [2, 3], True), "mean")
    out = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    if [*value.meta["val"].shape] != [*node.meta["val"].shape]:
        value = call(_ATEN.reshape.default, (value, out), "view")
    node.replace_all_uses_with(value)
    editor.graph.erase_node(node)


def _as_pictures(shape: Any, kept: list[int], dims: list[int]) -> list[int]:
    """Return `[N, C, H, W]` for the permuted value: kept sizes first, W the rest of the reduced."""
    leading = [shape[d] if isinstance(shape[d], int) else -1 for d in kept]
    leading = leading if len(leading) == 2 else [1, *leading]
    if -1 not in leading and len(kept) == 1:
        leading = [1, int(leading[1])]
    first, *rest = (int(shape[d]) for d in dims)
    return [*leading, first, math.prod(rest)]
