"""A layer that stores its weight transposed, as Transformers' `Conv1D`, is never handled wrong."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeopt import program
from edgeopt.contracts import NMSparse
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.onnx import OnnxExporter
from edgeopt.exporters.onnx_tensors import OnnxTensors
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
from tests.models import QUANTIZE, context, normal, run, seeded


class Conv1D(nn.Module):
    """`y = x W + b` with W [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=0.3))
        self.bias = nn.Parameter(torch.empty(outputs).normal_())

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.reshape(*x.shape[:-1], -1)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = Conv1D(16, 8)
        self.c_proj = Conv1D(8, 16)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c_proj(torch.nn.functional.gelu(self.c_fc(x))))


@pytest.mark.parametrize("rules", ["onnxruntime-x86", "tensorrt"])
def test_it_is_pruned_along_the_right_axis_stays_float_by_name_and_is_exported_right(
    rules: str, tmp_path: Path
) -> None:
    x = normal(2, 3, 8)
    module = seeded(Mlp)
    prune = PruneNM(PruneNMConfig(ignore_profile=True))
    state = run(module, context(x, rules=rules), prune, *QUANTIZE)
    assert {c for c in state.contracts if isinstance(c, NMSparse)} == {
        NMSparse("c_fc.weight", 2, 4, 0),
        NMSparse("c_proj.weight", 2, 4, 0),
        NMSparse("head.weight", 2, 4, 1),
    }
    assert state.plan is not None
    # float, and named with a reason: nothing is silent
    assert set(state.plan.float_operators) == {"c_fc:addmm#0", "c_proj:addmm#0"}
    assert all(state.plan.float_operators.values())
    exported = state.carrier_programs["forward"]
    table = program.tensors(exported)
    assert table["c_fc.weight"].dtype == torch.float32
    assert table["head.weight"].dtype == torch.int8

    request = ExportRequest(
        "m", {"forward": exported}, context(rules=rules).target, "int8", rules, ("x",), ("y",)
    )
    artifact = OnnxExporter().export(request, tmp_path)
    path = tmp_path / artifact.model_file.path
    file = OnnxTensors(path, artifact)
    assert [m for c in state.contracts if (m := c.check_file(file))] == []
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    want = program.run(exported, (x,), {})
    # one code of the head's input may be off where float sums differ in order
    scale = table["c_proj.reshape_1_out_scale"]
    step = scale * table["head.weight_scale"] * table["head.weight"].abs().sum(1)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=float(step.max()) + 1e-5)
