"""QNN artifacts: the Q/DQ file always, a context binary for each chip where that is possible."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from edgeopt.errors import ConfigError, ExportError
from edgeopt.exporters.onnx.tensors import OnnxTensors
from edgeopt.exporters.qnn import hexagon
from edgeopt.exporters.qnn.exporter import QnnExporter
from edgeopt.files import sha256
from tests.exporters.qnn.models import quantized, request, written
from tests.small_models import TENSORRT, Block, SmallCNN, context, normal, run, seeded

X = normal(4, 3, 8, 8)
needs_compiler = pytest.mark.skipif(
    hexagon.unavailable() is not None, reason=str(hexagon.unavailable())
)


class Scalars(nn.Module):
    """Two numbers whose codes are equal and whose scales are not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * 0.3) * 5.0


@needs_compiler
def test_writes_the_program_first_and_a_pair_of_files_for_each_chip(tmp_path: Path) -> None:
    result = written(seeded(SmallCNN), X, tmp_path, hexagon="v79 v69")
    names = [entry.path for entry in result.artifact.files]
    assert names == [
        "qnn.onnx",
        "qnn.v79.ctx.onnx", "qnn.v79.ctx_qnn.bin",
        "qnn.v69.ctx.onnx", "qnn.v69.ctx_qnn.bin",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    for entry in result.artifact.files:
        assert entry.sha256 == sha256(tmp_path / entry.path)
        assert entry.size_bytes == (tmp_path / entry.path).stat().st_size
    tools = result.artifact.tools
    assert tools["qnn-sdk"].startswith("v2.")
    assert tools["onnxruntime-qnn"][0].isdigit()
    assert result.artifact.notes == ()
    tensors = OnnxTensors(tmp_path / "qnn.onnx", result.artifact)
    assert [c.check_file(tensors) for c in result.state.contracts] == [None] * len(
        result.state.contracts
    )


def test_without_the_compiler_the_program_is_written_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hexagon, "unavailable", lambda: "it is not here: pip install it")
    result = written(seeded(SmallCNN), X, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["qnn.onnx"]
    assert result.artifact.notes == ("not compiled for the NPU: it is not here: pip install it",)
    onnx.checker.check_model(onnx.load(tmp_path / "qnn.onnx"), full_check=True)


def test_equal_codes_of_different_numbers_are_stored_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged, the NPU gives both the first one's scale: the second product was 17 times off."""
    monkeypatch.setattr(hexagon, "unavailable", lambda: "not needed")
    result = written(seeded(Scalars), normal(4, 8), tmp_path)
    model = onnx.load(tmp_path / "qnn.onnx")
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert stored["mul_0_constant"] == stored["mul_1_constant"] == 255  # and under their own names
    readers = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    scales: dict[str, set[bytes]] = {}
    for node in readers:
        if node.input[0] in stored:
            scales.setdefault(node.input[0], set()).add(stored[node.input[1]].tobytes())
    assert {len(found) for found in scales.values()} == {1}
    entries = result.artifact.tensor_map
    for fqn, value in (("mul_0_constant", 0.3), ("mul_1_constant", 5.0)):
        (scale,) = scales[entries[fqn].name]
        assert 255 * np.frombuffer(scale, np.float32)[0] == pytest.approx(value)


@needs_compiler
def test_equal_codes_of_different_numbers_are_right_on_the_npu(tmp_path: Path) -> None:
    x = normal(4, 8)
    result = written(seeded(Scalars), x, tmp_path)
    with hexagon.Simulator(hexagon.read_context(tmp_path / "qnn.v75.ctx.onnx")) as simulator:
        got = simulator.run({"in0": x[:1].numpy()})["out0"]
    want = seeded(Scalars)(x[:1]).detach().numpy()
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
    assert result.artifact.notes == ()


def test_what_a_program_computes_twice_keeps_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.onnx merges equal nodes; both edges are then found in the file."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y.transpose(1, 2) @ y + (y.transpose(2, 1) @ y).softmax(-1)

    monkeypatch.setattr(hexagon, "unavailable", lambda: "not needed")
    result = written(seeded(Twice), normal(4, 3, 8), tmp_path)
    edges = result.artifact.edge_map
    assert len(edges) > len(set(edges.values()))
    tensors = OnnxTensors(tmp_path / "qnn.onnx", result.artifact)
    assert [c.check_file(tensors) for c in result.state.contracts] == [None] * len(
        result.state.contracts
    )


def test_refuses_dynamic_shapes_in_words(tmp_path: Path) -> None:
    order = dataclasses.replace(request(quantized(seeded(SmallCNN), X), X), dynamic=("batch",))
    with pytest.raises(ExportError, match="'batch' is dynamic, and the NPU's graphs have fixed"):
        QnnExporter().export(order, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_signed_activations_which_the_npu_computes_wrongly(tmp_path: Path) -> None:
    ctx = context(X, rules=TENSORRT)
    state = run(seeded(SmallCNN), ctx, "capture", "plan", "calibrate", "quantize")
    with pytest.raises(ExportError, match=r"int8 activations, .*re-plan by the rules of qnn"):
        QnnExporter().export(request(state, X), tmp_path)


def test_refuses_16_bit_codes_in_an_opset_that_lacks_them(tmp_path: Path) -> None:
    order = request(quantized(seeded(Block), normal(2, 4, 16), bits=16), normal(1, 4, 16))
    target = dataclasses.replace(order.target, options={"opset": 20})
    found = QnnExporter().unsupported(dataclasses.replace(order, target=target))
    assert any("uint16 codes need opset 21, not 20" in reason for reason in found)


def test_refuses_an_unknown_chip_before_anything_is_written(tmp_path: Path) -> None:
    order = request(quantized(seeded(SmallCNN), X), X[:1], hexagon="v99")
    with pytest.raises(ConfigError, match="hexagon 'v99' is not known"):
        QnnExporter().export(order, tmp_path)
    assert list(tmp_path.iterdir()) == []
