"""A bound on one quantity of a build."""

from __future__ import annotations

import dataclasses

from edgeopt.errors import ConfigError
from edgeopt.limits.known import known
from edgeopt.limits.quantities import Quantity, Sense
from edgeopt.limits.written import Written, read


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on one quantity of a build.

    Attributes:
        name: One of `QUANTITIES` or a plug-in's, as written: an old name is read as well.
        maximum: The value must not be above, or None.
        minimum: The value must not be below, or None.
        method: The program's method that it speaks of.
        source: Why this bound.
    """

    name: str
    maximum: float | None = None
    minimum: float | None = None
    method: str = "forward"
    source: str = ""

    def __post_init__(self) -> None:
        known(self.name)
        if (self.maximum is None) == (self.minimum is None):
            raise ConfigError(f"limit {self.name}: give either maximum or minimum")
        self._written()  # refuses a number that cannot be meant

    @property
    def quantity(self) -> Quantity:
        """What it bounds."""
        return known(self.name)

    @property
    def text(self) -> str:
        """The bound as people write it: `drop<=1`."""
        return self._written().text

    def _written(self) -> Written:
        if self.maximum is not None:
            return Written(self.name, Sense.AT_MOST, self.maximum)
        assert self.minimum is not None  # __post_init__ asked for one of the two
        return Written(self.name, Sense.AT_LEAST, self.minimum)

    @staticmethod
    def parse(text: str) -> Limit:
        """Read `drop<=1` or `speedup>=1.6`.

        Raises:
            ConfigError: As `edgeopt.limits.written.read`.
        """
        written = read(text)
        if written.sense is Sense.AT_MOST:
            return Limit(written.name, maximum=written.number, source="command line")
        return Limit(written.name, minimum=written.number, source="command line")


def renamed(limit: Limit) -> Limit:
    """Return the limit under its quantity's name of today."""
    return dataclasses.replace(limit, name=limit.quantity.name)
