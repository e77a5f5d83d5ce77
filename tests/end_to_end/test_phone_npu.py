"""Whole builds for a phone's NPU: compiled, simulated, judged, with pixels in and codes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build
from edgeopt.cli import main
from edgeopt.errors import ConfigError
from edgeopt.exporters.qnn import hexagon
from edgeopt.files import sha256
from edgeopt.results.verdicts import Verdict
from edgeopt.runtime_tests.base import LoadOptions
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner
from edgeopt.runtime_tests.qnn.runner import QnnRunner

needs_compiler = pytest.mark.skipif(
    hexagon.unavailable() is not None, reason=str(hexagon.unavailable())
)
APP = {"input_form": "uint8-nhwc", "quantized_io": True}


def options(folder: Path, **changes: object) -> BuildOptions:
    given = {
        "model": "zoo:mobilenet", "profile": "phone-npu", "formats": ("qnn",),
        "latency": False, "drift": False,
        "verify": "edited", "eval_samples": 24, "calib_samples": 32, "out": folder,
        **APP, **changes,
    }  # fmt: skip
    return BuildOptions(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return run_build(options(tmp_path_factory.mktemp("npu") / "bundle"))


@needs_compiler
def test_the_whole_graph_is_one_partition_and_answers_as_the_float_model(
    built: BuildOutcome,
) -> None:
    report = built.report
    assert report.verdict is Verdict.PASS
    found = {row.name: row.value for row in report.limits}
    assert found["partitions"] == 1
    assert found["int8_macs"] == 1.0
    (accuracy,) = report.accuracy
    assert "HTP simulator" in accuracy.runtime
    assert accuracy.samples == 24
    assert accuracy.agreement == 100.0
    assert accuracy.snr_db > 30  # 39 dB with all samples
    assert report.latency == ()
    assert set(report.compile["qnn"]["archs"]) == {"v73", "v75", "v79", "v81"}
    assert [row.precision for row in report.operators] == ["int8"] * len(report.operators)


@needs_compiler
def test_the_manifest_tells_an_app_what_to_feed(built: BuildOutcome) -> None:
    manifest = json.loads((built.bundle_path / "manifest.json").read_text(encoding="utf-8"))
    (artifact,) = manifest["artifacts"]
    ((taken,), (given,)) = (artifact["methods"][0][k] for k in ("inputs", "outputs"))
    assert (taken["dtype"], taken["shape"]) == ("uint8", [1, 32, 32, 1])
    assert taken["pixels"] == {"mean": [0.5], "std": [0.5], "layout": "NHWC"}
    assert (given["name"], given["dtype"]) == ("logits", "uint8")
    assert given["quantization"]["scale"] > 0
    assert manifest["tools"]["onnxruntime-qnn"] == artifact["tools"]["onnxruntime-qnn"]
    with np.load(built.bundle_path / "golden" / "qnn.npz", allow_pickle=False) as golden:
        kinds = {name: golden[name].dtype for name in golden.files}
    assert set(kinds.values()) == {np.dtype(np.uint8)}


@needs_compiler
def test_two_builds_give_the_same_bytes_and_the_bundle_verifies(
    built: BuildOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = run_build(options(tmp_path / "again"))
    names = sorted(p.name for p in built.bundle_path.glob("qnn*"))
    assert len(names) == 9
    for name in names:
        assert sha256(again.bundle_path / name) == sha256(built.bundle_path / name), name
    assert main(["verify", str(again.bundle_path)]) == 0
    (again.bundle_path / "qnn.v75.ctx_qnn.bin").write_bytes(b"damaged")
    assert main(["verify", str(again.bundle_path)]) == 1
    assert "qnn.v75.ctx_qnn.bin" in capsys.readouterr().out


def test_without_the_compiler_nothing_passes_that_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hexagon, "unavailable", lambda: "it is not here: pip install it")
    report = run_build(options(tmp_path / "bundle")).report
    assert sorted(p.name for p in (tmp_path / "bundle").glob("qnn*")) == ["qnn.onnx"]
    assert report.verdict is Verdict.NOT_MEASURED
    verdicts = {row.name: row.verdict for row in report.limits}
    assert verdicts["drop"] is verdicts["partitions"] is Verdict.NOT_MEASURED
    assert "no qnn file was run: it is not here: pip install it" in report.warnings
    assert any("not compiled for the NPU: it is not here" in w for w in report.warnings)


def test_bad_wishes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="input is float or uint8-nhwc, not 'uint8'"):
        options(tmp_path, input_form="uint8")
    model = tmp_path / "bare.py"
    model.write_text(
        "from torch import nn, zeros\n"
        "def bare():\n    return nn.Conv2d(3, 4, 1), (zeros(2, 3, 8, 8),)\n",
        encoding="utf-8",
    )
    common = ["--profile", "phone-npu", "--format", "qnn", "--verify", "off", "--out",
              str(tmp_path / "out")]  # fmt: skip
    bare = ["build", f"{model}:bare", "--recipe", "float", *common]
    assert main([*bare, "--input", "uint8-nhwc"]) == 2
    wanted = "neither the model nor its data say how pictures are normalized"
    assert wanted in capsys.readouterr().err
    assert main([*bare, "--quantized-io"]) == 2
    assert "--quantized-io: recipe float quantizes nothing" in capsys.readouterr().err
    assert main([*bare, "--dynamic", "batch"]) == 2
    assert "the NPU's graphs have fixed shapes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_mobilenetv2_answers_on_the_npu_as_on_the_cpu(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    weights = assets / "mobilenetv2-imagenet" / "mobilenetv2_100.safetensors"
    data = f"{assets}/imagenet-sample/images256_q90.zip?labels=wnids.json"
    outcome = run_build(
        options(
            tmp_path / "bundle",
            model=f"timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@{weights}",
            calib=data,
            eval=data,
            calib_samples=16,
            eval_samples=6,
            input_form="float",
            quantized_io=False,
        )
    )
    report = outcome.report
    assert {row.name: row.value for row in report.limits}["partitions"] == 1
    (accuracy,) = report.accuracy
    assert accuracy.agreement == 100.0
    assert accuracy.snr_db > 20  # 22 dB with 8-bit activations; 42 with 16
    with np.load(outcome.bundle_path / "golden" / "qnn.npz", allow_pickle=False) as golden:
        (name,) = (n for n in golden.files if golden[n].ndim == 4)
        x = golden[name]
    assert x.shape == (1, 3, 224, 224)
    files = [outcome.bundle_path / f.path for f in outcome.bundle.manifest.artifacts[0].files]
    cpu = OnnxRuntimeRunner().load(files[:1], LoadOptions())
    npu = QnnRunner().load(files, LoadOptions())
    try:
        given = npu.input_names[0]
        a, b = (next(iter(s.run("forward", {given: x}).values())) for s in (cpu, npu))
    finally:
        npu.close()
    assert a.argmax() == b.argmax()
