"""Contracts: facts that one pass establishes and every later one keeps.

Each checks itself on a module, on programs, and on an exported file, and answers with None or
with a sentence that says what is wrong.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from torch.export import ExportedProgram


class FileTensors(Protocol):
    """The tensors of an exported file, by the FQN that they had in the model."""

    def tensor(self, fqn: str) -> np.ndarray[Any, Any] | None:
        """Return the stored values in torch's layout (codes where quantized), or None."""
        ...

    def edge_dtype(self, edge: str) -> str | None:
        """Return the stored type of a quantized edge's codes (`int8`), or None if not quantized."""
        ...


@dataclasses.dataclass(frozen=True)
class Contract(abc.ABC):
    """A fact about one or more sites."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def sites(self) -> tuple[str, ...]:
        """The FQNs, or edges, that it speaks of."""

    @abc.abstractmethod
    def check_module(self, module: nn.Module) -> str | None:
        """Return what is wrong on a module, or None."""

    @abc.abstractmethod
    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        """Return what is wrong on captured programs, or None."""

    @abc.abstractmethod
    def check_file(self, file: FileTensors) -> str | None:
        """Return what is wrong in an exported file, or None."""

    def to_json(self) -> dict[str, Any]:
        """Return the contract as plain data, `kind` first."""
        return {"kind": self.kind, **_plain(dataclasses.asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
