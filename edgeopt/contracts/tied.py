"""Two weights are one tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from edgeopt.contracts.contract import Contract, FileTensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def tied_names(module: nn.Module) -> frozenset[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.numel():
            groups.setdefault(parameter.data_ptr(), set()).add(name)
    return frozenset(frozenset(group) for group in groups.values() if len(group) > 1)


def tied_partners(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return FQN -> the other names of its storage, for each parameter that has any."""
    return {name: tuple(sorted(group - {name})) for group in tied_names(module) for name in group}


def tied_contracts(module: nn.Module) -> tuple[Tied, ...]:
    """Return a contract for each pair of parameters that share storage."""
    found = []
    for group in sorted(tied_names(module), key=sorted):
        first, *others = sorted(group)
        found += [Tied(first, other) for other in others]
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Tied(Contract):
    """Two weights are one tensor."""

    a: str
    b: str
    kind: ClassVar[str] = "tied"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.a, self.b)

    def check_module(self, module: nn.Module) -> str | None:
        first, second = module_tensor(module, self.a), module_tensor(module, self.b)
        if first is None or second is None:
            return f"{self.a if first is None else self.b} is gone"
        if first.data_ptr() != second.data_ptr():
            return f"{self.a} and {self.b} no longer share storage"
        return None

    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        import torch

        from edgeopt.ir.program import tensors

        for program in programs.values():
            table = tensors(program)
            both = self.a in table and self.b in table
            if both and not torch.equal(table[self.a], table[self.b]):
                return f"{self.a} and {self.b} differ"
        return None

    def check_file(self, file: FileTensors) -> str | None:
        first, second = file.tensor(self.a), file.tensor(self.b)
        if first is None or second is None:
            return None  # one tensor stands for both
        if first.shape != second.shape or bool((first != second).any()):
            return f"{self.a} and {self.b} differ in the file"
        return None


def module_tensor(module: nn.Module, fqn: str) -> Tensor | None:
    owner_name, _, leaf = fqn.rpartition(".")
    try:
        return getattr(module.get_submodule(owner_name), leaf, None)
    except AttributeError:
        return None
