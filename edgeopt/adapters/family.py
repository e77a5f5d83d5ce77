"""What a family of adapters is: which tensors its file holds, and what they do to a layer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta
from edgeopt.adapters.peft.config import LoraConfig, read_added_config
from edgeopt.analysis.layers import Layer
from edgeopt.errors import AdapterError
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import ADAPTERS
from edgeopt.registry.lookup import find, names


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read of a folder before the tensors of one module.

    Attributes:
        module: The module's name in the base that PEFT adapted.
        config: What of the configuration all families have.
        options: What of it the family reads beside.
        source: The family's entry.
        path: The file of the tensors.
    """

    module: str
    config: LoraConfig
    options: Mapping[str, Any]
    source: Entry
    path: Path


class Reader(abc.ABC):
    """How the folders of one `peft_type` are read.

    Attributes:
        name: The `peft_type` in `adapter_config.json`.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def read_config(self, path: Path) -> tuple[LoraConfig, dict[str, str], dict[str, Any]]:
        """Return the configuration, keys that are set and ignored -> why, and the family's own.

        Raises:
            AdapterError: If it is missing or damaged, or sets what cannot be fused.
        """

    @abc.abstractmethod
    def split(self, name: str) -> tuple[str, str] | None:
        """Return module and part of a tensor's name, or None if it is none of the family's."""

    @abc.abstractmethod
    def factors(self, parts: Mapping[str, Tensor], read: Read) -> Any:
        """Return what the adapter trained for one module; `deltas.families` makes deltas of it.

        Raises:
            AdapterError: If the tensors are not what the configuration says.
        """


class Family(Reader):
    """Adapters of one `peft_type` in a form of their own; what a plug-in adds.

    Attributes:
        parts: What its tensors' names end with, after the module's name and a dot.
        options: Keys of its configuration that it reads; another one that is on is refused.
    """

    parts: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def deltas(
        self, tensors: Mapping[str, Tensor], options: Mapping[str, Any], layer: Layer, where: str
    ) -> dict[str, Delta]:
        """Return the layer's tensor -> what the adapter does to it, the weight first.

        Args:
            tensors: Part -> its tensor, of one module.
            options: Those keys of `options` that the configuration has.
            layer: The layer that they are for.
            where: Folder and module, to begin a message with.

        Raises:
            AdapterError: If they are of another kind of layer or another shape.
        """

    def read_config(self, path: Path) -> tuple[LoraConfig, dict[str, str], dict[str, Any]]:
        return read_added_config(path, self.options)

    def factors(self, parts: Mapping[str, Tensor], read: Read) -> Trained:
        return Trained(read.module, parts, read.options, read.source)

    def split(self, name: str) -> tuple[str, str] | None:
        for part in self.parts:
            if name.endswith(f".{part}"):
                return name.removesuffix(f".{part}"), part
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What an adapter of such a family trained for one module.

    Attributes:
        module: The module's name in the base that PEFT adapted.
        tensors: Part -> its tensor.
        options: What of the configuration the family reads.
        source: The family's entry.
    """

    module: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    source: Entry

    def deltas(self, layer: Layer, where: str) -> dict[str, Delta]:
        """Return the layer's tensor -> what the adapter does to it, the weight first.

        Raises:
            AdapterError: If the family cannot take the layer.
            PluginError: If the family fails.
        """
        family: Family = self.source.make(Family, "name", needs=("parts",))
        with self.source.guarded(where):
            return family.deltas(self.tensors, self.options, layer, where)


def entry_of(peft_type: object, where: str) -> Entry:
    """Return the entry of an adapter's family.

    Raises:
        AdapterError: If there is none.
        PluginError: If two packages claim it.
    """
    known = names(ADAPTERS)
    if not isinstance(peft_type, str) or peft_type not in known:
        raise AdapterError(
            f"{where}: peft_type is {peft_type!r}; only {', '.join(known)} adapters can be fused"
        )
    return find(ADAPTERS, peft_type)


def reader_of(source: Entry) -> Reader:
    """Return what reads the folders of an adapter family.

    Raises:
        PluginError: If a plug-in's does not import, or lacks what it must have.
    """
    found = source.load()
    needs = ("parts",) if isinstance(found, type) and issubclass(found, Family) else ()
    reader: Reader = source.make(Reader, "name", needs=needs)
    return reader
