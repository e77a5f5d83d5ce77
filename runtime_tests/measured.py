"""Bring home what the on-device script measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.manifest import Manifest
from edgeopt.errors import BundleError
from edgeopt.files import read_json
from edgeopt.results.measurements import LatencyResult, Machine, Measured, Percentile
from edgeopt.results.verdicts import SCHEMA_VERSION


def attach(measured_path: Path, manifest: Manifest) -> tuple[Measured, LatencyResult]:
    """Read `measured.json` and bind it to the bundle that was measured.

    Args:
        measured_path: What the on-device script wrote.
        manifest: The bundle's.

    Returns:
        What was measured, and the latency as the report shows it.

    Raises:
        BundleError: If the file does not fit, speaks of another model file, or holds no usable
            samples.
    """
    measured = read_json(measured_path, Measured)
    problem = _problem(measured)
    if problem:
        raise BundleError(f"{measured_path}: {problem}")
    artifact = manifest.artifact(measured.artifact)
    expected = artifact.model_file.sha256
    if measured.sha256 != expected:
        raise BundleError(
            f"{measured_path}: was measured on another {artifact.model_file.path} "
            f"(sha256 {measured.sha256[:12]}, the bundle's is {expected[:12]}); "
            "run build_engine.py on this bundle again"
        )
    return measured, latency(measured, artifact)


def latency(measured: Measured, artifact: Artifact) -> LatencyResult:
    """Return a measurement as a latency result; all samples are of one session."""
    return LatencyResult(
        artifact=measured.artifact,
        runtime=measured.runtime,
        machine=Machine(
            name=measured.device,
            cores=0,
            features=(),
            system="",
            load=0.0,
            device=measured.device,
            details={"power mode": measured.power_mode, **measured.clocks},
        ),
        threads=1,
        batch=_batch(measured, artifact),
        p50=percentile(measured.samples_ms, 0.50),
        p90=percentile(measured.samples_ms, 0.90),
        p99=percentile(measured.samples_ms, 0.99),
        samples_ms=measured.samples_ms,
        block=len(measured.samples_ms),
        method=artifact.methods[0].name,
    )


def percentile(samples: Sequence[float], share: float) -> Percentile:
    """Return an order statistic with its 95 % interval.

    The number of samples below the true quantile is binomial, so the interval's ends are the order
    statistics at its 2.5 % and 97.5 % points, cut at the smallest and largest sample.
    """
    import numpy as np
    from scipy.stats import binom

    ordered = np.sort(np.asarray(samples, np.float64))
    count = len(ordered)
    low, high = (int(binom.ppf(p, count, share)) for p in (0.025, 0.975))
    return Percentile(
        float(np.quantile(ordered, share)),
        float(ordered[max(low - 1, 0)]),
        float(ordered[min(high, count - 1)]),
    )


def _problem(measured: Measured) -> str:
    if measured.schema != SCHEMA_VERSION:
        return f"schema {measured.schema}; this edgeopt reads {SCHEMA_VERSION}"
    if not measured.samples_ms:
        return "holds no samples"
    bad = [value for value in measured.samples_ms if not math.isfinite(value) or value <= 0]
    if bad:
        return f"{len(bad)} of {len(measured.samples_ms)} samples are not positive times"
    error = measured.golden_max_error
    if error is not None and not (math.isfinite(error) and error >= 0):
        return f"golden_max_error is {error}"
    if not measured.device or not measured.runtime:
        return "names no device or no runtime"
    return ""


def _batch(measured: Measured, artifact: Artifact) -> int:
    shape = artifact.methods[0].inputs[0].shape
    if shape and isinstance(shape[0], int):
        return shape[0]
    given = re.search(r"--shapes=[^:\s]+:(\d+)", measured.command)
    return int(given.group(1)) if given else 1
