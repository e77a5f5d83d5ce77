"""Low-rank factors through whole builds: quantized, exported, run, proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeopt
from edgeopt.api.build import BuildOutcome
from edgeopt.errors import ConfigError
from edgeopt.exporters.onnx.tensors import OnnxTensors

RECIPE = """
schema = 1
name = "low-rank-sparse-int8"
summary = "Factorize, then prune the factors, then INT8."
[[passes]]
name = "fold_batch_norm"
[[passes]]
name = "factorize_svd"
[passes.options]
budget = 0.5
ignore_profile = true
[[passes]]
name = "prune_nm"
[passes.options]
ignore_profile = true
include = ["mlp"]
[[passes]]
name = "capture"
[[passes]]
name = "plan"
[[passes]]
name = "calibrate"
[[passes]]
name = "quantize"
"""


class Small(nn.Module):
    """A pointwise convolution behind a batch norm, and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        self.point = nn.Conv2d(32, 48, 1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.mlp = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.point(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.mlp(y.mean(dim=(2, 3)))))


def model() -> nn.Module:
    """Return the model with weights that are near low rank, as those of trained models are."""
    torch.manual_seed(0)
    made = Small().eval()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] > 10:
                flat = layer.weight.flatten(1)
                u, s, vh = torch.linalg.svd(flat, full_matrices=False)
                falling = s[0] * 0.7 ** torch.arange(len(s))
                layer.weight.copy_(((u * falling) @ vh).view_as(layer.weight))
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(160, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def build(recipe: str, images: Tensor, out: Path, *settings: str) -> BuildOutcome:
    return edgeopt.build(
        model(), images[:2], profile="host", recipe=recipe, settings=settings,
        calibration=images[:128], evaluate=images[128:], calib_samples=128,
        latency=False, drift=False, out=out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sparse(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    folder = tmp_path_factory.mktemp("sparse")
    (folder / "mine.toml").write_text(RECIPE, encoding="utf-8")
    return build(str(folder / "mine.toml"), images, folder / "bundle")


def changed(outcome: BuildOutcome) -> dict[str, str]:
    (row,) = [r for r in outcome.report.passes if r.name == "factorize_svd"]
    return dict(row.changes)


def stored(outcome: BuildOutcome) -> OnnxTensors:
    (artifact,) = [a for a in outcome.bundle.manifest.artifacts if a.precision == "int8"]
    return OnnxTensors(outcome.bundle_path / artifact.model_file.path, artifact)


def test_factors_are_int8_in_the_file_and_the_runtime_computes_their_integers(
    sparse: BuildOutcome,
) -> None:
    sites = changed(sparse)
    assert {"point", "mlp.0"} <= sites.keys()
    file = stored(sparse)
    for site in sites:
        down, up = (file.tensor(f"{site}.{leaf}.weight") for leaf in ("down", "up"))
        assert down is not None
        assert up is not None
        assert (down.dtype, up.dtype) == (np.int8, np.int8)
        assert down.shape[0] == up.shape[1]
        assert file.tensor(f"{site}.weight") is None
    (proof,) = sparse.report.proof
    assert proof.exact
    assert sparse.report.artifacts[0].int8_macs == 1.0
    assert sparse.report.accuracy[0].snr_db is not None
    assert sparse.report.accuracy[0].snr_db > 5  # 2:4 without training costs most of it


def test_pruned_factors_keep_their_contract_in_the_file(sparse: BuildOutcome) -> None:
    pairs = [site for site in changed(sparse) if site.startswith("mlp")]
    held = {c.site for c in sparse.report.contracts if c.kind == "nm-sparse" and c.holds}
    assert pairs
    assert {f"{site}.{leaf}.weight" for site in pairs for leaf in ("down", "up")} <= held
    for site in pairs:
        down = stored(sparse).tensor(f"{site}.down.weight")
        assert down is not None
        groups = np.pad(down, ((0, 0), (0, -down.shape[1] % 4))).reshape(-1, 4)
        assert int((groups != 0).sum(axis=1).max()) <= 2


def test_settings_choose_how_the_shipped_recipe_finds_ranks(images: Tensor, tmp_path: Path) -> None:
    wide = build(
        "low-rank-int8", images, tmp_path / "b", "factorize_svd.ignore_profile=true",
        "factorize_svd.energy=0.9",
    )  # fmt: skip
    assert len(changed(wide)) >= 3
    assert wide.report.proof[0].exact
    assert wide.report.accuracy[0].snr_db is not None
    # each of at most four layers in a row keeps 90 % of its variance: about 10 dB, INT8 aside
    assert wide.report.accuracy[0].snr_db > 4
    with pytest.raises(ConfigError, match="give one of rank, energy and budget"):
        build(
            "low-rank-int8",
            images,
            tmp_path / "d",
            *(f"factorize_svd.{o}" for o in ("rank=8", "budget=0.5")),
        )


def test_the_exported_float_file_computes_what_the_factorized_module_does(
    images: Tensor, sparse: BuildOutcome
) -> None:
    from edgeopt.passes.factorize.factorize_svd import FactorizeSVD, FactorizeSVDConfig
    from edgeopt.passes.fold.fold_batch_norm import FoldBatchNorm
    from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
    from tests.small_models import batches, context, run

    (path,) = sparse.bundle_path.glob("*float32.onnx")
    session = onnxruntime.InferenceSession(str(path))
    (got,) = session.run(None, {session.get_inputs()[0].name: images[:1].numpy()})
    # the build calibrates with the same samples, in other batches
    ctx = context(images[:2], calibration=batches(*images[:128].split(32)))
    state = run(
        model(), ctx, FoldBatchNorm(),
        FactorizeSVD(FactorizeSVDConfig(budget=0.5, ignore_profile=True)),
        PruneNM(PruneNMConfig(include=("mlp",), ignore_profile=True)),
    )  # fmt: skip
    with torch.no_grad():
        want = state.carrier_module(images[:1]).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
