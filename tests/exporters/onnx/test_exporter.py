"""ONNX files: names, bytes, contracts, and what ONNX Runtime makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.contracts.quantized import Quantized
from edgeopt.contracts.tied import Tied
from edgeopt.errors import BundleError, ExportError
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.onnx.checking import check_file
from edgeopt.exporters.onnx.exporter import OnnxExporter
from edgeopt.exporters.onnx.tensors import OnnxTensors, stored_tensors
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
from edgeopt.pipeline.state import ModelState
from tests.small_models import QUANTIZE, Block, SmallCNN, TiedHead, context, normal, run, seeded

ROOT = Path(__file__).resolve().parents[3]
LEGAL = ("unsigned_activations", "integer_bias")
CNN_EXAMPLE = normal(4, 3, 8, 8)
BLOCK_EXAMPLE = normal(2, 4, 16)


@dataclasses.dataclass(frozen=True)
class Written:
    """A file, and what it was written from."""

    state: ModelState
    exported: ExportedProgram
    artifact: Artifact
    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @property
    def tensors(self) -> OnnxTensors:
        return OnnxTensors(self.path, self.artifact)

    def run(self, *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
        session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return session.run(None, feeds)

    def optimized(self) -> onnx.ModelProto:
        """Return the graph that ONNX Runtime executes."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        place = self.path.with_suffix(".optimized.onnx")
        options.optimized_model_filepath = str(place)
        onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        return onnx.load(place)


def write(
    state: ModelState,
    folder: Path,
    *,
    precision: str = "int8",
    at: Tensor | None = None,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 20,
) -> Written:
    """Export a state, at fixed shapes where `at` is given."""
    exported = state.carrier_programs["forward"]
    if at is not None:
        exported = program.retrace(exported, (at,), {})
    target = dataclasses.replace(context().target, options={"opset": opset})
    plan = state.plan.rules if state.plan is not None else ""
    request = ExportRequest(
        "model", {"forward": exported}, target, precision, plan, inputs, outputs, build_key="k1"
    )
    artifact = OnnxExporter().export(request, folder)
    return Written(state, exported, artifact, folder / artifact.model_file.path)


def pruned_and_quantized(kind: type[nn.Module], example: Tensor) -> ModelState:
    prune = PruneNM(PruneNMConfig(ignore_profile=True))
    return run(seeded(kind), context(example), prune, *QUANTIZE, *LEGAL)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a small sparse INT8 network with a dynamic batch."""
    state = pruned_and_quantized(SmallCNN, CNN_EXAMPLE)
    return write(state, tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return an INT8 transformer block at batch 1."""
    state = pruned_and_quantized(Block, BLOCK_EXAMPLE)
    return write(state, tmp_path_factory.mktemp("block"), at=BLOCK_EXAMPLE[:1])


@pytest.fixture(scope="module")
def float_block(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the block in float32."""
    state = run(seeded(Block), context(BLOCK_EXAMPLE), "capture")
    return write(state, tmp_path_factory.mktemp("float"), precision="float32")


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def one_code_off(written: Written, address: str) -> float:
    """Return how far a linear's output moves if each of its inputs is one code off."""
    (node,) = [n for n, site in edges.sites(written.exported.graph) if site.address == address]
    table, names = program.tensors(written.exported), program.tensor_names(written.exported)
    read, weight = node.args[0], node.args[1]
    assert read.target is weight.target is DEQUANTIZE
    scale = float(table[names[read.args[1].name]])
    codes, scales = (table[names[weight.args[i].name]] for i in (0, 1))
    return scale * float((codes.abs().sum(1) * scales).max())


# --- what ONNX Runtime makes of the file ---------------------------------------------------------


def test_a_small_network_runs_in_integer_operators_throughout(cnn: Written) -> None:
    assert operators(cnn.optimized()) == {
        "QuantizeLinear": 1,  # the input
        "QLinearConv": 3,
        "QLinearAdd": 1,
        "MaxPool": 1,  # on codes
        "QLinearGlobalAveragePool": 1,
        "Reshape": 1,
        "QGemm": 1,
    }


def test_the_linears_of_a_transformer_block_run_in_integer_operators(block: Written) -> None:
    model = block.optimized()
    found = operators(model)
    assert found["QGemm"] == 4
    assert found["DequantizeLinear"] == 0  # no weight is turned back into floats
    assert found["Gemm"] == 0
    # what is left are the two products of attention, in float by the rules
    assert found["MatMul"] + found["FusedMatMul"] == 2


@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_with_a_dynamic_batch_gives_what_the_program_gives(
    cnn: Written, batch: int
) -> None:
    x = CNN_EXAMPLE[:batch]
    (got,) = cnn.run(x)
    want = program.run(cnn.exported, (x,), {})
    # The head reads codes and writes floats. torch multiplies dequantized floats where ONNX Runtime
    # adds integers, so a value near a tie may become the code next to it, in each of its inputs.
    bound = one_code_off(cnn, "head:linear#0") + 1e-6
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=bound)


def test_a_transformer_block_gives_what_the_program_gives(block: Written) -> None:
    x = BLOCK_EXAMPLE[:1]
    (got,) = block.run(x)
    want = program.run(block.exported, (x,), {})
    # both residual branches end in a linear whose inputs may each be one code off
    bound = one_code_off(block, "attn.proj:linear#0") + one_code_off(block, "fc2:linear#0")
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=bound + 1e-5)


def test_a_float_file_gives_what_the_module_gives(float_block: Written) -> None:
    x = normal(3, 4, 16, seed=5)
    (got,) = float_block.run(x)
    want = seeded(Block)(x).detach().numpy()
    # sums of at most 32 float32 products of values under 4: a few hundred ulps of 2^-24
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_float16_file_keeps_float32_at_its_borders(tmp_path: Path) -> None:
    state = run(seeded(Block), context(BLOCK_EXAMPLE), "capture")
    written = write(state, tmp_path, precision="float16", at=BLOCK_EXAMPLE)
    kinds = {name: kind for name, kind, _ in stored_tensors(written.path)}
    assert kinds["fc1.weight"] == "float16"
    assert [spec.dtype for spec in written.artifact.methods[0].inputs] == ["float32"]
    (got,) = written.run(BLOCK_EXAMPLE)
    want = seeded(Block)(BLOCK_EXAMPLE).detach().numpy()
    # float16 keeps 11 bits; 20 operators in a row, each off by half an ulp of values under 4
    np.testing.assert_allclose(got, want, rtol=0, atol=20 * 4 * 2.0**-12)


# --- names ---------------------------------------------------------------------------------------


def test_tensors_carry_their_fqn_and_codes_their_address(cnn: Written) -> None:
    stored = {name: kind for name, kind, _ in stored_tensors(cnn.path)}
    for name in ("stem.weight", "depthwise.weight", "expand.weight", "head.weight"):
        assert stored[name] == "int8"
    for name in ("stem.bias", "expand.bias", "head.bias"):
        assert stored[name] == "int32"
    codes = {n.output[0] for n in cnn.model.graph.node if n.op_type == "QuantizeLinear"}
    assert codes == {
        "x:input#0.out",
        "relu:relu#0.out",
        "relu:relu#1.out",
        "expand:conv2d#0.out",
        ":add#0.out",
        "pool:max_pool2d#0.out",
        "gap:adaptive_avg_pool2d#0.out",
        ":flatten#0.out",
    }
    assert set(cnn.artifact.edge_map.values()) == codes


def test_nodes_are_named_by_the_site_that_they_came_from(cnn: Written) -> None:
    nodes = {node.name: node.op_type for node in cnn.model.graph.node}
    assert nodes["stem:conv2d#0/Conv"] == "Conv"
    assert nodes["gap:adaptive_avg_pool2d#0/GlobalAveragePool"] == "GlobalAveragePool"
    assert nodes["head:linear#0/Gemm"] == "Gemm"
    assert all("/" in name and ":" in name for name in nodes)


def test_names_are_the_same_for_an_edited_and_a_retraced_program(
    cnn: Written, tmp_path: Path
) -> None:
    # torch.onnx numbers nodes anew; a site must not be found by a name that means another node
    again = write(cnn.state, tmp_path, at=CNN_EXAMPLE)
    assert [n.name for n in again.model.graph.node] == [n.name for n in cnn.model.graph.node]
    assert again.artifact.edge_map == cnn.artifact.edge_map


def test_inputs_and_outputs_have_the_names_and_shapes_asked_for(
    cnn: Written, block: Written
) -> None:
    (method,) = cnn.artifact.methods
    assert [(i.name, i.dtype, i.shape) for i in method.inputs] == [
        ("x", "float32", ("batch", 3, 8, 8))
    ]
    assert [(o.name, o.shape) for o in method.outputs] == [("y", ("batch", 5))]
    assert block.artifact.methods[0].inputs[0].shape == (1, 4, 16)


def test_a_name_that_is_taken_inside_the_graph_is_given_to_the_user(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"total": torch.relu(a + b) * 2, "first": a}

    x = normal(2, 3)
    state = run(Sum().eval(), context(x, x), "capture")
    written = write(
        state, tmp_path, precision="float32", inputs=("add", "mul"), outputs=("relu", "same")
    )
    total, first = written.run(x, x + 1)
    np.testing.assert_allclose(total, 2 * torch.relu(2 * x + 1).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(first, x.numpy())
    assert [spec.name for spec in written.artifact.methods[0].outputs] == ["relu", "same"]


# --- bytes ---------------------------------------------------------------------------------------

_BUILD = """
import hashlib, sys, tempfile
from pathlib import Path
from tests.exporters.onnx.test_exporter import CNN_EXAMPLE, SmallCNN, pruned_and_quantized, write
folder = Path(tempfile.mkdtemp())
written = write(pruned_and_quantized(SmallCNN, CNN_EXAMPLE), folder)
print(hashlib.sha256(written.path.read_bytes()).hexdigest())
"""


def test_another_process_writes_the_same_bytes(cnn: Written, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _BUILD],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    own = hashlib.sha256(cnn.path.read_bytes()).hexdigest()
    assert ran.stdout.strip() == own == cnn.artifact.model_file.sha256


@pytest.mark.parametrize("which", ["cnn", "block", "float_block"])
def test_a_file_holds_no_source_path_and_no_stack_trace(
    which: str, request: pytest.FixtureRequest
) -> None:
    written: Written = request.getfixturevalue(which)
    data = written.path.read_bytes()
    for trace in (str(ROOT).encode(), b'File "', b".py", b"tests.small_models", b"pkg.torch"):
        assert trace not in data
    assert b"edgeopt.build_key" in data


def test_the_metadata_says_what_the_file_was_built_from(cnn: Written) -> None:
    found = {entry.key: entry.value for entry in cnn.model.metadata_props}
    assert found == {
        "edgeopt.build_key": "k1",
        "edgeopt.precision": "int8",
        "edgeopt.plan": "onnxruntime-x86",
    }
    assert {"edgeopt", "torch", "onnx", "onnxscript", "onnx-ir"} == set(cnn.artifact.tools)


# --- the tensor map, and contracts in the file ---------------------------------------------------


@pytest.mark.parametrize("which", ["cnn", "block", "float_block"])
def test_every_tensor_of_the_program_is_found_in_the_file_in_torch_layout(
    which: str, request: pytest.FixtureRequest
) -> None:
    written: Written = request.getfixturevalue(which)
    found = written.tensors
    for fqn, value in program.tensors(written.exported).items():
        stored = found.tensor(fqn)
        assert stored is not None, fqn
        np.testing.assert_array_equal(stored, value.detach().numpy(), err_msg=fqn)


def test_a_linear_in_the_file_is_transposed_and_the_map_says_so(
    block: Written, float_block: Written
) -> None:
    for written in (block, float_block):
        entry = written.artifact.tensor_map["fc1.weight"]
        shapes = {i.name: tuple(i.dims) for i in written.model.graph.initializer}
        assert entry.transform == "transpose"
        assert shapes[entry.name] == (16, 32)  # torch: [out, in] = [32, 16]


@pytest.mark.parametrize("which", ["cnn", "block"])
def test_all_contracts_hold_in_the_file(which: str, request: pytest.FixtureRequest) -> None:
    written: Written = request.getfixturevalue(which)
    kinds = Counter(c.kind for c in written.state.contracts)
    assert kinds["nm-sparse"] >= 2
    assert kinds["quantized"] >= 8
    assert [
        c.check_file(written.tensors)
        for c in written.state.contracts
        if c.check_file(written.tensors)
    ] == []


def damaged(written: Written, folder: Path, name: str, data: np.ndarray[Any, Any]) -> OnnxTensors:
    """Return the tensors of a copy of the file with one initializer replaced."""
    model = written.model
    (tensor,) = [i for i in model.graph.initializer if i.name == name]
    tensor.CopyFrom(numpy_helper.from_array(data, name))
    onnx.save(model, folder / "damaged.onnx")
    return OnnxTensors(folder / "damaged.onnx", written.artifact)


def test_a_dense_weight_in_the_file_breaks_the_sparsity_contract(
    cnn: Written, tmp_path: Path
) -> None:
    file = damaged(cnn, tmp_path, "expand.weight", np.ones((8, 8, 1, 1), np.int8))
    broken = {c.sites: c.check_file(file) for c in cnn.state.contracts if c.check_file(file)}
    assert broken == {("expand.weight",): "16 of 16 groups of 4 hold more than 2 non-zeros"}


def test_a_float_weight_in_the_file_breaks_the_quantization_contract(
    cnn: Written, tmp_path: Path
) -> None:
    file = damaged(cnn, tmp_path, "depthwise.weight", np.zeros((8, 1, 3, 3), np.float32))
    (contract,) = [
        c for c in cnn.state.contracts if isinstance(c, Quantized) and c.fqn == "depthwise.weight"
    ]
    assert contract.check_file(file) == "depthwise.weight is stored as float32, not int8"


def test_a_code_outside_the_narrow_range_breaks_the_quantization_contract(
    cnn: Written, tmp_path: Path
) -> None:
    codes = np.array(cnn.tensors.tensor("depthwise.weight"))
    codes.flat[0] = -128
    file = damaged(cnn, tmp_path, "depthwise.weight", codes)
    (contract,) = [
        c for c in cnn.state.contracts if isinstance(c, Quantized) and c.fqn == "depthwise.weight"
    ]
    message = contract.check_file(file)
    assert message is not None
    assert message.startswith("codes of depthwise.weight lie in [-128, ")


def test_a_missing_tensor_breaks_the_contracts_that_speak_of_it(cnn: Written) -> None:
    tensors = {k: v for k, v in cnn.artifact.tensor_map.items() if k != "expand.weight"}
    edges_left = dict(cnn.artifact.edge_map)
    (edge,) = [k for k, v in edges_left.items() if v == ":add#0.out"]
    del edges_left[edge]
    artifact = dataclasses.replace(cnn.artifact, tensor_map=tensors, edge_map=edges_left)
    file = OnnxTensors(cnn.path, artifact)
    messages = [m for c in cnn.state.contracts if (m := c.check_file(file))]
    assert messages == [
        "expand.weight is not in the file",  # nm-sparse
        f"edge {edge} is not quantized in the file",
        "expand.weight is not in the file",  # quantized
    ]


def test_a_tied_weight_is_one_value_in_the_file(tmp_path: Path) -> None:
    tokens = torch.arange(6).reshape(2, 3)
    state = run(seeded(TiedHead), context(tokens), *QUANTIZE, *LEGAL)
    written = write(state, tmp_path)
    (tied,) = [c for c in state.contracts if isinstance(c, Tied)]
    assert tied.sites == ("embedding.weight", "head.weight")
    assert all(c.check_file(written.tensors) is None for c in state.contracts)
    tables = [i for i in written.model.graph.initializer if list(i.dims) in ([7, 4], [4, 7])]
    assert [i.data_type for i in tables] == [onnx.TensorProto.INT8]
    (got,) = written.run(tokens)
    want = program.run(written.exported, (tokens,), {}).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_tied_head_multiplies_integers_and_no_call_dequantizes_the_table(tmp_path: Path) -> None:
    tokens = torch.arange(6).reshape(2, 3)
    state = run(seeded(TiedHead), context(tokens), *QUANTIZE, *LEGAL)
    found = write(state, tmp_path, at=tokens).optimized()
    (picked,) = [n for n in found.graph.node if n.op_type == "Gather" and "codes" in n.name]
    constants = {i.name: i.data_type for i in found.graph.initializer}
    assert constants[picked.input[0]] == onnx.TensorProto.INT8
    kinds = Counter(node.op_type for node in found.graph.node)
    assert kinds["DequantizeLinear"] == kinds["MatMul"] == kinds["Gemm"] == 0
    assert kinds["MatMulIntegerToFloat"] + kinds["QGemm"] == 2  # mix and head


# --- forms of its own ----------------------------------------------------------------------------


class SamePadding(nn.Module):
    """TensorFlow's `SAME` with a stride of 2, as timm writes it: one more row at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(self.down(nn.functional.pad(y, (0, 1, 0, 1))))
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float32"])
def test_uneven_padding_becomes_pads_of_the_convolution(quantized: bool, tmp_path: Path) -> None:
    x = CNN_EXAMPLE
    names = (*QUANTIZE, *LEGAL) if quantized else ()
    state = run(seeded(SamePadding), context(x), *(names or ("capture",)))
    written = write(state, tmp_path, precision="int8" if quantized else "float32")
    model = written.model
    assert operators(model)["Pad"] == 0
    (down,) = [n for n in model.graph.node if n.name.startswith("down:conv2d#0")]
    pads = next(list(a.ints) for a in down.attribute if a.name == "pads")
    assert pads == [0, 0, 1, 1]
    (got,) = written.run(x)
    want = program.run(written.exported, (x,), {}).numpy()
    bound = one_code_off(written, "head:linear#0") if quantized else 0.0
    np.testing.assert_allclose(got, want, rtol=0, atol=bound + 1e-6)
    if quantized:
        assert operators(written.optimized())["QLinearConv"] == 2
        for contract in state.contracts:
            assert contract.check_file(written.tensors) is None


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 26])
def test_an_opset_that_torch_cannot_write_is_refused_before_anything_is_written(
    cnn: Written, opset: int, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"^onnx: model: opset {opset}: torch writes valid"):
        write(cnn.state, tmp_path, opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_two_methods_are_refused(cnn: Written, tmp_path: Path) -> None:
    both = {"prefill": cnn.exported, "decode": cnn.exported}
    request = ExportRequest("model", both, context().target, "int8", "", ("x",), ("y",))
    with pytest.raises(ExportError, match="2 methods: an ONNX file holds one"):
        OnnxExporter().export(request, tmp_path)


def test_a_file_that_lost_codes_is_refused(cnn: Written) -> None:
    lost = dict(cnn.artifact.edge_map)
    edge, _ = lost.popitem()
    with pytest.raises(ExportError, match=f"edges {edge} lost their codes"):
        check_file(cnn.path, dataclasses.replace(cnn.artifact, edge_map=lost), cnn.exported)


def test_a_file_that_is_no_onnx_is_refused(cnn: Written, tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(cnn.path.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model\.onnx: the written file is not valid ONNX"):
        check_file(place, cnn.artifact, cnn.exported)


def test_a_file_that_fails_its_check_is_not_published(
    cnn: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ExportError("not what was meant")

    monkeypatch.setattr("edgeopt.exporters.onnx.exporter.check_file", refused)
    with pytest.raises(ExportError, match="not what was meant"):
        write(cnn.state, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(cnn: Written, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be written") as caught:
        write(cnn.state, tmp_path / "file")
    assert len(str(caught.value).splitlines()) == 1


def test_contracts_of_a_dense_model_name_no_sparsity(float_block: Written) -> None:
    assert not [c for c in float_block.state.contracts if isinstance(c, NMSparse)]
