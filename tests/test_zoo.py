"""The bundled models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edgeopt import zoo
from edgeopt.data import overlap
from edgeopt.errors import ConfigError
from edgeopt.models import load_model, weights_digest


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_model_comes_with_everything_a_build_needs(name: str) -> None:
    loaded = load_model(f"zoo:{name}")
    entry = zoo.CATALOGUE[name]
    assert sum(p.numel() for p in loaded.module.parameters()) == entry.parameters
    assert loaded.example_args[0].shape == (2, 1, entry.image_size, entry.image_size)
    assert (loaded.input_names, loaded.output_names) == (("image",), ("logits",))
    assert (loaded.input_roles, loaded.labels) == (("image",), tuple("0123456789"))
    assert loaded.metric == "top1"
    assert loaded.calibration is not None
    assert loaded.evaluation is not None
    assert (loaded.calibration.count, loaded.evaluation.count) == (1197, 600)
    assert overlap(loaded.calibration, loaded.evaluation) == 0
    assert not loaded.module.training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert weights_digest(loaded.module) == weights_digest(zoo.load(name).module)


@pytest.mark.parametrize(("name", "least"), [("vit", 97.5), ("mobilenet", 98.5)])
def test_a_model_is_right_on_held_out_pictures(name: str, least: float) -> None:
    # 98.8 and 99.8 measured; one standard error is 0.4 points at most.
    assert zoo.held_out_metric(name) >= least


def test_an_unknown_model_or_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobilenet'"):
        zoo.load("mobilnet")
    with pytest.raises(ValueError, match="train or test"):
        zoo.samples("vit", "valid")


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, edgeopt.zoo; assert 'torch' not in sys.modules; print(edgeopt.zoo.NAMES)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
