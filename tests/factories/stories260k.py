"""stories260K, a Llama-2-type language model, as a user would bring it: `stories260k.py:stories`.

Weights, tokenizer and texts are those of the asset folder `stories260k-lm`; its SOURCE.md gives the
structure, the names and the tokenizer's rules.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, WORDS, CONTEXT = 64, 172, 5, 8, 4, 512, 512
IGNORED = -100
"""The label of a position that is not judged."""


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, times a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    """Causal, grouped queries, rotary positions on interleaved pairs."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.wq = nn.Linear(WIDTH, HEADS * size, bias=False)
        self.wk = nn.Linear(WIDTH, KV_HEADS * size, bias=False)
        self.wv = nn.Linear(WIDTH, KV_HEADS * size, bias=False)
        self.wo = nn.Linear(HEADS * size, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = _rotated(self.wq(x).view(batch, length, HEADS, -1).transpose(1, 2), cos, sin)
        k = _rotated(self.wk(x).view(batch, length, KV_HEADS, -1).transpose(1, 2), cos, sin)
        v = self.wv(x).view(batch, length, KV_HEADS, -1).transpose(1, 2)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(batch, length, WIDTH))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(WIDTH)
        self.attention = Attention()
        self.ffn_norm = RMSNorm(WIDTH)
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Stories(nn.Module):
    """Predict the next of 512 tokens: int64 [B, T] -> logits [B, T, 512]; the head is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, WORDS, bias=False)
        self.output.weight = self.tok_embeddings.weight
        pairs = WIDTH // HEADS // 2
        turns = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        angles = torch.outer(torch.arange(CONTEXT, dtype=torch.float32), turns)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


class Tokenizer:
    """llama2.c's byte-pair encoder: merge the adjacent pair whose union has the best score."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.words: list[bytes] = []
        self.scores: list[float] = []
        at = 4
        for _ in range(WORDS):
            score, length = struct.unpack_from("<fi", data, at)
            self.words.append(data[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self.ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Return token ids, the beginning-of-text token first."""
        ids = [self.ids[b" "]] if text else []
        for character in text:
            raw = character.encode()
            ids += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        while True:
            unions = [self.words[a] + self.words[b] for a, b in itertools.pairwise(ids)]
            best = max(
                (i for i, union in enumerate(unions) if union in self.ids),
                key=lambda i: (self.scores[self.ids[unions[i]]], -i),
                default=None,
            )
            if best is None:
                return [1, *ids]
            ids[best : best + 2] = [self.ids[unions[best]]]


def model() -> Stories:
    """Return the trained model."""
    module = Stories()
    weights = load_file(assets() / "stories260k-lm" / "stories260K.safetensors")
    weights["output.weight"] = weights["tok_embeddings.weight"]
    module.load_state_dict(weights)
    return module.eval()


def windows(texts: list[str], length: int) -> Tensor:
    """Return every text's tokens as windows of `length`, int64 [N, length]; the rest is dropped."""
    tokenizer = Tokenizer(assets() / "stories260k-lm" / "tok512.bin")
    rows = [torch.tensor(tokenizer.encode(text)) for text in texts]
    return torch.cat([r[: len(r) // length * length].reshape(-1, length) for r in rows])


def texts() -> list[str]:
    """Return the TinyStories chunks."""
    folder = assets() / "stories260k-lm"
    found: list[str] = json.loads((folder / "tinystories_100.json").read_text(encoding="utf-8"))
    return found


def labelled(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs and what comes next, [N, T] each."""
    labels = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)], dim=1)
    return tokens, labels


def perplexity(module: nn.Module, tokens: Tensor) -> float:
    """Return the perplexity of the windows, each from its own first token."""
    with torch.no_grad():
        logits = module(tokens)[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return float(loss.exp())


def stories() -> dict[str, Any]:
    """Return the trained model with its data: other stories calibrate than judge."""
    every = texts()
    return {
        "module": model(),
        "example_args": windows(every[:1], 64)[:2],
        "output_names": ("logits",),
        "calibration": windows(every[:40], 64),
        "evaluation": labelled(windows(every[60:80], 64)),
        "metric": "perplexity",
    }
