"""Write fused attention as products over flat heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.ir import edges
from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.passes.prepare.attention_call import AttentionCall, is_attention
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage

_ATEN = torch.ops.aten
MASKED = -1e9
"""Added to a masked score; `exp` of it is 0 in float32, and no sum with a score overflows."""


@dataclasses.dataclass(frozen=True)
class FlattenAttentionConfig:
    """`flatten_attention` has no options."""


class FlattenAttention(Pass[FlattenAttentionConfig]):
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

    name = "flatten_attention"
    config_type = FlattenAttentionConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.FLOAT
    to_phase = Phase.FLOAT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    if not is_attention(node):
        return None
    call = AttentionCall.of(node)
    if reason := _unsupported(call, editor):
        return Left(reason)
    _Writer(editor, call).write()
    return Rewritten("written as product, softmax, product")


def _unsupported(call: AttentionCall, editor: ProgramEditor) -> str:
    """Return why the call stays as it is, or an empty string."""
    if call.dropout_p:
        return "it has dropout"
    shapes = [tuple(n.meta["val"].shape) for n in (call.query, call.key, call.value)]
    if len({len(s) for s in shapes}) != 1 or not 3 <= len(shapes[0]) <= 4:
        return f"query, key and value have {[len(s) for s in shapes]} dimensions, not 3 or 4"
    fixed = [size for s in shapes for size in s[1 if len(s) == 4 else 0 :]]
    if len(shapes[0]) == 3:  # the first dimension may be the batch
        fixed = [size for s in shapes for size in s[1:]]
    if not all(isinstance(size, int) for size in fixed):
        return "a size other than the batch is dynamic"
    query, key, value = shapes
    leading = [[str(size) for size in s[: len(s) - 2]] for s in (key, value)]
    if leading[0] != leading[1] or str(query[0]) != str(key[0]):
        return "query, key and value are broadcast against each other"
    if len(query) == 4 and int(query[1]) % int(key[1]):
        return f"{query[1]} query heads are no multiple of {key[1]} key heads"
    mask = editor.tensor(call.attn_mask)
    if mask is not None and mask.dtype == torch.bool and not bool(mask.any(-1).all()):
        return "its mask leaves a row empty"
    if call.attn_mask is not None and call.is_causal:
        return "it has a mask and is causal"
    return ""


class _Writer:
    """Write one call's products before it, and put them in its place."""

    def __init__(self, editor: ProgramEditor, call: AttentionCall) -> None:
        self._editor = editor
        self._attention = call

    def write(self) -> None:
        call = self._attention
        query, key, value = (n.meta["val"].shape for n in (call.query, call.key, call.value))
        flat = len(query) == 3  # [N, T, D]: no heads
        heads, groups = (1, 1) if flat else (int(query[-3]), int(key[-3]))
        rows, length = int(query[-2]), int(key[-2])
        tall = heads // groups * rows
        q = self._view(call.query, "q", (-1, tall, int(query[-1])))
        k = self._view(self._swapped(call.key), "k", (-1, int(key[-1]), length))
        v = self._view(call.value, "v", (-1, length, int(value[-1])))
        q = self._call(_ATEN.mul.Tensor, (q, self._number(call.factor)), "scale")
        scores = self._call(_ATEN.bmm.default, (q, k), "scores")
        apart = (-1, rows, length) if flat else (-1, heads, rows, length)
        scores = self._masked(scores, apart)
        shares = self._call(_ATEN.softmax.int, (scores, -1), "softmax")
        shares = self._view(shares, "shares", (-1, tall, length))
        mixed = self._call(_ATEN.bmm.default, (shares, v), "mixed")
        out = (*apart[:-1], int(value[-1]))
        call.node.replace_all_uses_with(self._view(mixed, "out", out))
        self._editor.graph.erase_node(call.node)

    def _call(self, target: Callable[..., Any], args: tuple[Any, ...], suffix: str) -> Node:
        node = self._attention.node
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
        site = edges.require_site(self._attention.node)
        base = f"{site.fqn + '.' if site.fqn else ''}attention_{site.index}_{name}"
        return self._editor.add_buffer(base, value)

    def _masked(self, scores: Node, apart: tuple[int, ...]) -> Node:
        """Add the mask to the scores, viewed as `[..., H, T, S]`."""
        call = self._attention
        if call.attn_mask is None and not call.is_causal:
            return scores
        mask = self._additive(*apart[-2:])
        return self._call(_ATEN.add.Tensor, (self._view(scores, "heads", apart), mask), "mask")

    def _additive(self, rows: int, length: int) -> Node:
        """Return the mask as numbers that are added to the scores."""
        call = self._attention
        if call.attn_mask is None:
            kept = torch.ones(rows, length, dtype=torch.bool).tril()
            return self._buffer("causal", torch.where(kept, 0.0, MASKED))
        stored = self._editor.tensor(call.attn_mask)
        if stored is not None:
            added = torch.where(stored, 0.0, MASKED) if stored.dtype == torch.bool else stored
            return self._buffer("mask", added.float().clamp(min=MASKED))
        if call.attn_mask.meta["val"].dtype != torch.bool:
            return call.attn_mask
        return self._call(_ATEN.where.Scalar, (call.attn_mask, 0.0, MASKED), "added")


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
