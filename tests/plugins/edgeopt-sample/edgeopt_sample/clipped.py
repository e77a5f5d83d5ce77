"""A weight has no outlier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from torch import nn
from torch.export import ExportedProgram

from edgeopt.contracts.contract import Contract, FileTensors
from edgeopt.ir.program import tensors

ROUNDING = 1 + 2**-10
"""A file in float16 rounds a weight by 2^-11 of itself."""


@dataclasses.dataclass(frozen=True)
class Clipped(Contract):
    """No weight of `fqn` is further from 0 than `limit`."""

    fqn: str
    limit: float
    kind: ClassVar[str] = "clipped"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.fqn,)

    def check_module(self, module: nn.Module) -> str | None:
        return self._check(float(module.get_parameter(self.fqn).detach().abs().max()))

    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        for program in programs.values():
            weight = tensors(program).get(self.fqn)
            if weight is None:
                return f"{self.fqn} is gone"
            if found := self._check(float(weight.detach().abs().max())):
                return found
        return None

    def check_file(self, file: FileTensors) -> str | None:
        values = file.tensor(self.fqn)
        if values is None:
            return f"{self.fqn} is not in the file"
        if values.dtype.kind != "f":
            return None  # codes: what they can say is bounded by their scale
        return self._check(float(abs(values).max()))

    def _check(self, largest: float) -> str | None:
        if largest > self.limit * ROUNDING:
            return f"{self.fqn} reaches {largest:g}, beyond {self.limit:g}"
        return None
