"""What commands leave: reports, as plain data."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from edgeopt.results.measurements import (
    AccuracyResult,
    Comparison,
    LatencyResult,
    Machine,
    MemoryResult,
)
from edgeopt.results.structure import ContractResult, DriftRow, OperatorRow, ProofResult, SizeRow
from edgeopt.results.verdicts import SCHEMA_VERSION, Check, LimitResult, Verdict


class FileRole(enum.Enum):
    """What a file is in its bundle."""

    TARGET = "target"
    """Of one of the profile's own targets; the first of them gives the verdict."""
    STAND_IN = "stand-in"
    """Runs where the device's own runtime does not; shown, never gated."""
    YARDSTICK = "yardstick"
    """The float file that another one of the same target is compared with."""


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
