"""A small language model over bytes, of the Llama kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, then scale (Zhang and Sennrich 2019, equation 4).

    Written as ONNX Runtime's fusion to SimplifiedLayerNormalization wants it: ONNX has an operator
    of its own only from opset 23.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


Rope = tuple[Tensor, Tensor]


class RotaryEmbedding(nn.Module):
    """Angles that grow with the position, one for each pair of features.

    Feature i is paired with i + head_dim / 2 (the halves layout of GPT-NeoX and Llama), at
    frequency `base ** (-2 i / head_dim)` (Su et al. 2021, equation 15).
    """

    def __init__(self, head_dim: int, context: int, base: float = 10000.0) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        cos, sin = angle.cos().float(), angle.sin().float()
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        # The sign of the exchanged halves stands in the table, which saves a negation a call.
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, tokens: int, start: int = 0) -> Rope:
        """Return cosine and signed sine, float32 [tokens, head_dim], from position `start` on."""
        return self.cos[start : start + tokens], self.sin[start : start + tokens]


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the feature pairs of [B, heads, T, head_dim] by the angles of their positions."""
    low, high = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat((high, low), dim=-1) * rope[1]


class Attention(nn.Module):
    """Causal grouped-query attention, [B, T, D] -> [B, T, D] (Ainslie et al. 2023)."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, [B, heads or kv_heads, T, head_dim], q and k rotated."""
        batch, tokens, _ = x.shape
        q, k, v = (
            proj(x).reshape(batch, tokens, count, self.head_dim).transpose(1, 2)
            for proj, count in (
                (self.q_proj, self.heads),
                (self.k_proj, self.kv_heads),
                (self.v_proj, self.kv_heads),
            )
        )
        return rotate(q, rope), rotate(k, rope), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Mix v by the attention of q to k; each group of query heads shares one key head."""
        group = self.heads // self.kv_heads
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        return self.attend(*self.project(x, rope), causal=True)


class SwiGLU(nn.Module):
    """A gated MLP, [B, T, D] -> [B, T, D] (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A pre-norm decoder block."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads, kv_heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class ByteLM(nn.Module):
    """Predict the next byte: int64 [B, T] -> logits float32 [B, T, 256], T up to `context`.

    The head reads the embedding's table. Positions right of a token never change its logits.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
        kv_heads: int = 2,
        hidden: int = 512,
        context: int = 256,
        vocabulary: int = 256,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rotary = RotaryEmbedding(width // heads, context)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rope = self.rotary(tokens.shape[1])
        for block in self.blocks:
            x = block(x, rope)
        return self.head(self.norm(x))
