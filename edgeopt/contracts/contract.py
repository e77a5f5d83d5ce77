"""Contracts: facts that one pass establishes and every later one keeps.

Each checks itself on a module, on programs, and on an exported file, and answers with None or
with a sentence that says what is wrong.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgeopt.ir.edges import EdgeId
from edgeopt.quant.spec import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram


class FileTensors(Protocol):
    """The tensors of an exported file, by the FQN that they had in the model."""

    def tensor(self, fqn: str) -> np.ndarray[Any, Any] | None:
        """Return the stored values in torch's layout (codes where quantized), or None."""
        ...

    def same_storage(self, a: str, b: str) -> bool:
        """Say whether two FQNs are one tensor in the file."""
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
        first, second = _module_tensor(module, self.a), _module_tensor(module, self.b)
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
        weight = _module_tensor(module, self.fqn)
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


def _holds(dtype: str, spec: TensorSpec) -> bool:
    """Say whether codes of `spec` may be stored as `dtype`: their own width, or the next byte's."""
    # uint8 is int8 plus 128: a change of representation, never of a real value
    width = dtype.removeprefix("u")
    stored = next(bits for bits in (8, 16, 32) if spec.bits <= bits)
    return width in (f"int{spec.bits}", f"int{stored}")


def _module_tensor(module: nn.Module, fqn: str) -> Tensor | None:
    owner_name, _, leaf = fqn.rpartition(".")
    try:
        return getattr(module.get_submodule(owner_name), leaf, None)
    except AttributeError:
        return None


KINDS: dict[str, type[Contract]] = {
    contract.kind: contract for contract in (NMSparse, Tied, Quantized, HeadGroups)
}


def from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Contract, ...]:
    """Read contracts back from a bundle's state.

    Raises:
        BundleError: For an unknown kind or a field that does not fit.
    """
    from edgeopt.errors import BundleError, nearest
    from edgeopt.files import parse

    found: list[Contract] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise BundleError(f"a contract is a table, not {row!r}")
        fields = dict(row)
        kind = str(fields.pop("kind", ""))
        if kind not in KINDS:
            raise BundleError(f"contract kind {kind!r} is not known{nearest(kind, KINDS)}")
        found.append(parse(fields, KINDS[kind], where=f"contract {kind}", error=BundleError))
    return tuple(found)
