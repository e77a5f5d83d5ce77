"""A limit as people write it: `NAME<=NUMBER` or `NAME>=NUMBER`."""

from __future__ import annotations

import dataclasses
import math
import re

from edgeopt.errors import ConfigError
from edgeopt.limits.known import known
from edgeopt.limits.quantities import Quantity, Sense

_FORM = re.compile(r"\s*(.*?)\s*(<=|>=)(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Written:
    """What such a text says.

    Attributes:
        name: Of the quantity, as written: an old name stays as it is.
        sense: On which side of the number a value must be.
        number: The bound.
    """

    name: str
    sense: Sense
    number: float

    def __post_init__(self) -> None:
        number = f"{self.number:g}"
        if math.isnan(self.number):
            raise ConfigError(f"limit {self.text!r}: {number!r} is not a number")
        if self.number == (-math.inf if self.sense is Sense.AT_MOST else math.inf):
            raise ConfigError(f"limit {self.text!r}: {number!r} cannot be a bound")

    @property
    def quantity(self) -> Quantity:
        """What it speaks of."""
        return known(self.name)

    @property
    def text(self) -> str:
        """The text, under today's name; read again, it is this very limit."""
        short = f"{self.number:g}"
        number = short if float(short) == self.number else repr(self.number)
        return f"{self.quantity.name}{self.sense.value}{number}"


def read(text: str) -> Written:
    """Read a limit.

    Raises:
        ConfigError: For any other form, an unknown name, or a number that cannot be meant.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(f"a limit is NAME<=NUMBER or NAME>=NUMBER, not {text!r}")
    name, sign, number = found.groups()
    known(name)
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"limit {text!r}: {number.strip()!r} is not a number") from None
    return Written(name, Sense(sign), value)
