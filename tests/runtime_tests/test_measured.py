"""What comes home from the device is checked before it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.artifacts.manifest import Manifest
from edgeopt.errors import BundleError
from edgeopt.runtime_tests.measured import attach, percentile

SHA = "a" * 64


def manifest() -> Manifest:
    artifact = Artifact(
        name="tensorrt",
        target="tensorrt",
        format="tensorrt",
        precision="int8",
        plan="tensorrt",
        files=(FileEntry("tensorrt.onnx", SHA, 10),),
        methods=(
            Method(
                "forward",
                (IOSpec("image", "float32", (4, 1, 8, 8)),),
                (IOSpec("logits", "float32", (4, 10)),),
            ),
        ),
        tensor_map={},
    )
    return Manifest("0", "m", "orin", "int8", "k", {}, 0, {}, (artifact,), artifact.files)


def measured(**changes: Any) -> dict[str, Any]:
    return {
        "artifact": "tensorrt",
        "sha256": SHA,
        "device": "NVIDIA Jetson AGX Orin Developer Kit",
        "runtime": "TensorRT 10.3.0",
        "clocks": {"before: gpu Hz": "1300500000"},
        "power_mode": "MAXN",
        "samples_ms": [float(v) for v in np.linspace(1.0, 2.0, 101)],
        "golden_max_error": 0.01,
        "golden_ok": True,
        "engine_bytes": 1000,
        "command": "trtexec",
        "layers": ["conv"],
        "schema": 1,
    } | changes


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "measured.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_gives_the_latency_with_device_clocks_and_power_mode(tmp_path: Path) -> None:
    found, latency = attach(write(tmp_path, measured()), manifest())
    assert found.golden_ok is True
    assert (latency.artifact, latency.batch, latency.kind) == ("tensorrt", 4, "measured")
    assert latency.p50.value == pytest.approx(1.5)
    assert latency.p50.low < 1.5 < latency.p50.high
    assert latency.machine.details["power mode"] == "MAXN"
    assert latency.machine.details["before: gpu Hz"] == "1300500000"
    assert len(latency.samples_ms) == 101
    assert not latency.stand_in


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (measured(sha256="b" * 64), "was measured on another tensorrt.onnx"),
        (measured(artifact="tensort"), "did you mean 'tensorrt'"),
        (measured(samples_ms=[]), "holds no samples"),
        (measured(samples_ms=[1.0, -1.0]), "1 of 2 samples are not positive"),
        (measured(samples_ms=[1.0, float("nan")]), "1 of 2 samples are not positive"),
        (measured(schema=2), "schema 2"),
        (measured(golden_max_error=float("inf")), "golden_max_error is inf"),
        (measured(device=""), "names no device"),
        (measured(latency=1), "unknown key 'latency'"),
        (measured(samples_ms="fast"), "samples_ms"),
        ("{", "not valid JSON"),
    ],
    ids=[
        "other-file", "other-artifact", "no-samples", "negative", "nan", "schema", "infinite",
        "no-device", "unknown-key", "type", "no-json",
    ],
)  # fmt: skip
def test_refuses_what_does_not_fit_in_one_line(tmp_path: Path, data: object, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        attach(write(tmp_path, data), manifest())
    assert "\n" not in str(caught.value)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        attach(tmp_path / "nothing.json", manifest())


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = percentile(list(rng.lognormal(size=60)), 0.5)
        hits += found.low <= 1.0 <= found.high
    # 95 % of 400 is 380; the binomial standard deviation is 4.4.
    assert hits >= 380 - 3 * 4.4
