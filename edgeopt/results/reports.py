"""What measuring and judging return; the JSON of `--json` and of `report.json`.

`edgeopt schema NAME` prints these types as JSON Schema.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
EXACT_DB = 300.0
"""Stands for the SNR of equal outputs: JSON has no infinity."""


class Verdict(enum.Enum):
    """Of a limit, or of a whole build. `NOT_MEASURED` never counts as a pass."""

    PASS = "pass"
    FAIL = "fail"
    NOT_MEASURED = "not measured"


class Pace(enum.Enum):
    """Of two latencies measured in pairs."""

    FASTER = "faster"
    SAME = "same"
    SLOWER = "slower"
    CANNOT_TELL = "cannot tell"


class FileRole(enum.Enum):
    """What a file is in its bundle."""

    TARGET = "target"
    """Of one of the profile's own targets; the first of them gives the verdict."""
    STAND_IN = "stand-in"
    """Runs where the device's own runtime does not; shown, never gated."""
    YARDSTICK = "yardstick"
    """The float file that another one of the same target is compared with."""


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
class LimitResult:
    """A limit and how it came out.

    Attributes:
        name: As in `edgeopt.devices.profile.LIMITS`.
        artifact: Which artifact it speaks of.
        unit: The value's unit.
        value: What was found, or None.
        maximum: The bound, or None.
        minimum: The bound, or None.
        verdict: Pass, fail or not measured.
        reason: Why not measured, or what the value is made of.
        source: Who set the limit.
        method: The program's method.
    """

    name: str
    artifact: str
    unit: str
    value: float | None
    maximum: float | None
    minimum: float | None
    verdict: Verdict
    reason: str = ""
    source: str = ""
    method: str = "forward"


@dataclasses.dataclass(frozen=True)
class NodeProof:
    """One integer node of a runtime against the reference executor.

    Attributes:
        node: The node's name in the runtime's own optimized graph.
        operator: Its operator.
        elements: Elements compared.
        equal: Elements that are equal.
        max_lsb: Largest difference in codes (in float ULP-free units: for float outputs, of the
            integer accumulator's scale).
        histogram: Difference in codes -> count, for nodes that differ.
    """

    node: str
    operator: str
    elements: int
    equal: int
    max_lsb: float
    histogram: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ProofResult:
    """A runtime's integer nodes against the reference executor, node by node.

    Attributes:
        artifact: Which one.
        runtime: Name and version.
        arithmetic: The arithmetic that the executor used (`ort_mlas`).
        nodes: Integer nodes compared.
        elements: Elements compared in all.
        equal: Elements equal.
        exact: Whether all are.
        max_lsb: Largest difference in codes.
        first_difference: The first node that differs, or empty.
        details: Per node.
        unproven: Integer nodes that the executor has no arithmetic for: name -> operator.
        float_islands: Operator -> count of nodes that the runtime keeps in float.
        features: CPU features that the proof was made on.
    """

    artifact: str
    runtime: str
    arithmetic: str
    nodes: int
    elements: int
    equal: int
    exact: bool
    max_lsb: float
    first_difference: str
    details: tuple[NodeProof, ...] = ()
    unproven: Mapping[str, str] = dataclasses.field(default_factory=dict)
    float_islands: Mapping[str, int] = dataclasses.field(default_factory=dict)
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ContractResult:
    """One contract, checked again in an exported file."""

    artifact: str
    kind: str
    site: str
    holds: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Check:
    """One yes-or-no check."""

    name: str
    holds: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class OperatorRow:
    """Where one operator of the model runs, as the runtime or compiler reports it.

    Attributes:
        artifact: In which artifact.
        operator: The operator or layer kind (`QLinearConv`, `gemm`).
        site: FQN or node name.
        precision: `int8`, `float16`, `float32`.
        where: Execution provider, delegate, compiler or device. In a file that an accelerator or a
            delegate takes a part of, the rest runs in a place that has a word that begins with
            `CPU` or `portable` (`CPUExecutionProvider`, `ExecuTorch CPU kernel`).
        macs: Multiply-accumulates of one call, 0 where none.
        reason: Why it is not INT8, where it is not.
    """

    artifact: str
    operator: str
    site: str
    precision: str
    where: str
    macs: int
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """Bytes of one weight in a file."""

    artifact: str
    site: str
    dtype: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class DriftRow:
    """How much one layer's quantization costs by itself.

    Attributes:
        site: The operator's address; pass it to `--keep-float`.
        snr_db: SNR of its output, quantized program against float, at the same evaluation inputs;
            `EXACT_DB` where they are equal.
        own_snr_db: SNR of the layer's output with only this layer quantized, at float inputs.
        rank: 1 is the worst of its target.
        target: Whose quantized program it is; empty in reports older than this field.
        depth: Place in graph order, 1 is the first; 0 where it is not known.
        method: The program's method.
    """

    site: str
    snr_db: float
    own_snr_db: float | None
    rank: int
    target: str = ""
    depth: int = 0
    method: str = "forward"


@dataclasses.dataclass(frozen=True)
class PassRow:
    """One pass as it ran.

    Attributes:
        name: The pass.
        branch: The target, or `trunk`.
        config: Its options.
        changes: Site -> what it changed.
        skipped: Site -> why not.
        drift_db: SNR of the outputs against those before, `EXACT_DB` where equal, or None.
        seconds: How long it took.
        notes: What else it says.
    """

    name: str
    branch: str
    config: Mapping[str, Any]
    changes: Mapping[str, str]
    skipped: Mapping[str, str]
    drift_db: float | None
    seconds: float
    notes: tuple[str, ...] = ()


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
class ArtifactRow:
    """One artifact in short.

    Attributes:
        name: Names it in every other row.
        target: The profile's target or stand-in; a float yardstick has that of its INT8 file.
        format: As in profiles.
        precision: `int8`, `float16`, `float32`.
        file: The model file's name in the bundle.
        size_bytes: Of the model file.
        sha256: Of the model file.
        macs: Multiply-accumulates of one call.
        int8_macs: Share of them that run in INT8, 0 to 1, or None where nothing is multiplied.
        notes: What the exporter says.
        role: What it is in the bundle; None in reports older than this field.
    """

    name: str
    target: str
    format: str
    precision: str
    file: str
    size_bytes: int
    sha256: str
    macs: int
    int8_macs: float | None
    notes: tuple[str, ...] = ()
    role: FileRole | None = None
    float_gemms: int | None = None


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """Everything that a build found; `report.json` and the source of `report.html`.

    Attributes:
        bundle: The folder.
        edgeopt: Version.
        model: The model as named.
        profile: The profile's name.
        profile_title: The device in words.
        recipe: The recipe's name.
        build_key: As in the manifest.
        verdict: Of all limits together: fail if one fails, not measured if one is, else pass.
        machine: The machine that built and measured.
        tools: Versions.
        artifacts: The files.
        accuracy: Per artifact.
        latency: Per artifact and machine.
        comparisons: Interleaved pairs.
        memory: Per artifact.
        limits: Per limit.
        passes: As they ran, trunk and branches.
        plan: Target -> the plan as printed.
        operators: Where each operator runs.
        sizes: Bytes per weight.
        drift: The layers' ranking per target, the verdict's target first.
        proof: Integer proof.
        contracts: In the files.
        compile: Artifact -> what a real compiler said (engine size, layers, types, and the
            numbers `partitions`, `delegated_share`, `fused_attentions`).
        unmeasured: Artifact -> why its latency was not measured.
        warnings: What a user should read first.
        seconds: Stage -> seconds.
        schema: Version.
    """

    bundle: str
    edgeopt: str
    model: str
    profile: str
    profile_title: str
    recipe: str
    build_key: str
    verdict: Verdict
    machine: Machine
    tools: Mapping[str, str]
    artifacts: tuple[ArtifactRow, ...]
    accuracy: tuple[AccuracyResult, ...] = ()
    latency: tuple[LatencyResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    memory: tuple[MemoryResult, ...] = ()
    limits: tuple[LimitResult, ...] = ()
    passes: tuple[PassRow, ...] = ()
    plan: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    operators: tuple[OperatorRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    drift: tuple[DriftRow, ...] = ()
    proof: tuple[ProofResult, ...] = ()
    contracts: tuple[ContractResult, ...] = ()
    compile: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    unmeasured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def to_html(self, path: Path | str) -> None:
        """Write the report as one self-contained HTML file.

        Raises:
            BundleError: If the place cannot be written.
        """
        from edgeopt.files import write_text
        from edgeopt.report.html import render

        write_text(Path(path), render(self))


@dataclasses.dataclass(frozen=True)
class VerifyResult:
    """What `edgeopt verify` found."""

    bundle: str
    verdict: Verdict
    checks: tuple[Check, ...]
    proof: tuple[ProofResult, ...]
    contracts: tuple[ContractResult, ...]
    schema: int = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """What `edgeopt bench` found."""

    latency: tuple[LatencyResult, ...]
    comparisons: tuple[Comparison, ...]
    schema: int = SCHEMA_VERSION


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


def finite_db(snr_db: float) -> float:
    """Return an SNR within plus and minus `EXACT_DB`."""
    return max(-EXACT_DB, min(EXACT_DB, snr_db))


def combine(verdicts: list[Verdict]) -> Verdict:
    """Return FAIL if one fails, NOT_MEASURED if one is not measured or there is none, else PASS."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if not verdicts or Verdict.NOT_MEASURED in verdicts:
        return Verdict.NOT_MEASURED
    return Verdict.PASS
