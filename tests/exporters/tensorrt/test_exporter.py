"""The TensorRT exporter: explicit quantization, the build description, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeopt.ir.dialect  # noqa: F401 (registers the operators)
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.errors import ConfigError, ExportError
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.onnx.macs import multiplications
from edgeopt.exporters.onnx.rewrites.split_heads import split_heads
from edgeopt.exporters.tensorrt.engine import EngineDescription, parse_profile
from edgeopt.exporters.tensorrt.exporter import TensorRTExporter, script_text
from edgeopt.exporters.tensorrt.operators import newest_opset, takes_operator
from edgeopt.files import read_json, sha256

ops = torch.ops.edgeopt


class Attention(nn.Module):
    """A quantized qkv projection, float attention, and a linear: [1, 6, 16] -> [1, 6, 16]."""

    def __init__(self, *, zero_point: int = 0, dtype: str = "int8") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.dtype = dtype
        storage = torch.uint8 if dtype == "uint8" else torch.int8
        for name, width in (("qkv", 48), ("proj", 16)):
            codes = torch.randint(-127, 128, (width, 16), generator=generator, dtype=torch.int8)
            part = nn.Module()
            part.register_buffer("weight", codes)
            part.register_buffer("scale", torch.full((width,), 2e-3))
            part.register_buffer("zero", torch.zeros(width, dtype=torch.int8))
            part.register_buffer("bias", torch.linspace(-1, 1, width))
            self.add_module(name, part)
        self.register_buffer("x_scale", torch.tensor(0.03))
        self.register_buffer("x_zero", torch.tensor(zero_point, dtype=storage))

    def linear(self, x: torch.Tensor, part: nn.Module) -> torch.Tensor:
        low, high = (0, 255) if self.dtype == "uint8" else (-128, 127)
        codes = ops.quantize(x, self.x_scale, self.x_zero, None, None, self.dtype, low, high)
        read = ops.dequantize(
            codes, self.x_scale, self.x_zero, None, None, self.dtype, torch.float32
        )
        weight = ops.dequantize(part.weight, part.scale, part.zero, 0, None, "int8", torch.float32)
        return F.linear(read, weight, part.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.linear(x, self.qkv).chunk(3, dim=-1)
        q, k, v = (t.reshape(1, 6, 2, 8).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.linear(mixed.transpose(1, 2).reshape(1, 6, 16), self.proj)


class Plain(nn.Module):
    """Float attention over a packed projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(1, 6, 2, 8).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


X = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
TARGET = Target(
    "tensorrt",
    "tensorrt",
    "tensorrt",
    "tensorrt",
    float_type="float16",
    options={"opset": 20, "sparse_weights": True},
    minimum_runtime="10.3",
)


def request(model: nn.Module, target: Target = TARGET, **changes: object) -> ExportRequest:
    program = torch.export.export(model.eval(), (X,)).run_decompositions({})
    made = ExportRequest(
        name="tiny",
        programs={"forward": program},
        target=target,
        precision="int8",
        plan="tensorrt",
        input_names=("x",),
        output_names=("y",),
        build_key="key",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("bundle")
    return folder, TensorRTExporter().export(request(Attention()), folder)


def test_writes_model_description_and_script(written: tuple[Path, Artifact]) -> None:
    folder, artifact = written
    names = [entry.path for entry in artifact.files]
    assert names == ["tiny.onnx", "tiny.engine.json", "build_engine.py"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    for entry in artifact.files:
        assert sha256(folder / entry.path) == entry.sha256
    assert (folder / "build_engine.py").read_text() == script_text()


def test_everything_that_is_not_quantized_is_float16(written: tuple[Path, Artifact]) -> None:
    folder, _ = written
    model = onnx.load(folder / "tiny.onnx")
    floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert floats == []
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)
    }
    assert kinds == {"x": onnx.TensorProto.FLOAT, "y": onnx.TensorProto.FLOAT}
    zeros = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert {t.name for t in zeros} >= {"qkv.weight", "proj.weight"}
    assert not any(node.doc_string for node in model.graph.node)


def test_the_quantized_products_are_quantized_in_the_file(written: tuple[Path, Artifact]) -> None:
    folder, _ = written
    products = multiplications(folder / "tiny.onnx")
    # 6 tokens: 16 x 48 and 16 x 16, and two attention products of 2 heads x 6 x 6 x 8.
    assert [(p.macs, p.quantized) for p in products] == [
        (6 * 16 * 48, True),
        (2 * 6 * 6 * 8, False),
        (2 * 6 * 6 * 8, False),
        (6 * 16 * 16, True),
    ]


def test_outputs_stay_those_of_the_program(written: tuple[Path, Artifact]) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder, _ = written
    got = ort.InferenceSession(folder / "tiny.onnx").run(None, {"x": X.numpy()})[0]
    expected = Attention()(X).numpy()
    # Codes that round the other way move an output by 0.03 * 0.25; some of 16 do.
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_description_says_how_to_build_check_and_time(written: tuple[Path, Artifact]) -> None:
    folder, artifact = written
    engine = read_json(folder / "tiny.engine.json", EngineDescription)
    assert engine.sha256 == artifact.model_file.sha256
    assert engine.flags == (
        "--stronglyTyped",
        "--sparsity=enable",
        "--profilingVerbosity=detailed",
    )
    assert engine.profiles == ()
    assert (engine.minimum_tensorrt, engine.tolerance) == ("10.3", 0.05)
    assert engine.golden.startswith("golden/")
    assert engine.inputs[0].shape == (1, 6, 16)


def test_the_same_program_gives_the_same_bytes(
    written: tuple[Path, Artifact], tmp_path: Path
) -> None:
    folder, _ = written
    TensorRTExporter().export(request(Attention()), tmp_path)
    for name in ("tiny.onnx", "tiny.engine.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Attention(zero_point=3), "zero point is not 0"),
        (Attention(zero_point=128, dtype="uint8"), "uint8 codes; TensorRT takes int8"),
    ],
    ids=["affine", "uint8"],
)
def test_refuses_what_tensorrt_cannot_parse(model: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        TensorRTExporter().export(request(model), tmp_path)
    assert not list(tmp_path.iterdir())


def test_refuses_an_int32_bias() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.ones(16, dtype=torch.int32))
            self.register_buffer("scale", torch.tensor(0.1))
            self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            float32 = torch.float32
            return x + ops.dequantize(
                self.bias, self.scale, self.zero, None, None, "int32", float32
            )

    assert any("biases stay float" in p for p in TensorRTExporter().unsupported(request(Bias())))


@pytest.mark.parametrize(
    ("opset", "minimum", "words"),
    [(21, "10.3", "reads 9 to 20"), (18, "10.3", "need 19 or newer"), (20, "8.6", "reads 9 to 17")],
)
def test_refuses_an_opset_outside_the_table(opset: int, minimum: str, words: str) -> None:
    target = dataclasses.replace(TARGET, options={"opset": opset}, minimum_runtime=minimum)
    assert any(words in p for p in TensorRTExporter().unsupported(request(Attention(), target)))


def test_dynamic_inputs_need_an_optimization_profile() -> None:
    found = TensorRTExporter().unsupported(request(Attention(), dynamic=("batch",)))
    assert any('optimization_profile = "batch=MIN:OPT:MAX"' in p for p in found)


def test_refuses_an_operator_that_this_tensorrt_lacks(tmp_path: Path) -> None:
    class Bits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.bitwise_and((x > 0).to(torch.int32), 1)

    with pytest.raises(ExportError, match="has no BitwiseAnd"):
        TensorRTExporter().export(request(Bits(), precision="float16", plan=""), tmp_path)
    assert not list(tmp_path.iterdir())


def test_writes_a_dynamic_batch_with_its_profile(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (torch.randn(3, 8),), dynamic_shapes=({0: batch},))
    target = dataclasses.replace(
        TARGET, options={**TARGET.options, "optimization_profile": "batch=1:4:16"}
    )
    asked = ExportRequest(
        "dynamic", {"forward": program.run_decompositions({})}, target, "float16", "", ("x",),
        ("y",), dynamic=("batch",),
    )  # fmt: skip
    TensorRTExporter().export(asked, tmp_path)
    data = json.loads((tmp_path / "dynamic.engine.json").read_text())
    assert data["profiles"] == [
        {"name": "x", "minimum": [1, 8], "optimum": [4, 8], "maximum": [16, 8]}
    ]


@pytest.mark.parametrize("text", ["batch", "batch=1:2", "batch=4:2:8", "batch=0:1:2"])
def test_refuses_a_profile_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(ConfigError, match="optimization_profile"):
        parse_profile(text)


def test_the_table_knows_when_operators_came() -> None:
    assert [newest_opset(v) for v in ((8, 6), (10, 0), (10, 3), (10, 6), (11, 4))] == [
        17, 20, 20, 22, 24,
    ]  # fmt: skip
    assert takes_operator("LayerNormalization", (10, 3))
    assert not takes_operator("Attention", (10, 3))
    assert takes_operator("Attention", (10, 14))
    assert not takes_operator("QLinearConv", (11, 4))


def test_split_heads_is_exact_and_acts_once() -> None:
    ort = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(Plain().eval(), (X,), dynamo=True, opset_version=20, verbose=False)
    model = program.model
    before = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    name = before.get_inputs()[0].name
    expected = before.run(None, {name: X.numpy()})

    assert len(split_heads(model)) == 1
    assert split_heads(model) == ()

    (split,) = (n for n in model.graph if n.op_type == "Split")
    assert split.attributes["axis"].value == 0
    after = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    np.testing.assert_array_equal(after.run(None, {name: X.numpy()})[0], expected[0])
