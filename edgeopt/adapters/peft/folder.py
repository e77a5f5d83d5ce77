"""Read a Hugging Face PEFT folder: an adapter's factors, and what it replaces whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgeopt.adapters.family import Read, Trained, entry_of, reader_of
from edgeopt.adapters.peft.config import LoraConfig, read_type
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.errors import AdapterError, ModelError
from edgeopt.files import sha256
from edgeopt.models.weights import read_weights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
MAX_NAME = 256
COUNTER = ".num_batches_tracked"
"""Batch norm's count, which no inference reads."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as read.

    Attributes:
        name: The folder's name.
        folder: Where it was read.
        config: What of its configuration matters.
        factors: Module name in PEFT's base -> its low-rank update, or what a plug-in's family
            trained for it.
        whole: Tensor name in PEFT's base -> a value that replaces the base's.
        in_place: Those of `whole` that PEFT loads into the base itself (a trained bias, a saved
            embedding), so that a tied partner changes with it; the others are copies.
        unread: Keys that PEFT saves and computes without, such as an original beside its copy.
        ignored: Configuration keys that are set and change no weight -> why.
        sha256: File -> SHA-256.
    """

    name: str
    folder: Path
    config: LoraConfig
    factors: Mapping[str, LoraFactors | Trained]
    whole: Mapping[str, Tensor]
    in_place: frozenset[str]
    unread: tuple[str, ...]
    ignored: Mapping[str, str]
    sha256: Mapping[str, str]


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT folder.

    Raises:
        AdapterError: If a file is missing, damaged or pickled, if the method cannot be fused, or
            if the tensors are not what the configuration says.
        PluginError: If its family is a plug-in's, which is broken.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise AdapterError(f"{folder}: {what}; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    source = entry_of(read_type(folder / CONFIG), str(folder / CONFIG))
    reader = reader_of(source)
    with source.guarded(f"{folder}: cannot be read"):
        config, ignored, own = reader.read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLED).exists():
            raise AdapterError(
                f"{folder / PICKLED}: is pickled, so loading it could run code; refused: save the "
                f"adapter as {WEIGHTS}"
            )
        raise AdapterError(f"{folder}: holds no {WEIGHTS}")
    try:
        tensors = read_weights(path)
    except ModelError as failure:
        raise AdapterError(str(failure)) from None
    with source.guarded(f"{path}: cannot be read"):
        parts, plain = _sorted(tensors, path, reader.split)
        factors = {
            name: reader.factors(found, Read(name, config, own, source, path))
            for name, found in sorted(parts.items())
        }
    unread = tuple(key for key in sorted(plain) if _unread(key, ignored))
    whole, in_place = _whole({k: v for k, v in plain.items() if k not in unread}, config, path)
    if not factors and not whole:
        raise AdapterError(f"{path}: holds no tensor")
    return Adapter(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        factors=factors,
        whole=whole,
        in_place=in_place,
        unread=unread,
        ignored=ignored,
        sha256={name: sha256(folder / name) for name in (CONFIG, WEIGHTS)},
    )


def _sorted(
    tensors: Mapping[str, Tensor], path: Path, split: Callable[[str], tuple[str, str] | None]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the factors by module and part, and the rest.

    Args:
        tensors: What the file holds.
        path: The file.
        split: Told a tensor's name, its module and part, or None: it is no factor.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for key, value in sorted(tensors.items()):
        if len(key) > MAX_NAME:
            raise AdapterError(f"{path}: a key of {len(key)} characters is refused")
        if value.dtype not in _FLOATS and not key.endswith(COUNTER):
            raise AdapterError(f"{path}: {key} is {value.dtype}; factors are floating numbers")
        if not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise AdapterError(f"{path}: {key} holds NaN or Inf in {bad} of {value.numel()} values")
        if not key.startswith(PREFIX):
            raise AdapterError(f"{path}: key {key!r} does not begin with {PREFIX!r}")
        name = key.removeprefix(PREFIX)
        found = split(name)
        if found is None:
            plain[name] = value
        else:
            module, part = found
            # inside PEFT's wrapper lies the output projection of nn.MultiheadAttention
            parts.setdefault(module.replace(".base_layer.", "."), {})[part] = value
    return parts, plain


def _whole(
    plain: Mapping[str, Tensor], config: LoraConfig, path: Path
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Return the tensors that replace the base's, and the names of those loaded in place."""
    whole: dict[str, Tensor] = {}
    in_place: set[str] = set()
    for key, value in sorted(plain.items()):
        name = f".{key}".replace(".modules_to_save.", ".").replace(".base_layer.", ".")[1:]
        if name in whole and not torch.equal(whole[name], value):
            raise AdapterError(f"{path}: {name} is there twice, with different values")
        whole[name] = value
        owner = name.rpartition(".")[0]
        if not config.copies(owner):
            in_place.add(name)
    return whole, frozenset(in_place)


def _unread(key: str, ignored: Mapping[str, str]) -> bool:
    """Whether PEFT saves this and computes without it once it is trained."""
    velora = "velora_config" in ignored and key.endswith(".lora_velora_embed")
    return velora or key.endswith(COUNTER) or ".original_module." in f".{key}"
