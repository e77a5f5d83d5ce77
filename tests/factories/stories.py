"""stories260K, a Llama-type language model, as a Transformers folder with tokenised stories.

    edgeopt build hf:DIR --calib stories.py:calibration --eval stories.py:evaluation

`save_folder` makes DIR from the asset folder `stories260k-lm`, whose SOURCE.md gives the mapping.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

TOKENS = 256
BOS = 1
NO_LABEL = -100

Array = np.ndarray[Any, Any]


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


def save_folder(folder: Path) -> None:
    """Write the model as `LlamaForCausalLM.save_pretrained` does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    module = LlamaForCausalLM(config)
    found = load_file(assets() / "stories260k-lm" / "stories260K.safetensors")
    state = {
        "model.embed_tokens.weight": found["tok_embeddings.weight"],
        "model.norm.weight": found["norm.weight"],
        "lm_head.weight": found["tok_embeddings.weight"],
    }
    for layer in range(5):
        old, new = f"layers.{layer}", f"model.layers.{layer}"
        for ours, theirs in (
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attention.wv", "self_attn.v_proj"),
            ("attention.wo", "self_attn.o_proj"),
        ):
            state[f"{new}.{theirs}.weight"] = found[f"{old}.{ours}.weight"]
        # llama2.c turns neighbouring pairs of a head, Transformers its two halves
        for ours, theirs, heads in (("wq", "q_proj", 8), ("wk", "k_proj", 4)):
            weight = found[f"{old}.attention.{ours}.weight"].view(heads, 4, 2, 64)
            state[f"{new}.self_attn.{theirs}.weight"] = weight.transpose(1, 2).reshape(-1, 64)
    module.load_state_dict(state)
    module.save_pretrained(folder)


def calibration() -> dict[str, Array]:
    """Return 32 story chunks."""
    chunks = json.loads((assets() / "stories260k-lm" / "tinystories_100.json").read_text())
    return _without_labels(batch([str(chunk) for chunk in chunks[:32]]))


def evaluation() -> dict[str, Array]:
    """Return the five whole stories, in pieces."""
    text = (assets() / "stories260k-lm" / "tinystories_sample5.txt").read_text(encoding="utf-8")
    return batch([story.strip() for story in text.split("<|endoftext|>") if story.strip()])


def _without_labels(data: dict[str, Array]) -> dict[str, Array]:
    return {key: value for key, value in data.items() if key != "labels"}


def batch(texts: list[str]) -> dict[str, Array]:
    """Return int64 `input_ids`, `attention_mask` and `labels` [pieces, 256].

    A label is the token that follows, in the same piece; `NO_LABEL` behind the last.
    """
    encode = Tokenizer(assets() / "stories260k-lm" / "tok512.bin").encode
    pieces: list[list[int]] = []
    for text in texts:
        ids = encode(text)
        pieces += [ids[start : start + TOKENS] for start in range(0, len(ids), TOKENS)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    shape = (len(pieces), TOKENS)
    ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, NO_LABEL, dtype=np.int64)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = piece
        mask[row, : len(piece)] = 1
        labels[row, : len(piece) - 1] = piece[1:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Tokenizer:
    """The byte-pair tokenizer of llama2.c."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self._score: dict[bytes, tuple[float, int]] = {}
        offset = 4
        for number in range(512):
            score, size = struct.unpack_from("<fi", data, offset)
            word = data[offset + 8 : offset + 8 + size]
            self._score.setdefault(word, (score, number))
            offset += 8 + size

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, from `BOS` on."""
        words = [b" "] if text else []
        for character in text:
            word = character.encode()
            words += [word] if word in self._score else [bytes([byte]) for byte in word]
        while True:
            pairs = [(self._score.get(a + b, (-np.inf, 0))[0], i) for i, (a, b) in _pairs(words)]
            best, place = max(pairs, key=lambda pair: pair[0], default=(-np.inf, 0))
            if best == -np.inf:
                break
            words[place : place + 2] = [words[place] + words[place + 1]]
        return [BOS, *(self._score[w][1] if w in self._score else w[0] + 3 for w in words)]


def _pairs(words: list[bytes]) -> Any:
    return enumerate(itertools.pairwise(words))


if __name__ == "__main__":
    import sys

    torch.manual_seed(0)
    save_folder(Path(sys.argv[1]))
