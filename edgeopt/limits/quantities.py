"""What a gate compares, and how far each quantity may move: the table of default limits."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

from edgeopt.errors import ConfigError, nearest

DEFAULT = "default"
COMMAND_LINE = "command line"


class Kind(enum.Enum):
    """How two numbers are compared."""

    RATIO = "ratio"
    DIFFERENCE = "difference"


class Sense(enum.Enum):
    """On which side of its bound a value must be."""

    AT_MOST = "<="
    AT_LEAST = ">="


class Rule(enum.Enum):
    """How a value with an interval is judged.

    Attributes:
        MEASURED: The whole 95 % interval must be on the good side; it fails when the whole interval
            is on the bad side; between, it cannot be told.
        EXACT: The value is a count; there is no interval.
        SAMPLED: Accuracy over a finite set. The value must be on the good side; it fails when it
            is on the bad side and the loss is beyond the sampling error; between, it cannot be
            told and more samples are needed.
    """

    MEASURED = "measured"
    EXACT = "exact"
    SAMPLED = "sampled"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One thing that a gate compares.

    Attributes:
        name: As on the command line.
        kind: Ratio or difference.
        sense: Which side is good.
        default: The bound where none is given, or None: compared only where asked for.
        unit: Of the two numbers.
        rule: How the value is judged.
        per_method: Whether each method has its own.
        about: What it is.
    """

    name: str
    kind: Kind
    sense: Sense
    default: float | None
    unit: str
    rule: Rule
    per_method: bool
    about: str


def _ratio(
    name: str, default: float | None, unit: str, rule: Rule, about: str, *, per_method: bool = False
) -> Quantity:
    return Quantity(name, Kind.RATIO, Sense.AT_MOST, default, unit, rule, per_method, about)


def _difference(
    name: str,
    sense: Sense,
    default: float,
    unit: str,
    about: str,
    *,
    rule: Rule = Rule.EXACT,
    per_method: bool = False,
) -> Quantity:
    return Quantity(name, Kind.DIFFERENCE, sense, default, unit, rule, per_method, about)


QUANTITIES: Mapping[str, Quantity] = {
    q.name: q
    for q in (
        _ratio(
            "latency_p50",
            1.05,
            "ms",
            Rule.MEASURED,
            "median latency, interleaved on this machine; or attached from the same device",
            per_method=True,
        ),
        _ratio(
            "latency_p99",
            None,
            "ms",
            Rule.MEASURED,
            "99th percentile of the latency; needs 500 calls or more",
            per_method=True,
        ),
        _ratio(
            "peak_memory",
            1.10,
            "MB",
            Rule.MEASURED,
            "what loading and running the file adds to a process, at its peak",
        ),
        _ratio("size", 1.02, "MB", Rule.EXACT, "size of what a runtime loads, 10^6 bytes"),
        _ratio("macs", 1.01, "count", Rule.EXACT, "multiply-accumulates of one call"),
        _difference(
            "int8_macs",
            Sense.AT_LEAST,
            -0.01,
            "share",
            "share of the multiply-accumulates that run in INT8",
        ),
        _difference(
            "float_gemms",
            Sense.AT_MOST,
            0,
            "count",
            "weighted operators (convolutions, linears) that stay float",
        ),
        _difference(
            "fused_attentions",
            Sense.AT_LEAST,
            0,
            "count",
            "attentions that the compiler made one kernel of",
        ),
        _difference(
            "partitions",
            Sense.AT_MOST,
            0,
            "count",
            "pieces that the delegate got; each border costs a hand-over",
        ),
        _difference(
            "delegated_share",
            Sense.AT_LEAST,
            -0.01,
            "share",
            "share of the work that the delegate took",
        ),
        _difference(
            "drop",
            Sense.AT_MOST,
            0.5,
            "metric units",
            "loss of the task metric against the float model, in its own units",
            rule=Rule.SAMPLED,
            per_method=True,
        ),
        _difference(
            "agreement",
            Sense.AT_LEAST,
            -1.0,
            "%",
            "share of samples whose answer equals the float model's",
            rule=Rule.SAMPLED,
            per_method=True,
        ),
        _difference(
            "snr_db",
            Sense.AT_LEAST,
            -1.0,
            "dB",
            "signal-to-noise ratio of the outputs against the float model, 60 dB at most",
            per_method=True,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Bound:
    """A quantity with the bound that a gate uses.

    Attributes:
        quantity: What is compared.
        limit: The bound; infinite: shown, and never fails.
        source: `default` or `command line`.
    """

    quantity: Quantity
    limit: float
    source: str = DEFAULT

    @property
    def asked_for(self) -> bool:
        """Whether a user named it."""
        return self.source == COMMAND_LINE

    @property
    def text(self) -> str:
        """The bound as people write it: `size<=1.02`."""
        return f"{self.quantity.name}{self.quantity.sense.value}{self.limit:g}"

    @staticmethod
    def parse(text: str) -> Bound:
        """Read `latency_p50<=1.1` or `int8_macs>=-0.02`.

        Raises:
            ConfigError: For any other form, an unknown name, the wrong direction, or a number that
                cannot be meant.
        """
        for sign in ("<=", ">="):
            name, found, number = text.partition(sign)
            if found:
                return _checked(text, name.strip(), Sense(sign), number)
        raise ConfigError(f"a limit is NAME<=NUMBER or NAME>=NUMBER, not {text!r}")


def _checked(text: str, name: str, sense: Sense, number: str) -> Bound:
    if name not in QUANTITIES:
        raise ConfigError(f"limit {name!r} is not known{nearest(name, QUANTITIES)}")
    quantity = QUANTITIES[name]
    if sense is not quantity.sense:
        better = "less" if quantity.sense is Sense.AT_MOST else "more"
        raise ConfigError(
            f"limit {text!r}: {better} {name} is better; write {name}{quantity.sense.value}NUMBER"
        )
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"limit {text!r}: {number!r} is not a number") from None
    good = math.inf if sense is Sense.AT_MOST else -math.inf
    if math.isnan(value) or (math.isinf(value) and value != good):
        raise ConfigError(f"limit {text!r}: {number!r} cannot be a bound")
    if quantity.kind is Kind.RATIO and value <= 0:
        raise ConfigError(
            f"limit {text!r}: {name} is judged as candidate / baseline, which is above 0"
        )
    return Bound(quantity, value, COMMAND_LINE)


def bounds(given: Sequence[str] = ()) -> tuple[Bound, ...]:
    """Return the default bounds, those of the command line in their place, in the table's order.

    Args:
        given: As on the command line: `latency_p50<=1.1`.

    Raises:
        ConfigError: If one cannot be read, or a name is given twice.
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
        elif quantity.default is not None:
            found.append(Bound(quantity, quantity.default))
    return tuple(found)
