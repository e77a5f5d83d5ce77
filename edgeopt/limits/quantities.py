"""The quantities that a limit may speak of: one table for `build`, profiles and the gate."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping


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


class Evidence(enum.Enum):
    """Where a gate finds the two numbers that it compares.

    Attributes:
        LATENCY: Both files timed here by turns, or on the device and attached.
        MEMORY: Processes that load and run one file each.
        COUNTED: The builds' reports, or the files themselves.
        ACCURACY: What the builds' reports tell of a method's answers.
    """

    LATENCY = "latency"
    MEMORY = "memory"
    COUNTED = "counted"
    ACCURACY = "accuracy"


@dataclasses.dataclass(frozen=True)
class Change:
    """How the gate compares a quantity of two builds.

    Attributes:
        kind: Ratio or difference.
        default: The bound where none is given, or None: compared only where asked for.
        rule: How the value is judged.
        evidence: Where the two numbers are found.
        per_method: Whether each method has its own.
        about: What is compared, where that is more than the quantity's own words.
    """

    kind: Kind
    default: float | None
    rule: Rule
    evidence: Evidence
    per_method: bool = False
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One thing that limits speak of.

    `build` and profiles bound the number itself, from either side: a floor under `partitions` says
    that the accelerator takes anything at all. The gate bounds its change, and only against a
    change for the worse.

    Attributes:
        name: As on the command line, in profiles and in results.
        unit: Of the number.
        sense: Which side is good: less or more.
        about: What it is.
        change: How the gate compares it, or None: it does not.
        not_compared: Why it does not, and what to write in its place.
    """

    name: str
    unit: str
    sense: Sense
    about: str
    change: Change | None
    not_compared: str = ""


QUANTITIES: Mapping[str, Quantity] = {
    q.name: q
    for q in (
        Quantity(
            "latency_p50_ms",
            "ms",
            Sense.AT_MOST,
            "median latency of one call, measured on the device",
            Change(
                Kind.RATIO,
                1.05,
                Rule.MEASURED,
                Evidence.LATENCY,
                per_method=True,
                about="median latency, interleaved on this machine; "
                "or attached from the same device",
            ),
        ),
        Quantity(
            "latency_p99_ms",
            "ms",
            Sense.AT_MOST,
            "99th percentile of the latency, measured on the device",
            Change(
                Kind.RATIO,
                None,
                Rule.MEASURED,
                Evidence.LATENCY,
                per_method=True,
                about="99th percentile of the latency; needs 500 calls or more",
            ),
        ),
        Quantity(
            "speedup",
            "ratio",
            Sense.AT_LEAST,
            "float latency over quantized latency, interleaved, same runtime",
            change=None,
            not_compared="candidate and baseline are timed against each other, not each against "
            "its own float file; write latency_p50_ms<=NUMBER",
        ),
        Quantity(
            "peak_memory_mb",
            "MB",
            Sense.AT_MOST,
            "peak resident set of a process that loads and runs the file",
            Change(
                Kind.RATIO,
                1.10,
                Rule.MEASURED,
                Evidence.MEMORY,
                about="what loading and running the file adds to a process, at its peak",
            ),
        ),
        Quantity(
            "size_mb",
            "MB",
            Sense.AT_MOST,
            "size of the target's model file, 10^6 bytes",
            Change(
                Kind.RATIO,
                1.02,
                Rule.EXACT,
                Evidence.COUNTED,
                about="size of what a runtime loads, 10^6 bytes",
            ),
        ),
        Quantity(
            "macs",
            "count",
            Sense.AT_MOST,
            "multiply-accumulates of one call",
            Change(Kind.RATIO, 1.01, Rule.EXACT, Evidence.COUNTED),
        ),
        Quantity(
            "int8_macs",
            "share",
            Sense.AT_LEAST,
            "share of the multiply-accumulates that run in INT8",
            Change(Kind.DIFFERENCE, -0.01, Rule.EXACT, Evidence.COUNTED),
        ),
        Quantity(
            "float_gemms",
            "count",
            Sense.AT_MOST,
            "weighted operators (convolutions, linears) that stay float",
            Change(Kind.DIFFERENCE, 0, Rule.EXACT, Evidence.COUNTED),
        ),
        Quantity(
            "fused_attentions",
            "count",
            Sense.AT_LEAST,
            "attentions that the device's compiler made one kernel of",
            Change(Kind.DIFFERENCE, 0, Rule.EXACT, Evidence.COUNTED),
        ),
        Quantity(
            "partitions",
            "count",
            Sense.AT_MOST,
            "pieces of the program that the accelerator or delegate takes",
            Change(
                Kind.DIFFERENCE,
                0,
                Rule.EXACT,
                Evidence.COUNTED,
                about="pieces that the delegate got; each border costs a hand-over",
            ),
        ),
        Quantity(
            "delegated_share",
            "share",
            Sense.AT_LEAST,
            "share of the operators that the accelerator or delegate takes",
            Change(Kind.DIFFERENCE, -0.01, Rule.EXACT, Evidence.COUNTED),
        ),
        Quantity(
            "drop",
            "metric units",
            Sense.AT_MOST,
            "loss of the task metric against the float model, in its own units",
            Change(Kind.DIFFERENCE, 0.5, Rule.SAMPLED, Evidence.ACCURACY, per_method=True),
        ),
        Quantity(
            "agreement",
            "%",
            Sense.AT_LEAST,
            "share of samples whose answer equals the float model's",
            Change(Kind.DIFFERENCE, -1.0, Rule.SAMPLED, Evidence.ACCURACY, per_method=True),
        ),
        Quantity(
            "snr_db",
            "dB",
            Sense.AT_LEAST,
            "signal-to-noise ratio of the outputs against the float model",
            Change(
                Kind.DIFFERENCE,
                -1.0,
                Rule.EXACT,
                Evidence.ACCURACY,
                per_method=True,
                about="signal-to-noise ratio of the outputs against the float model, 60 dB at most",
            ),
        ),
    )
}

OLD_NAMES: Mapping[str, str] = {
    "latency_p50": "latency_p50_ms",
    "latency_p99": "latency_p99_ms",
    "peak_memory": "peak_memory_mb",
    "size": "size_mb",
}
"""Names that the gate once had for itself -> today's; read wherever a user may write a name."""


def compared(evidence: Evidence) -> tuple[str, ...]:
    """Return the names of what a gate compares by this evidence."""
    return tuple(
        q.name
        for q in QUANTITIES.values()
        if q.change is not None and q.change.evidence is evidence
    )


def old_name_notes(names: Iterable[str]) -> list[str]:
    """Return what to tell a user of the old names among those that they wrote, each once."""
    return [
        f"limit {name!r} is called {OLD_NAMES[name]!r} now"
        for name in dict.fromkeys(names)
        if name in OLD_NAMES
    ]
