"""The quantization plan: one line per edge, decided before anything is written into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from edgeopt.ir.edges import EdgeId
from edgeopt.quant.spec import Role, TensorSpec


@dataclasses.dataclass(frozen=True)
class Own:
    """The edge has parameters of its own."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """The edge uses another edge's parameters."""

    edge: EdgeId


@dataclasses.dataclass(frozen=True)
class Derived:
    """The edge's parameters follow from others (a bias: input scale times weight scale)."""

    edges: tuple[EdgeId, ...]


Source = Own | Shared | Derived


@dataclasses.dataclass(frozen=True)
class PlannedEdge:
    """What happens to one edge.

    Attributes:
        edge: The port: `out` of a producer, `inN` of a reader.
        address: How people read it.
        role: What the tensor is to the operator.
        spec: How it is quantized, or None: it stays float.
        source: Where its parameters come from.
        reason: Why, in words; always there where `spec` is None.
        codes_only: Of an output: the producer's kernel writes codes, so every reader sees them.
            Otherwise readers that are not planned keep reading the float value.
        fixed_range: The range that the kernel assumes, or None: it is measured.
    """

    edge: EdgeId
    address: str
    role: Role
    spec: TensorSpec | None
    source: Source = Own()
    reason: str = ""
    codes_only: bool = False
    fixed_range: tuple[float, float] | None = None

    def __str__(self) -> str:
        what = str(self.spec) if self.spec is not None else "float"
        if isinstance(self.source, Shared):
            what += f", shared with {self.source.edge}"
        elif isinstance(self.source, Derived):
            what += f", derived from {', '.join(map(str, self.source.edges))}"
        return f"{self.address}  {self.role.value}  {what}" + (
            f"  ({self.reason})" if self.reason else ""
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """All edges of all methods, for one rule set.

    Attributes:
        rules: The rule set that it was made from.
        target: The target's name.
        edges: Method -> edges, in graph order.
    """

    rules: str
    target: str
    edges: Mapping[str, tuple[PlannedEdge, ...]]

    def __iter__(self) -> Iterator[PlannedEdge]:
        for rows in self.edges.values():
            yield from rows

    def lines(self) -> list[str]:
        """Return the plan as printed."""
        return [str(row) for row in self]
