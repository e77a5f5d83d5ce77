"""Read weights safely, and put them into a module whole or not at all."""

from __future__ import annotations

import pickle
import warnings
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it, in one line
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

    A name may be missing if its weight is tied to one that is there, or if it is batch norm's
    `num_batches_tracked`, which no inference reads.

    Raises:
        ModelError: For missing, unknown or misshapen tensors (nothing is copied then), or values
            that are not finite.
    """
    own = module.state_dict()
    given = {_place(own[key]) for key in own if key in tensors}
    missing = [
        key
        for key in own
        if key not in tensors
        and _place(own[key]) not in given
        and not key.endswith(".num_batches_tracked")
    ]
    unknown = [key for key in tensors if key not in own]
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    parts = [_count(missing, "missing"), _count(unknown, "unknown")]
    if wrong:
        have, want = list(tensors[wrong[0]].shape), list(own[wrong[0]].shape)
        parts.append(f"{_count(wrong, 'of another shape')}: {have}, the model has {want}")
    if any(parts):
        text = "; ".join(part for part in parts if part)
        raise ModelError(f"{where}: does not fit the model: {text}")
    # Checked after the cast, since a cast to a narrower type may overflow.
    cast = {key: tensors[key].to(own[key].dtype) for key in own if key in tensors}
    _check(cast, _parameter_names(module), where)
    with torch.no_grad():
        for key, value in cast.items():
            own[key].copy_(value)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _count(keys: Sequence[str], what: str) -> str:
    return f"{len(keys)} {what}, first {keys[0]!r}" if keys else ""


def check_finite(module: nn.Module, where: str = "model") -> None:
    """Refuse weights with NaN or Inf. A buffer may hold -Inf, as attention masks do.

    Raises:
        ModelError: Naming the first tensor that has one.
    """
    _check(module.state_dict(), _parameter_names(module), where)


def _parameter_names(module: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))


def _check(tensors: Mapping[str, Tensor], parameters: frozenset[str], where: str) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.is_meta:
            raise ModelError(f"{where}: {name} has no values (meta device); load the weights first")
        if not value.is_floating_point():
            continue
        bad = ~torch.isfinite(value)
        if name not in parameters:
            bad &= value != -torch.inf
        if bool(bad.any()):
            raise ModelError(
                f"{where}: {name} holds NaN or Inf in {int(bad.sum())} of {value.numel()} values"
            )
