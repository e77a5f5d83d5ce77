"""Adapters at the door: builds, the command line, the files that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeopt.api.adapter import run_fuse, run_inspect
from edgeopt.api.build import BuildOutcome, run_build
from edgeopt.api.building.adapters import adapters_of, fuse
from edgeopt.api.building.lock import options_from_lock, read_lock
from edgeopt.api.building.options import BuildOptions
from edgeopt.artifacts.manifest import Manifest
from edgeopt.cli import main
from edgeopt.devices.profile import load_profile
from edgeopt.errors import BundleError, CheckFailed, ConfigError, PipelineError
from edgeopt.files import read_json
from edgeopt.ir.digests import digest as weights_digest
from edgeopt.models import zoo
from edgeopt.models.from_module import from_module
from edgeopt.passes import by_name
from edgeopt.passes.fuse.fuse_lora import FuseLora, FuseLoraConfig
from tests.adapters.oracle import adapted, saved
from tests.small_models import Block, normal, seeded


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return zoo.load("vit").module


@pytest.fixture(scope="module")
def tone(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the bundled vision transformer, small enough to keep its answers apart."""
    model = adapted(vit, r=4, target_modules=["qkv", "fc1"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value *= 0.1
    return saved(model, tmp_path_factory.mktemp("adapters") / "tone")


def options(tone: Path, out: Path, **changes: Any) -> BuildOptions:
    given: dict[str, Any] = {
        "model": "zoo:vit",
        "profile": "host",
        "recipe": "float",
        "adapters": (f"{tone}@0.5",),
        "latency": False,
        "drift": False,
        "eval_samples": 64,
        "out": out,
    }
    return BuildOptions(**{**given, **changes})


@pytest.fixture(scope="module")
def built(tone: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return run_build(options(tone, tmp_path_factory.mktemp("bundles") / "bundle"))


# --- builds --------------------------------------------------------------------------------------


def test_accuracy_is_judged_against_the_adapted_model(built: BuildOutcome) -> None:
    (accuracy,) = built.report.accuracy
    # a float export of the adapted model; the base itself is at about 10 dB
    assert accuracy.snr_db is not None
    assert accuracy.snr_db > 80
    assert accuracy.drop == 0
    assert accuracy.agreement == 100


def test_the_fusion_stands_in_the_report_with_its_drift(built: BuildOutcome) -> None:
    row = built.report.passes[0]
    assert (row.name, row.branch) == ("fuse_lora", "trunk")
    assert len(row.changes) == 2 * len([n for n in row.changes if n.endswith("qkv")])
    assert "tone, weight 0.5: LoRA of rank 4" in row.changes["blocks.0.attn.qkv"]
    assert row.drift_db is not None
    assert row.drift_db < 40
    assert [r.name for r in built.report.passes].count("fuse_lora") == 1


def test_manifest_and_lock_name_the_adapter(built: BuildOutcome, tone: Path) -> None:
    manifest = read_json(built.bundle_path / "manifest.json", Manifest)
    assert manifest.adapters == ("tone@0.5",)
    assert manifest.model == built.report.model == "zoo:vit with tone@0.5"
    lock = read_lock(built.bundle_path / "edgeopt.lock")
    assert lock.options["adapters"] == [f"{tone}@0.5"]
    assert lock.hashes["adapters"] == manifest.hashes["adapters"]


def test_the_lock_builds_the_same_bytes_and_notices_another_adapter(
    built: BuildOutcome, tone: Path, tmp_path: Path
) -> None:
    path = built.bundle_path / "edgeopt.lock"
    again = run_build(options_from_lock(path, tmp_path / "again"))
    assert again.report.build_key == built.report.build_key
    assert not [w for w in again.report.warnings if "not the bytes" in w]
    config = tone / "adapter_config.json"
    before = config.read_text()
    try:
        config.write_text(before.replace('"lora_alpha": 8', '"lora_alpha": 16'))
        with pytest.raises(CheckFailed, match="adapters, weights changed since it was written"):
            run_build(options_from_lock(path, tmp_path / "other"))
    finally:
        config.write_text(before)


def test_a_build_key_knows_adapter_and_weight(tone: Path) -> None:
    loaded = from_module(seeded(Block), normal(2, 5, 16), name="block")
    profile = load_profile("host")
    assert fuse(loaded, (), profile).loaded is loaded
    assert fuse(loaded, (), profile).hashes == {}
    vit = zoo.load("vit")
    one, half = (fuse(vit, (f"{tone}@{w}",), profile) for w in (1, 0.5))
    assert one.hashes["adapters"] != half.hashes["adapters"]
    assert (one.names, half.names) == (("tone",), ("tone@0.5",))
    assert (one.loaded.name, half.loaded.name) == ("vit-tone", "vit-tone-0.5")


def test_a_users_module_is_not_touched(tone: Path) -> None:
    loaded = zoo.load("vit")
    before = weights_digest(loaded.module)
    fused = fuse(loaded, (str(tone),), load_profile("host"))
    assert weights_digest(loaded.module) == before != weights_digest(fused.loaded.module)


def test_a_recipes_own_fusion_runs_before_the_reference_is_taken() -> None:
    first, fold = FuseLora(FuseLoraConfig(("a",))), by_name("fold_batch_norm")()
    assert adapters_of(("b",), (first, fold)) == (("a", "b"), (fold,))
    assert adapters_of((), (fold,)) == ((), (fold,))
    with pytest.raises(PipelineError, match="fuse_lora must stand first"):
        adapters_of((), (fold, first))
    with pytest.raises(ConfigError, match="the recipe names no adapter"):
        adapters_of(("b",), (FuseLora(), fold))


@pytest.mark.parametrize("given", ["tone", Path("tone"), ["tone"], (Path("tone"),)], ids=repr)
def test_python_callers_may_name_one_adapter(given: Any) -> None:
    assert BuildOptions(adapters=given).adapters == ("tone",)


# --- inspect -------------------------------------------------------------------------------------


def test_inspect_tells_what_is_in_the_folder(tone: Path, vit: nn.Module) -> None:
    found = run_inspect(tone)
    assert (found.name, found.method) == ("tone", "LoRA")
    assert {m.module for m in found.modules} == {
        name for name, _ in vit.named_modules() if name.endswith(("qkv", "fc1"))
    }
    tensors = load_file(tone / "adapter_model.safetensors")
    assert found.parameters == sum(t.numel() for t in tensors.values())
    first = found.modules[0]
    a, b = (tensors[f"base_model.model.{first.module}.lora_{x}.weight"] for x in "AB")
    assert first.norm == pytest.approx(float((2 * b @ a).norm()), rel=1e-5)
    assert set(found.options) == {"r", "target_modules", "init_lora_weights"}
    assert found.options["target_modules"] in (("qkv", "fc1"), ("fc1", "qkv"))


def test_inspect_prints_a_table_and_json(tone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "inspect", str(tone)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tone  LoRA, rank 4\n")
    assert "blocks.0.attn.qkv  linear" in text
    assert main(["adapter", "inspect", str(tone), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"][0]["rank"] == 4


def test_a_bad_folder_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapter", "inspect", str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no such folder" in captured.err


# --- fuse ----------------------------------------------------------------------------------------


def test_fuse_writes_weights_and_where_they_come_from(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fused"
    assert main(["adapter", "fuse", "zoo:vit", str(tone), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in out.iterdir()) == ["fused.json", "model.safetensors"]
    assert json.loads((out / "fused.json").read_text()) == told
    expected = fuse(zoo.load("vit"), (str(tone),), load_profile("host")).loaded.module
    tensors = load_file(out / "model.safetensors")
    assert tensors.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, tensors[name]), name
    assert told["fused"] == weights_digest(expected)
    assert told["base"] == weights_digest(zoo.load("vit").module)
    assert told["adapters"][0]["name"] == "tone"


def test_fuse_writes_the_same_bytes_again_over_its_own_folder_only(
    tone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fused"
    first = run_fuse("zoo:vit", (str(tone),), out)
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run_fuse("zoo:vit", (str(tone),), out) == first
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(BundleError, match="is not a fused model; choose another --out"):
        run_fuse("zoo:vit", (str(tone),), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


class Tied(nn.Module):
    """A layer whose weight two names share."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.three = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(x)))


def test_a_shared_weight_is_written_once(tmp_path: Path) -> None:
    base = seeded(Tied)
    folder = saved(adapted(base, r=2, target_modules=["three"]), tmp_path / "tone")
    run_fuse(from_module(base, normal(2, 4)), (str(folder),), tmp_path / "fused")
    tensors = load_file(tmp_path / "fused" / "model.safetensors")
    assert "one.weight" in tensors
    assert "two.weight" not in tensors


def test_an_adapter_of_another_model_is_one_line_and_exit_2(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fused"
    assert main(["adapter", "fuse", "zoo:mobilenet", str(tone), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not in the model" in error
    assert not out.exists()
    assert main(["build", "zoo:vit", "--adapter", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
