"""What a family of adapters is: which tensors its file holds, and what they do to a layer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta
from edgeopt.analysis.layers import Layer
from edgeopt.errors import AdapterError
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import ADAPTERS
from edgeopt.registry.lookup import find, names


class Family(abc.ABC):
    """Adapters of one `peft_type`, as a plug-in adds them; LoRA and DoRA are edgeopt's own.

    Attributes:
        name: The `peft_type` in `adapter_config.json`.
        parts: What its tensors' names end with, after the module's name and a dot.
        options: Keys of its configuration that it reads; another one that is on is refused.
    """

    name: ClassVar[str]
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

    def split(self, name: str) -> tuple[str, str] | None:
        """Return module and part of a tensor's name, or None if it is none of the family's."""
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
