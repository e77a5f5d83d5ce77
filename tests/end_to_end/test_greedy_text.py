"""The bundled language model says the same in ExecuTorch as in torch (tests/zoo: ONNX Runtime)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.api.build import BuildOptions, run_build
from edgeopt.api.formats import inspector_for
from edgeopt.models import zoo
from edgeopt.runtime_tests.generate import greedy

pytest.importorskip("executorch")

WINDOW = 96
PROMPT = b'The "assert" statement is '
COUNT = 60


def test_an_executorch_file_says_what_torch_says(tmp_path: Path) -> None:
    bundle = run_build(
        BuildOptions(
            model="zoo:bytelm", profile="phone-cpu", recipe="float", latency=False, drift=False,
            verify="edited", eval_samples=2, out=tmp_path / "bundle",
        )
    ).bundle  # fmt: skip
    artifact = bundle.manifest.artifact("executorch")
    assert artifact.precision == "float32"
    method = artifact.methods[0]
    assert tuple(method.inputs[0].shape) == (1, WINDOW)
    session = inspector_for(artifact.format).load(bundle.path, artifact)
    module = zoo.load("bytelm").module

    def in_runtime(tokens: np.ndarray) -> np.ndarray:
        given = {method.inputs[0].name: tokens}
        return next(iter(session.run(method.name, given).values()))

    def in_torch(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(tokens)).numpy()

    try:
        said = greedy(in_runtime, list(PROMPT), COUNT, WINDOW)
    finally:
        session.close()
    assert said == greedy(in_torch, list(PROMPT), COUNT, WINDOW)
    assert len(set(said)) > 8  # text, not one byte over and over
