"""The rows of a projection are equal heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from edgeopt.contracts.contract import Contract, FileTensors
from edgeopt.contracts.tied import module_tensor

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclasses.dataclass(frozen=True)
class HeadGroups(Contract):
    """The rows of a projection are `heads` equal blocks; packed projections list their parts."""

    fqn: str
    heads: int
    parts: int = 1
    kind: ClassVar[str] = "head-groups"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.fqn,)

    def check_module(self, module: nn.Module) -> str | None:
        weight = module_tensor(module, self.fqn)
        return f"{self.fqn} is gone" if weight is None else self._check(weight.shape[0])

    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        from edgeopt.ir.program import tensors

        for program in programs.values():
            weight = tensors(program).get(self.fqn)
            found = f"{self.fqn} is gone" if weight is None else self._check(weight.shape[0])
            if found:
                return found
        return None

    def check_file(self, file: FileTensors) -> str | None:
        values = file.tensor(self.fqn)
        return f"{self.fqn} is not in the file" if values is None else self._check(values.shape[0])

    def _check(self, rows: int) -> str | None:
        if rows % (self.heads * self.parts):
            return f"{rows} rows of {self.fqn} are no {self.parts} x {self.heads} equal heads"
        return None
