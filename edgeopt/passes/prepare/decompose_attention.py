"""Write fused attention as products and a softmax."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.errors import ConfigError
from edgeopt.ir.editor import ProgramEditor
from edgeopt.passes.prepare.attention_call import AttentionCall, is_attention
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Stage

_ATEN = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class DecomposeAttentionConfig:
    """Options of `decompose_attention`.

    Attributes:
        masked: What is added to the score of a masked position. Finite, so that it has a code,
            and so low that its softmax is 0 in float32 and float16 alike.
    """

    masked: float = -10_000.0

    def __post_init__(self) -> None:
        if not -60_000.0 <= self.masked <= -100.0:
            raise ConfigError(
                f"masked is from -60000 to -100 (finite in float16, and exp of it is 0), "
                f"not {self.masked:g}"
            )


class DecomposeAttention(Pass[DecomposeAttentionConfig]):
    """Write each `scaled_dot_product_attention` as the operators that it stands for.

    For targets whose kernels are products and softmaxes, and so that the edges between them can
    be quantized. Takes masks (boolean, additive, causal from the top left), a scale, and grouped
    queries. The scale multiplies the query: its range then shrinks by exactly that factor, so that
    the scaled query has the same codes, and it is the smaller tensor wherever there are more
    positions than channels a head.

    A mask is always added. In a row with no position left, SDPA gives zeros and this form gives
    what it would without the mask.

    Before: `scaled_dot_product_attention(q, k, v, mask)`, q [.., L, E], k [.., S, E], v [.., S, V].
    After: `matmul(softmax(matmul(q * scale, k^T) + mask), v)`.
    """

    name = "decompose_attention"
    config_type = DecomposeAttentionConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, self._rewrite)

    def _rewrite(self, editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
        if not is_attention(node):
            return None
        call = AttentionCall.of(node)
        if reason := _unsupported(call):
            return Left(reason)
        told = _told(call)
        node.replace_all_uses_with(_Writer(editor, call, self.config.masked).write())
        editor.graph.erase_node(node)
        return Rewritten(f"products and a softmax{told}")


def _unsupported(call: AttentionCall) -> str:
    """Return why the call stays as it is, or an empty string."""
    if call.dropout_p:
        return f"drops out {call.dropout_p:g} of its weights; capture in eval mode"
    if call.is_causal and not all(isinstance(size, int) for size in call.lengths):
        return "its causal mask has a dynamic size"
    return ""


def _told(call: AttentionCall) -> str:
    parts = ["a causal mask"] * call.is_causal + ["a mask"] * (call.attn_mask is not None)
    if call.repeats > 1:
        parts.append(f"{call.repeats} query heads for each key head")
    return f" ({', '.join(parts)})" if parts else ""


class _Writer:
    """Insert the operators of one call before it."""

    def __init__(self, editor: ProgramEditor, call: AttentionCall, masked: float) -> None:
        self._editor = editor
        self._call = call
        self._masked = masked

    def write(self) -> Node:
        call = self._call
        key, value = (self._repeated(n, name) for n, name in ((call.key, "k"), (call.value, "v")))
        query = self._insert("scale", _ATEN.mul.Tensor, call.query, call.factor)
        turned = self._insert("transpose", _ATEN.transpose.int, key, -2, -1)
        scores = self._insert("scores", _ATEN.matmul.default, query, turned)
        mask = self._mask()
        if mask is not None:
            scores = self._insert("mask", _ATEN.add.Tensor, scores, mask)
        weights = self._insert("softmax", _ATEN.softmax.int, scores, -1)
        return self._insert("mix", _ATEN.matmul.default, weights, value)

    def _insert(self, suffix: str, target: Any, *args: Any) -> Node:
        node = self._call.node
        return self._editor.call(target, args, parent=node, suffix=suffix, before=node)

    def _repeated(self, node: Node, name: str) -> Node:
        """Give each query head a key head: [.., H, S, E] -> [.., H * repeats, S, E]."""
        repeats = self._call.repeats
        if repeats == 1:
            return node
        rank = node.meta["val"].dim()
        apart = self._insert(f"{name}_unsqueeze", _ATEN.unsqueeze.default, node, rank - 2)
        sizes = [-1] * (rank + 1)
        sizes[rank - 2] = repeats
        wide = self._insert(f"{name}_expand", _ATEN.expand.default, apart, sizes)
        return self._insert(f"{name}_flatten", _ATEN.flatten.using_ints, wide, rank - 3, rank - 2)

    def _mask(self) -> Node | None:
        call = self._call
        if call.is_causal:
            return self._causal(*call.lengths)
        if call.attn_mask is None:
            return None
        mask: Tensor = call.attn_mask.meta["val"]
        fqn = self._editor.fqn(call.attn_mask)
        if fqn is not None:
            return self._constant(fqn)
        if mask.dtype is not torch.bool:
            return call.attn_mask
        hidden = self._insert("hidden", _ATEN.logical_not.default, call.attn_mask)
        floats = self._insert("floats", _ATEN._to_copy.default, hidden)
        floats.kwargs = {"dtype": call.query.meta["val"].dtype}
        self._editor.infer(floats)
        return self._insert("additive", _ATEN.mul.Tensor, floats, self._masked)

    def _constant(self, fqn: str) -> Node:
        """Return a stored mask in additive form; what lies below `masked` is lifted to it."""
        name = f"{fqn}_additive"
        if name in self._editor.table:
            return self._editor.placeholder(name)
        stored = self._editor.table[fqn].detach()
        if stored.dtype is torch.bool:
            return self._editor.add_buffer(name, self._additive(stored))
        return self._editor.add_buffer(name, stored.clamp(min=self._masked))

    def _causal(self, queries: int, keys: int) -> Node:
        name = f"causal_mask_{queries}x{keys}"
        mask = self._additive(torch.ones(queries, keys, dtype=torch.bool).tril())
        written = self._editor.table.get(name)
        if written is not None and torch.equal(written, mask):
            return self._editor.placeholder(name)
        return self._editor.add_buffer(name, mask)

    def _additive(self, kept: Tensor) -> Tensor:
        """Return 0 where a position is kept, and `masked` where it is not."""
        dtype = self._call.query.meta["val"].dtype
        return torch.where(kept, 0.0, self._masked).to(dtype)
