"""Quantities that plug-ins add: numbers that are counted in what is told of a file."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from edgeopt.limits.quantities import Change, Evidence, Kind, Quantity, Rule, Sense
from edgeopt.results.structure import OperatorRow, SizeRow


@dataclasses.dataclass(frozen=True)
class Told:
    """What is told of one file without running it.

    Attributes:
        operators: Where each operator runs.
        sizes: The bytes of each stored tensor.
        compile: What a real compiler said of it, or empty.
    """

    operators: tuple[OperatorRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    compile: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Counted(abc.ABC):
    """One such quantity. `build` judges it in the written file, the gate in reports or files.

    Attributes:
        name: As on the command line, in profiles and in results.
        unit: Of the number.
        sense: Which side is good: less or more.
        about: What it is.
        compared: How the gate compares two of them, where `--limit` names it; None: it does not.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    sense: ClassVar[Sense]
    about: ClassVar[str]
    compared: ClassVar[Kind | None] = None

    @abc.abstractmethod
    def count(self, told: Told) -> float | None:
        """Return the number, or None where the file does not tell it."""

    @property
    def quantity(self) -> Quantity:
        """What limits speak of."""
        change, why_not = None, "the plug-in that adds it does not say how two of them compare"
        if self.compared is not None:
            change, why_not = Change(self.compared, None, Rule.EXACT, Evidence.COUNTED), ""
        return Quantity(self.name, self.unit, self.sense, self.about, change, why_not)
