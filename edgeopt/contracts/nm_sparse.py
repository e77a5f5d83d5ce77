"""At most N of each M neighbours of a weight are not zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from edgeopt.contracts.contract import Contract, FileTensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


@dataclasses.dataclass(frozen=True)
class NMSparse(Contract):
    """At most `n` of each `m` neighbours along the reduction axis of a weight are not zero.

    Attributes:
        fqn: The weight's FQN, `blocks.0.mlp.fc1.weight`.
        n: Non-zeros allowed.
        m: Group length.
        axis: The axis of the *stored* tensor that groups run along: 1 for a Linear [out, in] and a
            Conv [out, in, kh, kw]; 0 for a transposed `Conv1D` [in, out].
    """

    fqn: str
    n: int
    m: int
    axis: int
    kind: ClassVar[str] = "nm-sparse"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.fqn,)

    def check_module(self, module: nn.Module) -> str | None:
        return self._check(module.get_parameter(self.fqn).detach())

    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        from edgeopt.ir.program import tensors

        for name, program in programs.items():
            table = tensors(program)
            if self.fqn not in table:
                return f"{self.fqn} is not in program {name}"
            found = self._check(table[self.fqn])
            if found:
                return found
        return None

    def check_file(self, file: FileTensors) -> str | None:
        import torch

        values = file.tensor(self.fqn)
        if values is None:
            return f"{self.fqn} is not in the file"
        return self._check(torch.from_numpy(values != 0))

    def _check(self, weight: Tensor) -> str | None:
        from torch import nn

        length = weight.shape[self.axis]
        kept = (weight != 0).movedim(self.axis, -1)
        # a last group that is shorter holds at most n as well
        groups = nn.functional.pad(kept, (0, -length % self.m)).reshape(-1, self.m)
        broken = int((groups.sum(dim=1) > self.n).sum())
        if broken:
            return f"{broken} of {len(groups)} groups of {self.m} hold more than {self.n} non-zeros"
        return None
