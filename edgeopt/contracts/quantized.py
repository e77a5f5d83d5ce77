"""An edge carries codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from edgeopt.contracts.contract import Contract, FileTensors
from edgeopt.ir.edges import EdgeId
from edgeopt.quant.spec import TensorSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclasses.dataclass(frozen=True)
class Quantized(Contract):
    """An edge carries codes of this spec.

    Attributes:
        edge: The edge's id.
        spec: How it is quantized.
        fqn: The weight's FQN, for a weight's edge.
        address: How people read the edge.
    """

    edge: EdgeId
    spec: TensorSpec
    fqn: str = ""
    address: str = ""
    kind: ClassVar[str] = "quantized"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.address or str(self.edge),)

    def check_module(self, module: nn.Module) -> str | None:
        return None  # a module has no edges

    def check_programs(self, programs: Mapping[str, ExportedProgram]) -> str | None:
        from edgeopt.quant.reading import edge_codes_dtype

        for program in programs.values():
            found = edge_codes_dtype(program, self.edge)
            if found is None:
                return f"edge {self.edge} is not quantized any more"
            if not _holds(found, self.spec):
                return f"edge {self.edge} carries {found}, not {self.spec.codes_dtype}"
        return None

    def check_file(self, file: FileTensors) -> str | None:
        if self.fqn:  # a weight: look at the stored codes themselves
            values = file.tensor(self.fqn)
            if values is None:
                return f"{self.fqn} is not in the file"
            if not _holds(str(values.dtype), self.spec):
                return f"{self.fqn} is stored as {values.dtype}, not {self.spec.codes_dtype}"
            low, high = int(values.min()), int(values.max())
            if low < self.spec.qmin or high > self.spec.qmax:
                return f"codes of {self.fqn} lie in [{low}, {high}], outside {self.spec}"
            return None
        found = file.edge_dtype(str(self.edge))
        if found is None:
            return f"edge {self.edge} is not quantized in the file"
        if not _holds(found, self.spec):
            return f"edge {self.edge} carries {found} in the file, not {self.spec.codes_dtype}"
        return None


def _holds(dtype: str, spec: TensorSpec) -> bool:
    """Say whether codes of `spec` may be stored as `dtype`: their own width, or the next byte's."""
    # uint8 is int8 plus 128: a change of representation, never of a real value
    width = dtype.removeprefix("u")
    stored = next(bits for bits in (8, 16, 32) if spec.bits <= bits)
    return width in (f"int{spec.bits}", f"int{stored}")
