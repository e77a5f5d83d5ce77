"""From options to a job: what this machine's CPU asks for, and what `--format` adds."""

from __future__ import annotations

import pytest
import torch

from edgeopt.api.building import inputs as module
from edgeopt.api.building.inputs import Inputs, resolve
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.targets import Extra, choose_targets
from edgeopt.devices.profile import load_profile
from edgeopt.errors import ConfigError
from edgeopt.models.from_module import from_module
from edgeopt.progress import no_progress

X = torch.linspace(-1, 1, 32 * 16).reshape(32, 16)


def resolved(profile: str, **options: object) -> Inputs:
    model = from_module(torch.nn.Sequential(torch.nn.Linear(16, 4)).eval(), X[:2])
    given = BuildOptions(model, profile, "int8", calib=X, calib_samples=8, **options)  # type: ignore[arg-type]
    return resolve(given, no_progress, None)


def weight_bits(found: Inputs) -> object:
    """Return what the plan is told; 0: the rules' own."""
    return next(p.options()["weight_bits"] for p in found.job.passes if p.name == "plan")


@pytest.mark.parametrize(
    ("profile", "vnni", "settings", "bits"),
    [
        ("host", True, (), 0),
        ("host", False, (), 7),
        ("host", False, ("plan.weight_bits=8",), 8),
        ("orin", False, (), 0),  # its kernels are not this CPU's
        ("phone-cpu", False, (), 0),
    ],
)
def test_weights_lose_a_bit_only_where_this_cpus_own_kernels_would_saturate(
    profile: str,
    vnni: bool,
    settings: tuple[str, ...],
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "has_vnni", lambda: vnni)
    found = resolved(profile, settings=settings)
    assert weight_bits(found) == bits
    warned = [warning for warning in found.warnings if "has no VNNI" in warning]
    assert len(warned) == (bits == 7)


def test_one_data_set_is_split_and_the_split_is_told() -> None:
    found = resolved("host")
    assert found.data.calibration is not None
    assert found.data.evaluation is not None
    assert (found.data.calibration.count, found.data.evaluation.count) == (8, 24)
    assert found.data.first is found.data.calibration
    assert any("8 samples calibrate, the other 24 judge" in w for w in found.warnings)


def test_a_format_names_targets_and_a_precision_adds_files() -> None:
    orin = load_profile("orin")
    every = choose_targets(orin, ("onnx:float16", "onnx:float32"))
    assert every.all == (*orin.targets, *orin.stand_ins)
    assert every.extra == (Extra("onnx", "float16"), Extra("onnx", "float32"))
    only = choose_targets(orin, ("tensorrt",))
    assert (only.targets, only.stand_ins, only.extra) == (orin.targets, (), ())
    stand_in = choose_targets(orin, ("onnx",))
    assert (stand_in.targets, stand_in.stand_ins) == (orin.stand_ins, ())


@pytest.mark.parametrize("text", ["onnx:int4", "tensorrt:float16", "newfangled:float32"])
def test_a_precision_that_no_exporter_offers_is_refused(text: str) -> None:
    told = f"--format {text}: takes onnx:float32 or onnx:float16 beside onnx, tensorrt"
    with pytest.raises(ConfigError) as caught:
        choose_targets(load_profile("orin"), (text,))
    assert str(caught.value) == told


def test_a_target_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"profile host has no such target"):
        choose_targets(load_profile("host"), ("tensorrt",))
