"""Write fused attention as two batched products and a softmax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt import edges
from edgeopt.edges import operator_name, require_site
from edgeopt.pipeline import Pass, PassResult
from edgeopt.program import ProgramEditor
from edgeopt.state import Effect, ModelState, PassContext, Phase, Stage

_ATEN = torch.ops.aten
MASKED = -1e9
"""Added to a masked score; `exp` of it is 0 in float32, and no sum with a score overflows."""


@dataclasses.dataclass(frozen=True)
class DecomposeAttentionConfig:
    """`decompose_attention` has no options."""


class DecomposeAttention(Pass[DecomposeAttentionConfig]):
    """Replace `scaled_dot_product_attention` by products over flat heads.

    XNNPACK has no fused attention: the operator's own decomposition leaves a guard against rows
    that are masked throughout (compare, any, where) and copies of every head outside the delegate,
    which costs 1.6 to 1.75 times the latency of a small vision transformer. The products are
    written on three dimensions, so that no expand is needed; grouped queries (fewer key heads than
    query heads) become more rows of one product.

    Before: `attention(q, k, v)`, q `[..., H, T, D]`, k `[..., G, S, D]`, v `[..., G, S, E]`.
    After: `bmm(softmax(bmm(scale * q', k'^T) + mask), v')` with q' `[N*G, (H/G)*T, D]`,
    k' `[N*G, S, D]`, v' `[N*G, S, E]`, viewed as `[..., H, T, E]`.

    A causal mask and a boolean one become numbers that are added. In a row that a mask leaves
    empty, torch gives zeros and this form the mean of the values; a stored mask with such a row is
    skipped, one that the user passes in must not have any. Skipped as well: dropout, and sizes
    other than the batch that are dynamic.
    """

    name = "decompose_attention"
    config_type = DecomposeAttentionConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.FLOAT
    to_phase = Phase.FLOAT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        programs: dict[str, ExportedProgram] = {}
        changes: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for method, exported in state.carrier_programs.items():
            programs[method] = _rewrite(exported, changes, skipped)
        if not changes:
            programs = dict(state.carrier_programs)
        return PassResult(state.with_programs(programs), changes, skipped)


@dataclasses.dataclass(frozen=True)
class _Attention:
    """The arguments of one call, by name."""

    node: Node
    q: Node
    k: Node
    v: Node
    mask: Node | None
    causal: bool
    scale: float

    @property
    def shape(self) -> tuple[Any, ...]:
        """`[..., H, T, D]` of the query."""
        return tuple(self.q.meta["val"].shape)

    @property
    def groups(self) -> int:
        """Heads of key and value."""
        return int(self.k.meta["val"].shape[-3])


def _rewrite(
    exported: ExportedProgram, changes: dict[str, str], skipped: dict[str, str]
) -> ExportedProgram:
    editor = ProgramEditor(exported)
    found = [
        n
        for n in editor.graph.nodes
        if n.op == "call_function" and operator_name(n) == "scaled_dot_product_attention"
    ]
    for node in found:
        address = require_site(node).address
        parts = _parts(node)
        reason = parts if isinstance(parts, str) else _reason(parts, editor)
        if reason:
            skipped[address] = reason
            continue
        assert isinstance(parts, _Attention)
        _Writer(editor, parts).write()
        changes[address] = "written as product, softmax, product"
    return editor.finish()


def _parts(node: Node) -> _Attention | str:
    """Return the arguments, or why the call stays as it is."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("dropout_p", 0.0):
        return "it has dropout"
    q, k, v = (given[name] for name in ("query", "key", "value"))
    assert isinstance(q, Node)
    assert isinstance(k, Node)
    assert isinstance(v, Node)
    mask = given.get("attn_mask")
    scale = given.get("scale")
    width = q.meta["val"].shape[-1]
    if not isinstance(scale, (int, float)):
        scale = 1 / math.sqrt(int(width))
    return _Attention(
        node,
        q,
        k,
        v,
        mask if isinstance(mask, Node) else None,
        bool(given.get("is_causal", False)),
        float(scale),
    )


def _reason(parts: _Attention, editor: ProgramEditor) -> str:
    shapes = [tuple(n.meta["val"].shape) for n in (parts.q, parts.k, parts.v)]
    if len({len(s) for s in shapes}) != 1 or not 3 <= len(shapes[0]) <= 4:
        return f"query, key and value have {[len(s) for s in shapes]} dimensions, not 3 or 4"
    fixed = [size for s in shapes for size in s[1 if len(s) == 4 else 0 :]]
    if len(shapes[0]) == 3:  # the first dimension may be the batch
        fixed = [size for s in shapes for size in s[1:]]
    if not all(isinstance(size, int) for size in fixed):
        return "a size other than the batch is dynamic"
    if len(shapes[0]) == 4 and int(shapes[0][1]) % int(shapes[1][1]):
        return f"{shapes[0][1]} query heads are no multiple of {shapes[1][1]} key heads"
    mask = editor.tensor(parts.mask)
    if mask is not None and mask.dtype == torch.bool and not bool(mask.any(-1).all()):
        return "its mask leaves a row empty"
    if parts.mask is not None and parts.causal:
        return "it has a mask and is causal"
    return ""


class _Writer:
    """Write one call's products before it, and put them in its place."""

    def __init__(self, editor: ProgramEditor, parts: _Attention) -> None:
        self._editor = editor
        self._parts = parts

    def write(self) -> None:
        parts = self._parts
        *_, rows, depth = parts.shape
        keys, values = (int(n.meta["val"].shape[-1]) for n in (parts.k, parts.v))
        length = int(parts.k.meta["val"].shape[-2])
        heads = int(parts.shape[-3]) if len(parts.shape) == 4 else 1
        groups = parts.groups if len(parts.shape) == 4 else 1
        tall = heads // groups * int(rows)
        q = self._view(parts.q, "q", (-1, tall, int(depth)))
        k = self._view(self._swapped(parts.k), "k", (-1, keys, length))
        v = self._view(parts.v, "v", (-1, length, values))
        q = self._call(_ATEN.mul.Tensor, (q, self._number(parts.scale)), "scale")
        scores = self._call(_ATEN.bmm.default, (q, k), "scores")
        scores = self._masked(scores, heads, int(rows), length)
        shares = self._call(_ATEN.softmax.int, (scores, -1), "softmax")
        shares = self._view(shares, "shares", (-1, tall, length))
        mixed = self._call(_ATEN.bmm.default, (shares, v), "mixed")
        out = (-1, int(rows), values) if len(parts.shape) == 3 else (-1, heads, int(rows), values)
        parts.node.replace_all_uses_with(self._view(mixed, "out", out))
        self._editor.graph.erase_node(parts.node)

    def _call(self, target: Callable[..., Any], args: tuple[Any, ...], suffix: str) -> Node:
        node = self._parts.node
        return self._editor.call(target, args, parent=node, suffix=suffix, before=node)

    def _view(self, source: Node, suffix: str, shape: tuple[int, ...]) -> Node:
        """Return a reshape, or the value itself where it has the shape already."""
        known = tuple(source.meta["val"].shape)
        same = len(known) == len(shape) and all(
            wanted in (-1, size) for size, wanted in zip(known, shape, strict=True)
        )
        return source if same else self._call(_ATEN.reshape.default, (source, list(shape)), suffix)

    def _swapped(self, k: Node) -> Node:
        """Return the key with its last two dimensions exchanged; two permutations become one."""
        rank = k.meta["val"].dim()
        order = [*range(rank - 2), rank - 1, rank - 2]
        source = k
        if k.op == "call_function" and operator_name(k) in ("transpose", "permute"):
            inner = _order(k, rank)
            argument = k.args[0]
            assert isinstance(argument, Node)
            source, order = argument, [inner[i] for i in order]
        return self._call(_ATEN.permute.default, (source, order), "k^T")

    def _number(self, value: float) -> Node:
        return self._buffer("scale", torch.tensor([value], dtype=torch.float32))

    def _buffer(self, name: str, value: Tensor) -> Node:
        site = edges.require_site(self._parts.node)
        base = f"{site.fqn + '.' if site.fqn else ''}attention_{site.index}_{name}"
        return self._editor.add_buffer(base, value)

    def _masked(self, scores: Node, heads: int, rows: int, length: int) -> Node:
        parts = self._parts
        if parts.mask is None and not parts.causal:
            return scores
        mask = self._additive(rows, length)
        shape = (-1, heads, rows, length) if len(parts.shape) == 4 else (-1, rows, length)
        scores = self._view(scores, "heads", shape)
        return self._call(_ATEN.add.Tensor, (scores, mask), "mask")

    def _additive(self, rows: int, length: int) -> Node:
        """Return the mask as numbers that are added to the scores."""
        parts = self._parts
        if parts.mask is None:
            kept = torch.ones(rows, length, dtype=torch.bool).tril()
            return self._buffer("causal", torch.where(kept, 0.0, MASKED))
        stored = self._editor.tensor(parts.mask)
        if stored is not None:
            added = torch.where(stored, 0.0, MASKED) if stored.dtype == torch.bool else stored
            return self._buffer("mask", added.float().clamp(min=MASKED))
        if parts.mask.meta["val"].dtype != torch.bool:
            return parts.mask
        return self._call(_ATEN.where.Scalar, (parts.mask, 0.0, MASKED), "added")


def _order(node: Node, rank: int) -> list[int]:
    """Return the permutation that a transpose or permute stands for."""
    if operator_name(node) == "permute":
        dims = node.args[1]
        assert isinstance(dims, (list, tuple))
        return [d % rank for d in dims if isinstance(d, int)]
    order = list(range(rank))
    first, second = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    return order
