"""Measured: machine, accuracy, latency, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeopt.results.verdicts import SCHEMA_VERSION, Pace


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a number was measured.

    Attributes:
        name: Processor or GPU by name.
        cores: Logical processors that the process may use.
        features: Instruction sets that decide which kernels run (`avx512_vnni`).
        system: Operating system and architecture.
        load: Load average over one minute when the measurement began.
        device: `host`, or the profile's device where it was measured on it.
        details: Clocks, power mode, driver, where the device told them.
    """

    name: str
    cores: int
    features: tuple[str, ...]
    system: str
    load: float
    device: str = "host"
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AccuracyResult:
    """The task metric of one artifact, paired with the float reference.

    Attributes:
        artifact: Which one.
        runtime: Runtime and version that ran it.
        metric: `top1`, `perplexity`, `snr`, or the name of the user's function.
        unit: `points`, `%`, `dB`, ...
        reference: The float model's value.
        value: The artifact's value.
        drop: Loss in the metric's own units, positive is worse (perplexity: ratio - 1 in %).
        drop_low: Lower end of the drop's 95 % interval (paired bootstrap).
        drop_high: Upper end.
        agreement: Share of samples with the float model's answer, in %, or None.
        snr_db: Outputs against the float model's.
        cosine: Mean cosine of the outputs with the float model's.
        samples: Samples judged.
        method: The program's method.
        warning: For instance that calibration and evaluation share samples.
    """

    artifact: str
    runtime: str
    metric: str
    unit: str
    reference: float | None
    value: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    agreement: float | None
    snr_db: float | None
    cosine: float | None
    samples: int
    method: str = "forward"
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Percentile:
    """One percentile in milliseconds with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class LatencyResult:
    """The measured latency of one artifact.

    Attributes:
        artifact: Which one.
        runtime: Name and version.
        machine: Where.
        threads: Threads of the runtime.
        batch: Batch size.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        samples_ms: The raw samples, in the order taken.
        block: Samples between re-creations of the session.
        method: The program's method.
        kind: Always `measured`; an estimate is another type.
        stand_in: The profile's device is another one than the machine: shown, never gated.
    """

    artifact: str
    runtime: str
    machine: Machine
    threads: int
    batch: int
    p50: Percentile
    p90: Percentile
    p99: Percentile
    samples_ms: tuple[float, ...]
    block: int
    method: str = "forward"
    kind: str = "measured"
    stand_in: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two artifacts, interleaved.

    Attributes:
        candidate: The one judged.
        baseline: The one it is judged against.
        ratio: Candidate over baseline; under 1 is faster.
        low: Lower end of the 95 % interval.
        high: Upper end.
        noise: The machine's own half-width: the same comparison of the baseline with itself.
        pace: The verdict.
        pairs: Pairs measured.
        samples_ms: Raw samples, candidate and baseline.
    """

    candidate: str
    baseline: str
    ratio: float
    low: float
    high: float
    noise: float
    pace: Pace
    pairs: int
    samples_ms: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MemoryResult:
    """Memory of one artifact.

    Attributes:
        artifact: Which one.
        peak_rss_mb: Peak resident set of a child process that loads and runs it, 10^6 bytes.
        base_rss_mb: The same process before it loads the file.
        runtime: Name and version.
    """

    artifact: str
    peak_rss_mb: float
    base_rss_mb: float
    runtime: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the on-device script writes; `edgeopt report BUNDLE --attach measured.json`.

    Attributes:
        artifact: Which artifact.
        sha256: SHA-256 of the model file that was built and run there; must be the bundle's.
        device: The device by its own name.
        runtime: Runtime and version.
        clocks: Clock and power readings as the device gives them.
        power_mode: For instance nvpmodel's answer.
        samples_ms: Latency of each call.
        golden_max_error: Largest absolute difference to the golden outputs, or None.
        golden_ok: Whether the golden vectors came out within the stated tolerance, or None.
        engine_bytes: Size of the built engine.
        command: The command that measured.
        layers: Layer lines that the device's own compiler printed.
    """

    artifact: str
    sha256: str
    device: str
    runtime: str
    clocks: Mapping[str, str]
    power_mode: str
    samples_ms: tuple[float, ...]
    golden_max_error: float | None = None
    golden_ok: bool | None = None
    engine_bytes: int | None = None
    command: str = ""
    layers: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION
