"""MobileNetV2 and ResNet-20 with their pictures, through whole builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build

FACTORY = Path(__file__).resolve().parents[1] / "factories" / "resnet20.py"


@pytest.fixture(scope="module")
def mobilenet(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    pytest.importorskip("timm")
    weights = assets / "mobilenetv2-imagenet" / "mobilenetv2_100.safetensors"
    data = f"{assets}/imagenet-sample/images256_q90.zip?labels=wnids.json"
    return run_build(
        BuildOptions(
            model=f"timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@{weights}",
            profile="host",
            calib=data,
            eval=data,
            latency=False,
            drift=False,
            verify="edited",
            out=tmp_path_factory.mktemp("mobilenetv2") / "bundle",
        )
    )


def test_mobilenetv2_loses_at_most_one_and_a_half_points(mobilenet: BuildOutcome) -> None:
    (accuracy,) = mobilenet.report.accuracy
    assert accuracy.samples == 436  # 64 of the 500 calibrate
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.5
    assert "64 samples calibrate, the other 436 judge" in mobilenet.report.warnings[0]


def test_mobilenetv2_is_all_integer_and_bit_exact(mobilenet: BuildOutcome) -> None:
    (proof,) = mobilenet.report.proof
    assert proof.exact
    assert proof.float_islands == {}
    assert proof.unproven == {}
    counts = mobilenet.report.compile["onnxruntime"]["operators"]
    assert counts["int8"]["QLinearConv"] == 52
    assert counts["int8"]["QLinearAdd"] == 10
    assert "float32" not in counts


def test_resnet20_loses_at_most_one_point(assets: Path, tmp_path: Path) -> None:
    report = run_build(
        BuildOptions(
            model=f"{FACTORY}:resnet20",
            profile="host",
            latency=False,
            drift=False,
            eval_samples=2000,
            out=tmp_path / "bundle",
        )
    ).report
    (accuracy,) = report.accuracy
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.0
    (proof,) = report.proof
    assert proof.exact
    assert report.artifacts[0].int8_macs == 1.0
