"""A bound on one measured or structural quantity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from edgeopt.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on one measured or structural quantity.

    Attributes:
        name: One of `LIMITS`.
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
        if self.name not in LIMITS:
            raise ConfigError(f"limit {self.name!r} is not known{nearest(self.name, LIMITS)}")
        if (self.maximum is None) == (self.minimum is None):
            raise ConfigError(f"limit {self.name}: give either maximum or minimum")

    @property
    def text(self) -> str:
        """The bound as people write it: `drop<=1`."""
        if self.maximum is not None:
            return f"{self.name}<={self.maximum:g}"
        return f"{self.name}>={self.minimum:g}"

    @staticmethod
    def parse(text: str) -> Limit:
        """Read `drop<=1` or `speedup>=1.6`.

        Raises:
            ConfigError: For any other form, or an unknown name.
        """
        for sign in ("<=", ">="):
            name, found, number = text.partition(sign)
            if found:
                try:
                    value = float(number)
                    if math.isnan(value):
                        raise ValueError
                except ValueError:
                    raise ConfigError(f"limit {text!r}: {number!r} is not a number") from None
                if sign == "<=":
                    return Limit(name.strip(), maximum=value, source="command line")
                return Limit(name.strip(), minimum=value, source="command line")
        raise ConfigError(f"a limit is NAME<=NUMBER or NAME>=NUMBER, not {text!r}")


LIMITS: Mapping[str, tuple[str, str]] = {
    # name: (unit, what it is)
    "latency_p50_ms": ("ms", "median latency of one call, measured on the device"),
    "latency_p99_ms": ("ms", "99th percentile of the latency, measured on the device"),
    "speedup": ("ratio", "float latency over quantized latency, interleaved, same runtime"),
    "size_mb": ("MB", "size of the target's model file, 10^6 bytes"),
    "peak_memory_mb": ("MB", "peak resident set of a process that loads and runs the file"),
    "drop": ("metric units", "loss of the task metric against the float model, paired"),
    "agreement": ("%", "share of samples whose answer equals the float model's"),
    "snr_db": ("dB", "signal-to-noise ratio of the outputs against the float model"),
    "int8_macs": ("share", "share of the multiply-accumulates that run in INT8"),
    "float_gemms": ("count", "weighted operators (convolutions, linears) that stay float"),
    "partitions": ("count", "pieces of the program that the accelerator or delegate takes"),
    "delegated_share": ("share", "share of the operators that the accelerator or delegate takes"),
    "fused_attentions": ("count", "attentions that the device's compiler fuses into one kernel"),
    "macs": ("count", "multiply-accumulates of one call"),
}
