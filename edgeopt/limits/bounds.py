"""How far each quantity may move between two builds: the gate's bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeopt.errors import ConfigError
from edgeopt.limits.quantities import QUANTITIES, Change, Kind, Quantity, Sense
from edgeopt.limits.written import Written, read

DEFAULT = "default"
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Bound:
    """A quantity with the bound on its change.

    Attributes:
        quantity: What is compared.
        limit: The bound; infinite: shown, and never fails.
        source: `default` or `command line`.
    """

    quantity: Quantity
    limit: float
    source: str = DEFAULT

    def __post_init__(self) -> None:
        if self.quantity.change is None:
            name, why = self.quantity.name, self.quantity.not_compared
            raise ConfigError(f"limit {name!r}: the gate does not compare it: {why}")

    @property
    def change(self) -> Change:
        """How it is compared."""
        assert self.quantity.change is not None  # __post_init__ refused the others
        return self.quantity.change

    @property
    def asked_for(self) -> bool:
        """Whether a user named it."""
        return self.source == COMMAND_LINE

    @property
    def text(self) -> str:
        """The bound as people write it: `size_mb<=1.02`."""
        return Written(self.quantity.name, self.quantity.sense, self.limit).text

    @staticmethod
    def parse(text: str) -> Bound:
        """Read `latency_p50_ms<=1.1` or `int8_macs>=-0.02`.

        Raises:
            ConfigError: As `edgeopt.limits.written.read`; for what a gate does not compare, the
                wrong direction, or a ratio that cannot be.
        """
        written = read(text)
        bound = Bound(written.quantity, written.number, COMMAND_LINE)
        name, sense = bound.quantity.name, bound.quantity.sense
        if written.sense is not sense:
            better = "less" if sense is Sense.AT_MOST else "more"
            raise ConfigError(
                f"limit {text!r}: {better} {name} is better; write {name}{sense.value}NUMBER"
            )
        if bound.change.kind is Kind.RATIO and written.number <= 0:
            raise ConfigError(
                f"limit {text!r}: {name} is judged as candidate / baseline, which is above 0"
            )
        return bound


def bounds(given: Sequence[str] = ()) -> tuple[Bound, ...]:
    """Return the default bounds, those of the command line in their place, in the table's order.

    Args:
        given: As on the command line: `latency_p50_ms<=1.1`.

    Raises:
        ConfigError: If one cannot be read, or a quantity is given twice.
    """
    own: dict[str, Bound] = {}
    for bound in (Bound.parse(text) for text in given):
        name = bound.quantity.name
        if name in own:
            raise ConfigError(f"limit {name} is given twice: {own[name].text} and {bound.text}")
        own[name] = bound
    found = []
    for name, quantity in QUANTITIES.items():
        if name in own:
            found.append(own[name])
        elif quantity.change is not None and quantity.change.default is not None:
            found.append(Bound(quantity, quantity.change.default))
    added = (bound for name, bound in own.items() if name not in QUANTITIES)
    return (*found, *added)
