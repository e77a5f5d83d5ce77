"""What Python callers write is taken, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgeopt
from edgeopt.api.building.options import BuildOptions
from edgeopt.errors import ConfigError


def test_one_pattern_needs_no_tuple_and_a_path_may_be_text() -> None:
    options = BuildOptions(limits="drop<=1", keep_float="head", out="dist/x", lock="a.lock")  # type: ignore[arg-type]
    assert options.limits == ("drop<=1",)
    assert options.keep_float == ("head",)
    assert options.out == Path("dist/x")
    assert options.lock == Path("a.lock")


@pytest.mark.parametrize("name", ["batch", "calib_samples", "eval_samples", "samples"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is at least 1, not 0"):
        BuildOptions(**{name: 0})  # type: ignore[arg-type]


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'format'.*did you mean 'formats'"):
        edgeopt.build(torch.nn.Linear(2, 2), torch.randn(2, 2), format="onnx")


def test_tensors_for_both_data_arguments_build(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(96, 16)
    result = edgeopt.build(
        model.eval(), x[:2], profile="host", recipe="int8", calibration=x[:64], evaluate=x[64:],
        latency=False, drift=False, out=tmp_path / "bundle",
    )  # fmt: skip
    (accuracy,) = result.report.accuracy
    assert accuracy.samples == 32
    assert accuracy.snr_db is not None
    assert accuracy.snr_db > 25  # two 8-bit layers: each about 6.02 * 8 - 10 dB for normal data


def test_blank_calibration_and_float16_overflow_are_told_at_the_top(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight *= 1e6
        model[2].weight *= 1e-6
    x = torch.randn(64, 16)
    options = {"recipe": "int8", "latency": False, "drift": False, "formats": ("tensorrt",)}
    far = edgeopt.build(
        model.eval(), x[:2], profile="orin", calibration=x, out=tmp_path / "far", **options
    )
    assert any("65504" in w and "0:linear#0" in w for w in far.report.warnings)
    blank = edgeopt.build(
        model, x[:2], profile="orin", calibration=0 * x, out=tmp_path / "blank", **options
    )
    assert any("nothing but zeros" in w for w in blank.report.warnings)
