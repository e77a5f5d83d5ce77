"""Read weights safely, and put them into a module whole or not at all."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from `.safetensors`, or from a torch file without running its code.

    A torch file may hold the state dict under `state_dict`, `model_state_dict` or `model`, and a
    `module.` before every key (data-parallel training); both are removed.

    Raises:
        ModelError: If the file is missing, damaged, of another kind, or needs code to load.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the weights as .safetensors")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as failure:
            raise ModelError(f"{path}: damaged or not safetensors: {failure}") from None
    if path.suffix not in TORCH_SUFFIXES:
        raise ModelError(f"{path}: weights are .safetensors, or a torch file (.pt, .pth)")
    return _state_dict(_load_torch(path), path)


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds more than tensors, so loading it could run code; refused: save the "
            "state dict as .safetensors"
        ) from None
    except Exception as failure:  # zip, pickle and torch readers each have errors of their own
        text = " ".join(str(failure).split())[:200]
        raise ModelError(f"{path}: damaged or not a torch file: {text}") from None


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    if not isinstance(data, Mapping) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ModelError(f"{path}: holds no state dict; save model.state_dict() as .safetensors")
    if data and all(str(key).startswith("module.") for key in data):
        return {str(key).removeprefix("module."): value for key, value in data.items()}
    return {str(key): value for key, value in data.items()}


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module, cast to its types; every key must be there and fit.

    Batch norm's `num_batches_tracked`, which no inference reads, may be missing.

    Raises:
        ModelError: For missing, unknown or misshapen tensors (nothing is copied then), or values
            that are not finite.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in tensors and not k.endswith(".num_batches_tracked")]
    unknown = [key for key in tensors if key not in own]
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    parts = [_count(missing, "missing"), _count(unknown, "unknown")]
    if wrong:
        have, want = list(tensors[wrong[0]].shape), list(own[wrong[0]].shape)
        parts.append(f"{_count(wrong, 'of another shape')}: {have}, the model has {want}")
    if any(parts):
        text = "; ".join(part for part in parts if part)
        raise ModelError(f"{where}: does not fit the model: {text}")
    check_finite(tensors, where)
    with torch.no_grad():
        for key, value in own.items():
            if key in tensors:
                value.copy_(tensors[key])
    # A cast to a narrower type may overflow.
    check_finite(module.state_dict(), where)


def _count(keys: Sequence[str], what: str) -> str:
    return f"{len(keys)} {what}, first {keys[0]!r}" if keys else ""


def check_finite(weights: nn.Module | Mapping[str, Tensor], where: str = "model") -> None:
    """Refuse weights with NaN or Inf.

    Raises:
        ModelError: Naming the first tensor that has one.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.is_meta:
            raise ModelError(f"{where}: {name} has no values (meta device); load the weights first")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ModelError(f"{where}: {name} holds NaN or Inf in {bad} of {value.numel()} values")
