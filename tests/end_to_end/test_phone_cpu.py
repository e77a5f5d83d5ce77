"""A bundled model for a phone's CPU: built, run in ExecuTorch, proven, and verified again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build
from edgeopt.api.verify import _proofs_lost, run_verify
from edgeopt.results.verdicts import Verdict

pytest.importorskip("executorch")
SMALL = f"{Path(__file__).resolve().parents[1] / 'factories' / 'small_cnn.py'}:load"


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return run_build(
        BuildOptions(
            model="zoo:mobilenet",
            profile="phone-cpu",
            samples=10,
            drift=False,
            out=tmp_path_factory.mktemp("phone") / "bundle",
        )
    )


def test_it_passes_its_limits_in_its_own_runtime(phone: BuildOutcome) -> None:
    report = phone.report
    assert report.verdict is Verdict.PASS
    (accuracy,) = report.accuracy
    assert accuracy.runtime.startswith("executorch ")
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.0
    assert report.artifacts[0].int8_macs == 1.0
    assert report.compile["executorch"]["partitions"] == 1
    assert report.compile["executorch"]["outside"] == {}


def test_every_integer_kernel_equals_the_executor(phone: BuildOutcome) -> None:
    (proof,) = phone.report.proof
    assert proof.exact
    assert proof.arithmetic == "xnnpack"
    assert proof.unproven == proof.float_islands == {}
    assert proof.elements > 100_000


def test_latency_is_measured_here_and_never_gated_as_the_phones(phone: BuildOutcome) -> None:
    report = phone.report
    assert {row.artifact for row in report.latency} == {"executorch", "executorch-float32"}
    assert all(row.stand_in for row in report.latency)
    assert "latency_p50_ms" not in {limit.name for limit in report.limits}
    (comparison,) = report.comparisons
    assert comparison.ratio < 1  # measured 0.46 to 0.52; codes are a quarter of the bytes
    assert {row.artifact for row in report.memory} == {"executorch", "executorch-float32"}


def test_the_bundle_verifies_and_damage_is_found(phone: BuildOutcome, tmp_path: Path) -> None:
    result = run_verify(phone.bundle_path)
    assert result.verdict is Verdict.PASS
    assert {c.kind for c in result.contracts} == {"quantized"}
    assert all(c.holds for c in result.contracts)
    (proof,) = result.proof  # again, by the program in `state/`
    assert proof.exact
    assert proof.elements == phone.report.proof[0].elements
    copy = tmp_path / "bundle"
    shutil.copytree(phone.bundle_path, copy)
    shutil.rmtree(copy / "state")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if not f["path"].startswith("state/")]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    stripped = run_verify(copy)
    assert stripped.verdict is Verdict.PASS
    assert stripped.proof[0].first_difference.startswith("not proven: the bundle holds no program")
    data = bytearray((copy / "executorch.pte").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "executorch.pte").write_bytes(bytes(data))
    damaged = run_verify(copy)
    assert damaged.verdict is Verdict.FAIL
    assert "file executorch.pte" in [c.name for c in damaged.checks if not c.holds]


def test_a_file_takes_camera_bytes_and_gives_codes(tmp_path: Path) -> None:
    outcome = run_build(
        BuildOptions(
            model=SMALL, profile="phone-cpu", latency=False, drift=False,
            input_form="uint8-nhwc", quantized_io=True, out=tmp_path / "bundle",
        )
    )  # fmt: skip
    report = outcome.report
    (accuracy,), (proof,) = report.accuracy, report.proof
    assert accuracy.agreement is not None
    assert accuracy.agreement >= 98
    assert proof.exact  # the quantized pixels among them
    assert "quantize" in {row.operator for row in proof.details}
    assert report.compile["executorch"]["partitions"] == 1
    # XNNPACK has no uint8: one copy to float before the delegate
    assert list(report.compile["executorch"]["outside"]) == ["x:input/floats#0"]
    (method,) = outcome.bundle.manifest.artifact("executorch").methods
    assert (method.inputs[0].dtype, method.inputs[0].shape) == ("uint8", (1, 16, 16, 3))
    assert method.inputs[0].pixels is not None
    assert method.outputs[0].quantization is not None
    assert method.outputs[0].dtype == method.outputs[0].quantization.dtype == "int8"
    again = run_verify(outcome.bundle_path)
    assert again.verdict is Verdict.PASS
    assert again.proof[0].elements == proof.elements
    assert again.proof[0].exact


def test_a_file_takes_codes(tmp_path: Path) -> None:
    outcome = run_build(
        BuildOptions(
            model=SMALL, profile="phone-cpu", latency=False, drift=False, verify="edited",
            quantized_io=True, out=tmp_path / "bundle",
        )
    )  # fmt: skip
    (method,) = outcome.bundle.manifest.artifact("executorch").methods
    given = method.inputs[0].quantization
    assert given is not None
    assert (method.inputs[0].dtype, given.dtype) == ("int8", "int8")
    assert outcome.report.compile["executorch"]["outside"] == {}
    (proof,) = outcome.report.proof
    assert proof.exact
    contracts = {c.site: c.holds for c in outcome.report.contracts}
    assert contracts["x:input#0.out"]


def test_a_proof_that_no_longer_holds_fails(phone: BuildOutcome) -> None:
    lost = dataclasses.replace(phone.report.proof[0], exact=False, first_difference="a:b#0 differs")
    (check,) = _proofs_lost(phone.bundle, [lost])
    assert (check.name, check.holds) == ("proof executorch", False)
    assert "a:b#0 differs" in check.message
    assert _proofs_lost(phone.bundle, [dataclasses.replace(lost, nodes=0)]) == []


def test_a_damaged_description_fails_in_one_line(phone: BuildOutcome, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(phone.bundle_path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"][0]["methods"] = []
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = run_verify(copy)
    assert result.verdict is Verdict.FAIL
    (check,) = [c for c in result.checks if not c.holds]
    assert check.name == "run executorch"
    assert "\n" not in check.message
    assert "golden executorch-float32" in [c.name for c in result.checks if c.holds]
