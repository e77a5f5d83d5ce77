"""A layer that stores its weight transposed, as Transformers' `Conv1D`, is never handled wrong."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.onnx.exporter import OnnxExporter
from edgeopt.exporters.onnx.tensors import OnnxTensors
from edgeopt.ir import edges, program
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
from tests.small_models import QUANTIZE, context, float_operators, normal, run, seeded


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
def test_it_is_pruned_quantized_and_exported_as_the_linear_that_it_is(
    rules: str, tmp_path: Path
) -> None:
    x = normal(2, 3, 8)
    module = seeded(Mlp)
    prune = PruneNM(PruneNMConfig(ignore_profile=True))
    ctx = context(x, rules=rules)
    pruned = run(module, ctx, prune)
    assert {c for c in pruned.contracts if isinstance(c, NMSparse)} == {
        NMSparse("c_fc.weight", 2, 4, 0),  # stored [in, out]
        NMSparse("c_proj.weight", 2, 4, 0),
        NMSparse("head.weight", 2, 4, 1),
    }
    state = run(module, ctx, prune, *QUANTIZE)
    # captured as linears, so the axis of the groups moves with the weight
    assert {c for c in state.contracts if isinstance(c, NMSparse)} == {
        NMSparse(f"{name}.weight", 2, 4, 1) for name in ("c_fc", "c_proj", "head")
    }
    assert state.plan is not None
    assert float_operators(state.plan) == {}
    exported = state.carrier_programs["forward"]
    table = program.tensors(exported)
    assert table["c_fc.weight"].dtype == torch.int8
    assert table["c_fc.weight"].shape == (16, 8)  # [out, in] now
    codes = table["c_fc.weight"].float() * table["c_fc.weight_scale"].reshape(-1, 1)
    want = pruned.carrier_module.c_fc.weight.detach().t()
    half = table["c_fc.weight_scale"].reshape(-1, 1) * 0.5001
    assert bool(((codes - want).abs() <= half).all())

    request = ExportRequest("m", {"forward": exported}, ctx.target, "int8", rules, ("x",), ("y",))
    artifact = OnnxExporter().export(request, tmp_path)
    path = tmp_path / artifact.model_file.path
    file = OnnxTensors(path, artifact)
    assert [m for c in state.contracts if (m := c.check_file(file))] == []
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    # Sums in another order may move a value near a tie to the next code. A code of the head's input
    # is one step there; one of c_proj's input moves the head's input by less than a few steps.
    (head,) = [n for n, s in edges.sites(exported.graph) if s.address == "head:linear#0"]
    scale = table[program.tensor_names(exported)[head.args[0].args[1].name]]
    step = scale * table["head.weight_scale"] * table["head.weight"].abs().sum(1)
    torch.testing.assert_close(
        torch.from_numpy(got),
        program.run(exported, (x,), {}),
        rtol=0,
        atol=2 * float(step.max()) + 1e-5,
    )


class Residual(nn.Module):
    """An `addmm` that adds an activation: no linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.empty(8, 8).normal_())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(x, self.first(x), self.weight)


class ReadTwice(nn.Module):
    """A weight that is read both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8).normal_())
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.weight) @ self.weight


@pytest.mark.parametrize(
    ("kind", "named"), [(Residual, {":addmm#0"}), (ReadTwice, {":matmul#0", ":matmul#1"})]
)
def test_a_product_that_is_no_linear_stays_float_by_name(
    kind: type[nn.Module], named: set[str]
) -> None:
    x = normal(2, 8)
    module = seeded(kind)
    state = run(module, context(x), *QUANTIZE)
    assert state.plan is not None
    assert set(float_operators(state.plan)) == named
    assert all(float_operators(state.plan).values())
    drift = state.history[-1].drift_db
    assert drift is not None
    assert drift > 30
