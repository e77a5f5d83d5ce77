"""LoRA, rsLoRA and DoRA as PEFT saves them: the factors of each module."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from edgeopt.adapters.family import Read, Reader
from edgeopt.adapters.peft.config import LoraConfig, read_config
from edgeopt.errors import AdapterError

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


class Lora(Reader):
    """Reads what PEFT calls LORA."""

    name: ClassVar[str] = "LORA"

    def read_config(self, path: Path) -> tuple[LoraConfig, dict[str, str], dict[str, Any]]:
        return (*read_config(path), {})

    def split(self, name: str) -> tuple[str, str] | None:
        """Return module and part of a factor's name; those of embeddings begin so."""
        match = _FACTOR.fullmatch(name)
        if match is None:
            return None
        kind = "embedding_" if "embedding" in match["part"] else ""
        return match["module"], kind + _PARTS[match["part"]]

    def factors(self, parts: Mapping[str, Tensor], read: Read) -> LoraFactors:
        return _factors(read.module, parts, read.config, read.path)


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
