"""Read a Hugging Face PEFT folder: an adapter's factors, and what it replaces whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeopt.adapters.family import Family, Trained, entry_of
from edgeopt.adapters.peft.config import LoraConfig, read_added_config, read_config, read_type
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

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|"
    r"lora_embedding_B|lora_magnitude_vector(?:\.weight)?)"
)
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "b_bias",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class LoraFactors:
    """The low-rank update of one module: `scale * B @ A`, and what belongs to it.

    Attributes:
        module: The module's name in the base that PEFT adapted.
        a: `[r, in]`; of a convolution `[r, in, *kernel]`; of an embedding `[r, rows]`.
        b: `[out, r]`; of a convolution `[out, r, 1, ...]`; of an embedding `[columns, r]`.
        scale: `alpha / r` or `alpha / sqrt(r)`.
        embedding: The module is an embedding, whose weight is `[rows, columns]`.
        b_bias: Bias of the B factor, `[out]`, or None.
        magnitude: DoRA's magnitude of each output, `[out]` (`[1, out, 1, ...]` of a convolution),
            or None.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    embedding: bool = False
    b_bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[0]


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
    added: Family | None = None
    own: Mapping[str, Any] = {}
    if source.plugin is None:
        config, ignored = read_config(folder / CONFIG)
    else:
        added = source.make(Family, "name", needs=("parts",))
        config, ignored, own = read_added_config(folder / CONFIG, added.options)
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
    parts, plain = _sorted(tensors, path, added.split if added is not None else _lora_part)
    factors = {
        name: _factors(name, found, config, path)
        if added is None
        else Trained(name, found, own, source)
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


def _lora_part(name: str) -> tuple[str, str] | None:
    """Return module and part of a factor's name; those of embeddings begin so."""
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    kind = "embedding_" if "embedding" in match["part"] else ""
    return match["module"], kind + _PARTS[match["part"]]


def _factors(
    module: str, parts: Mapping[str, Tensor], config: LoraConfig, path: Path
) -> LoraFactors:
    embedding = "embedding_a" in parts or "embedding_b" in parts
    kind = "embedding_" if embedding else ""
    stored = "lora_embedding" if embedding else "lora"
    where = f"{path}: {module}"
    for part, letter in ((f"{kind}a", "A"), (f"{kind}b", "B")):
        if part not in parts:
            raise AdapterError(f"{where}: {stored}_{letter} is missing")
    expected = {f"{kind}a", f"{kind}b"}
    expected |= {"magnitude"} if config.use_dora else set()
    expected |= {"b_bias"} if config.lora_bias and not embedding else set()
    for part in sorted(set(parts) ^ expected):
        option = "use_dora" if part == "magnitude" else "lora_bias"
        what = "is in the file" if part in parts else "is missing"
        if part not in ("magnitude", "b_bias"):
            raise AdapterError(f"{where}: has factors of an embedding and of another layer")
        raise AdapterError(f"{where}: its {part} {what}, but {option} is {part not in parts}")
    a, b = parts[f"{kind}a"], parts[f"{kind}b"]
    if a.dim() < 2 or b.dim() != a.dim() or 0 in (*a.shape, *b.shape):
        raise AdapterError(
            f"{where}: A is {list(a.shape)} and B is {list(b.shape)}; a shard was saved, not the "
            "whole adapter"
        )
    rank = config.rank(module)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(
            f"{where}: A is {list(a.shape)} and B is {list(b.shape)}, but the configuration says "
            f"rank {rank}"
        )
    return LoraFactors(
        module=module,
        a=a,
        b=b,
        scale=config.scale(module, rank),
        embedding=embedding,
        b_bias=parts.get("b_bias"),
        magnitude=parts.get("magnitude"),
    )


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
