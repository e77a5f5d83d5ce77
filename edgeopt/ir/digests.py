"""Digests: of tensors, and of plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.files import to_plain


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data."""
    text = json.dumps(to_plain(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, names included."""
    return digest_tensors(module.state_dict(keep_vars=True).items())


def digest_tensors(items: Iterable[tuple[str, object]]) -> str:
    """Return the SHA-256 over named tensors: name, type, shape and bytes, sorted by name."""
    total = hashlib.sha256()
    for name, value in sorted(items, key=lambda item: item[0]):
        if not isinstance(value, Tensor):
            continue
        data = value.detach().cpu().contiguous()
        total.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
