"""Check a bundle from its files alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.api.building.inspection import check_contracts
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.build_state import read_contracts, read_programs
from edgeopt.artifacts.bundle import Bundle
from edgeopt.artifacts.golden import read_golden
from edgeopt.artifacts.manifest import Manifest
from edgeopt.errors import (
    BundleError,
    ConfigError,
    EdgeOptError,
    PluginError,
    RuntimeUnavailable,
)
from edgeopt.progress import Progress, no_progress
from edgeopt.registry.kinds import CONTRACTS
from edgeopt.registry.plugins import standing
from edgeopt.results.reports import VerifyResult
from edgeopt.results.structure import ContractResult, ProofResult
from edgeopt.results.verdicts import Check, Verdict, combine
from edgeopt.runtime_tests.base import Arrays

GOLDEN_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 5e-2}
"""Largest error as a share of the largest golden output. Another CPU takes other float kernels
and may move a code at a rounding border; the same machine gives the same bits."""


def run_verify(path: Path | str, *, progress: Progress = no_progress) -> VerifyResult:
    """Check checksums, contracts in the files, the integer proof and golden vectors.

    Raises:
        BundleError: If the folder is no bundle, or its manifest is damaged.
    """
    bundle = Bundle.open(Path(path))
    progress("checksums", 0, None)
    checks = bundle.checksums()
    damaged = {c.name.removeprefix("file ") for c in checks if not c.holds}
    contracts: list[ContractResult] = []
    proof: list[ProofResult] = []
    plugins, unknown = _plugins(bundle.manifest)
    checks += plugins
    unavailable = not all(check.holds for check in plugins)
    for artifact in bundle.manifest.artifacts:
        if artifact.model_file.path in damaged:
            continue  # told already; a damaged file may do anything to its reader
        try:
            inspector_for(artifact.format)
        except ConfigError as failure:  # a bundle of a newer edgeopt
            unavailable = True
            checks.append(Check(f"run {artifact.name}", False, str(failure)))
            continue
        progress(f"check {artifact.name}", 0, None)
        try:
            found, problem = _contracts(bundle, artifact, unknown)
            contracts += found
            checks += problem
            checks += _golden(bundle, artifact)
            proof += _proof(bundle, artifact)
        except (RuntimeUnavailable, PluginError) as failure:
            unavailable = True
            checks.append(Check(f"run {artifact.name}", False, str(failure)))
        except EdgeOptError as failure:
            checks.append(Check(f"run {artifact.name}", False, str(failure)))
        except Exception as failure:
            # A bundle may be damaged anywhere, and one file's damage must not hide the others.
            line = " ".join(str(failure).split())[:200]
            message = f"damaged, or this is a bug: {type(failure).__name__}: {line}"
            checks.append(Check(f"run {artifact.name}", False, message))
    checks += _proofs_lost(bundle, proof)
    verdict = _verdict(checks, contracts, proof, unavailable=unavailable)
    return VerifyResult(str(bundle.path), verdict, tuple(checks), tuple(proof), tuple(contracts))


def _plugins(manifest: Manifest) -> tuple[list[Check], set[str]]:
    """Look for the plug-ins that made a bundle; also return the contract kinds of missing ones."""
    checks, unknown = [], set()
    for then in manifest.plugins:
        here = standing(then)
        name = f"run plug-in {then.package}"
        checks.append(Check(name, here.installed, here.message or str(then)))
        if not here.installed:
            unknown |= set(then.gives.get(CONTRACTS.plural, ()))
    return checks, unknown


def _verdict(
    checks: list[Check],
    contracts: list[ContractResult],
    proof: list[ProofResult],
    *,
    unavailable: bool,
) -> Verdict:
    failed = any(not c.holds for c in checks if not c.name.startswith("run ")) or any(
        not c.holds for c in contracts
    )
    ran = [c for c in checks if c.name.startswith("run ") and not c.holds]
    if failed or (ran and not unavailable):
        return Verdict.FAIL
    return combine([Verdict.NOT_MEASURED if unavailable else Verdict.PASS])


def _proofs_lost(bundle: Bundle, proof: list[ProofResult]) -> list[Check]:
    """Fail what was bit exact in the build, on a machine as this one, and is not any more."""
    from edgeopt.devices.machine import machine

    try:
        report = bundle.report()
    except BundleError:
        return []  # stripped, or damaged: the proofs stand for themselves
    here = machine()
    if (report.machine.name, report.machine.features) != (here.name, here.features):
        return []  # other kernels may round otherwise
    then = {found.artifact: found.exact for found in report.proof}
    return [
        Check(f"proof {p.artifact}", False, f"bit exact when built, not now: {p.first_difference}")
        for p in proof
        if p.nodes and not p.exact and then.get(p.artifact)
    ]


def _plan_folder(artifact: Artifact) -> str:
    return artifact.target


def _contracts(
    bundle: Bundle, artifact: Artifact, unknown: Collection[str]
) -> tuple[tuple[ContractResult, ...], list[Check]]:
    if not (bundle.path / "state").is_dir():
        return (), []  # stripped for shipping
    try:
        contracts = read_contracts(bundle, _plan_folder(artifact), without=unknown)
    except BundleError as failure:
        return (), [Check(f"contracts {artifact.name}", False, str(failure))]
    return check_contracts(bundle.path, artifact, contracts), []


def _golden(bundle: Bundle, artifact: Artifact) -> list[Check]:
    name = bundle.manifest.golden.get(artifact.name)
    if name is None:
        return []
    inputs, wanted = read_golden(bundle.file(name))
    session = inspector_for(artifact.format).load(bundle.path, artifact)
    try:
        got = session.run(artifact.methods[0].name, inputs)
    finally:
        session.close()
    error = golden_error(wanted, got)
    allowed = GOLDEN_TOLERANCE[artifact.precision]
    return [
        Check(
            f"golden {artifact.name}",
            error <= allowed,
            f"largest error {error:.3g} of the largest output, {allowed:g} is allowed",
        )
    ]


def golden_error(wanted: Arrays, got: Arrays) -> float:
    """Return the largest error as a share of the largest golden output; infinite if one lacks."""
    return max(_error(wanted[key], got.get(key)) for key in wanted)


def _error(wanted: np.ndarray[Any, Any], got: np.ndarray[Any, Any] | None) -> float:
    if got is None or got.shape != wanted.shape:
        return float("inf")
    reach = float(np.abs(wanted).max()) or 1.0
    return float(np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max()) / reach


def _proof(bundle: Bundle, artifact: Artifact) -> list[ProofResult]:
    """Prove an INT8 artifact on its golden inputs, where its runtime is here."""
    name = bundle.manifest.golden.get(artifact.name)
    if name is None or artifact.precision != "int8":
        return []
    inputs, _ = read_golden(bundle.file(name))
    inspector = inspector_for(artifact.format)
    needed = inspector.proof_reads_programs
    programs = read_programs(bundle, _plan_folder(artifact)) if needed else None
    if needed and not programs:
        reason = "not proven: the bundle holds no program of it that can be read"
        version = inspector.runner().version()
        return [ProofResult(artifact.name, version, "", 0, 0, 0, False, 0.0, reason)]
    found = inspector.prove(bundle.path, artifact, inputs, programs)
    return [] if found is None else [found]
