"""The arguments of one `scaled_dot_product_attention`, by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch.fx import Node

from edgeopt.ir.edges import operator_name

NAME = "scaled_dot_product_attention"


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call: query [.., L, E], key [.., S, E], value [.., S, V]."""

    node: Node
    query: Node
    key: Node
    value: Node
    attn_mask: Node | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @staticmethod
    def of(node: Node) -> AttentionCall:
        """Read a call's arguments."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given: dict[str, Any] = {a.name: value for a, value in zip(schema, node.args, strict=False)}
        given |= node.kwargs
        return AttentionCall(node, **given)

    @property
    def lengths(self) -> tuple[Any, Any]:
        """Numbers of query and key positions: L, S."""
        return self.query.meta["val"].shape[-2], self.key.meta["val"].shape[-2]

    @property
    def repeats(self) -> int:
        """Query heads that share one key head."""
        if not self.enable_gqa:
            return 1
        return int(self.query.meta["val"].shape[-3]) // int(self.key.meta["val"].shape[-3])

    @property
    def factor(self) -> float:
        """What the scores are scaled by; 1/sqrt(E) unless given."""
        if self.scale is not None:
            return float(self.scale)
        return 1.0 / math.sqrt(int(self.query.meta["val"].shape[-1]))


def is_attention(node: Node) -> bool:
    """Say whether a node is such a call."""
    return node.op == "call_function" and operator_name(node) == NAME
