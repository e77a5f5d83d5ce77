"""What a build says on the device itself, and away from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgeopt
from edgeopt.api.building.branches import Branch
from edgeopt.api.building.timing import why_apart, why_untimed
from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices import machine as machines
from edgeopt.devices.machine import Hardware
from edgeopt.devices.profile import load_profile
from edgeopt.pipeline.state import ModelState
from edgeopt.results.verdicts import Verdict

pytest.importorskip("onnxruntime")
A100 = Hardware(gpu="NVIDIA A100-SXM4-80GB", capability="sm80")
PROFILE = load_profile("a100")
SCRIPT = "run build_engine.py {} and attach what it writes"


def written(format_: str, *, own: bool = True) -> Written:
    """Return a file of a format that claims to be of the profile's first target."""
    artifact = Artifact("main", "main", format_, "int8", "", (), (), {})
    state = ModelState(module=torch.nn.Identity())
    return Written(artifact, Branch(PROFILE.targets[0], state, state), own)


@pytest.mark.parametrize(
    ("here", "format_", "own", "apart", "untimed"),
    [
        # here: this is the device; onnx is timed here, tensorrt and qnn are not
        (False, "onnx", True, "needs the device ({title})", "only INT8 files"),
        (False, "onnx", False, "needs the device ({title})", "only INT8 files"),
        (False, "tensorrt", True, "needs the device ({title}); {there}", "needs the device"),
        (False, "qnn", True, "needs the device ({title})", "needs the device"),
        (True, "onnx", True, "", "only INT8 files"),
        (True, "onnx", False, "it stands in for another runtime", "only INT8 files"),
        (True, "tensorrt", True, "{lacks}; {at_home}", "{lacks}; {at_home}"),
        (True, "tensorrt", False, "it stands in for another runtime", "{lacks}; {at_home}"),
        (True, "qnn", True, "a simulator's time is not the NPU's", "a simulator's time is not"),
    ],
)
def test_each_case_has_its_own_words(
    here: bool, format_: str, own: bool, apart: str, untimed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "hardware", lambda: A100 if here else Hardware())
    words: dict[str, Any] = {
        "title": PROFILE.title,
        "there": SCRIPT.format("there"),
        "at_home": SCRIPT.format("here"),
        "lacks": inspector_for("tensorrt").untimed(),
    }
    one = written(format_, own=own)
    assert why_apart(one, PROFILE) == apart.format(**words)
    samples: Any = object()
    reason = why_untimed(one, PROFILE, samples, wanted=True)
    assert reason.startswith(untimed.format(**words))


def test_a_missing_runtime_is_named_before_latency_that_was_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = "ONNX Runtime is not installed: pip install it"
    onnx = inspector_for("onnx")
    assert why_untimed(written("onnx"), PROFILE, None, wanted=False) == "latency was switched off"
    monkeypatch.setattr(type(onnx.runner()), "unavailable", lambda _self: missing)
    assert why_untimed(written("onnx"), PROFILE, None, wanted=False) == missing
    monkeypatch.setattr(machines, "hardware", lambda: A100)
    assert why_apart(written("onnx"), PROFILE) == missing


TARGET = """
[[{kind}]]
name = "{name}"
format = "{format}"
runtime = "{runtime}"
rules = "{rules}"
float_type = "{float_type}"
[{kind}.options]
opset = 20
[{kind}.protocol]
warmup = 2
samples = 12
block = 4
"""
ONNX = {"format": "onnx", "runtime": "onnxruntime", "rules": "onnxruntime-x86",
        "float_type": "float32"}  # fmt: skip
TENSORRT = {"format": "tensorrt", "runtime": "tensorrt", "rules": "tensorrt",
            "float_type": "float16"}  # fmt: skip
HEAD = """
schema = 1
name = "mine"
title = "My GPU"
default_recipe = "int8"
runs_here = "cuda-sm80"
"""


@pytest.mark.parametrize("here", [True, False])
def test_only_the_device_judges_and_only_what_its_own_runtime_measured(
    here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "hardware", lambda: A100 if here else Hardware())
    profile = tmp_path / "mine.toml"
    targets = (
        TARGET.format(kind="targets", name="first", **ONNX),
        TARGET.format(kind="targets", name="second", **TENSORRT),
        TARGET.format(kind="stand_ins", name="third", **ONNX),
    )
    profile.write_text(HEAD + "".join(targets))
    torch.manual_seed(0)
    x = torch.randn(48, 16)
    report = edgeopt.build(
        torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU()).eval(), x[:2],
        profile=str(profile), calibration=x[:32], evaluate=x[32:], drift=False,
        limits=("latency_p50_ms<=1e9", "speedup>=0", "peak_memory_mb<=1e9"),
        out=tmp_path / "bundle",
    ).report  # fmt: skip
    stand_in = {result.artifact: result.stand_in for result in report.latency}
    assert stand_in == {
        "first": not here,
        "first-float32": not here,
        "third": True,
        "third-float32": True,
    }
    limits = {limit.name: limit for limit in report.limits}
    for name in ("latency_p50_ms", "speedup", "peak_memory_mb"):
        assert limits[name].verdict is (Verdict.PASS if here else Verdict.NOT_MEASURED)
        assert (limits[name].reason == "needs the device (My GPU)") is not here
    reason = report.unmeasured["second"]
    if here:
        assert reason == f"{inspector_for('tensorrt').untimed()}; {SCRIPT.format('here')}"
    else:
        assert reason == "needs the device (My GPU)"
