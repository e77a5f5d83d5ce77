"""ExecuTorch files: what is written, what it is held against, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeopt.errors import BundleError, ExportError
from edgeopt.exporters.executorch import lowering
from edgeopt.exporters.executorch.exporter import ExecuTorchExporter
from edgeopt.exporters.executorch.file import ABOUT, parse, read_file
from edgeopt.exporters.executorch.tensors import ExecuTorchTensors, stored_tensors
from edgeopt.ir import edges, program
from edgeopt.ir.editor import ProgramEditor
from edgeopt.quant.reading import edge_of, quant_nodes
from tests.exporters.executorch.models import PaddedCNN, Written, request, state, target, written
from tests.small_models import X86, Block, SmallCNN, context, go_on, normal, run, seeded

pytest.importorskip("executorch")
KINDS = pytest.mark.parametrize(
    "kind", [SmallCNN, PaddedCNN, Block], ids=["cnn", "padded", "block"]
)


def kernels(made: Written, method: str = "forward") -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for delegate in read_file(made.path).methods[method].delegates:
        assert delegate.graph is not None
        for node in delegate.graph.nodes:
            found[node.operator, delegate.graph.precision(node)] += 1
    return found


def test_a_cnn_is_one_delegate_in_integers() -> None:
    made = written(SmallCNN)
    method = read_file(made.path).methods["forward"]
    assert len(method.delegates) == 1
    assert method.kernels == ()
    found = kernels(made)
    assert found["Conv2d", "int8"] == 2
    assert found["DepthwiseConv2d", "int8"] == 1
    assert found["FullyConnected", "int8"] == 1
    assert found["Add", "int8"] == found["MaxPooling2d", "int8"] == 1
    assert found["GlobalAvgPooling2d", "int8"] == 1
    floats = {operator for operator, precision in found if precision == "float32"}
    assert floats == {"Convert"}  # at the input and at the output


def test_only_layer_norms_stay_outside_a_transformer_block() -> None:
    made = written(Block)
    method = read_file(made.path).methods["forward"]
    assert [k.name for k in method.kernels] == ["aten::native_layer_norm.out"] * 2
    assert kernels(made)["FullyConnected", "int8"] == 4
    assert kernels(made)["BatchMatrixMultiply", "float32"] == 2
    assert not any(operator == "FullyConnected" and p != "int8" for operator, p in kernels(made))


def test_borders_concatenations_and_conv1d_run_in_integers() -> None:
    found = kernels(written(PaddedCNN))
    assert found["Concatenate2", "int8"] == 1
    assert found["Conv2d", "int8"] == 4
    assert found["DepthwiseConv2d", "int8"] == 1
    assert found["StaticConstantPad", "int8"] == 1
    assert found["StaticConstantPad", "float32"] == 1  # before the input is quantized


@KINDS
def test_every_weight_and_edge_is_found_in_the_file_with_its_numbers(kind: type[nn.Module]) -> None:
    made = written(kind)
    tensors = ExecuTorchTensors(made.path, made.artifact)
    exported = made.programs["forward"]
    weights = 0
    for fqn, value in program.tensors(exported).items():
        if value.dtype == torch.int8 and not fqn.endswith("_zero_point"):
            stored = tensors.tensor(fqn)
            assert stored is not None
            np.testing.assert_array_equal(stored, value.numpy())
            weights += 1
    assert weights == {SmallCNN: 4, PaddedCNN: 5, Block: 4}[kind]
    quantized = {str(edge_of(q.node)) for q in quant_nodes(exported) if q.qmin is not None}
    assert {edge for edge in made.artifact.edge_map} == quantized
    assert {tensors.edge_dtype(edge) for edge in quantized} == {"int8"}
    assert tensors.edge_dtype("n999.out") is None
    assert tensors.tensor("nothing") is None


@KINDS
def test_contracts_hold_in_the_file(kind: type[nn.Module]) -> None:
    made = written(kind)
    tensors = ExecuTorchTensors(made.path, made.artifact)
    found = [contract.check_file(tensors) for contract in made.state.contracts]
    assert len(found) > 8
    assert set(found) == {None}


def test_the_interface_is_described_and_the_file_says_it_itself() -> None:
    made = written(SmallCNN)
    (method,) = made.artifact.methods
    assert [(i.name, i.dtype, i.shape) for i in method.inputs] == [("x", "float32", (1, 3, 8, 8))]
    assert [(o.name, o.dtype, o.shape) for o in method.outputs] == [("y", "float32", (1, 5))]
    about = read_file(made.path).about
    assert about["build_key"] == "key"
    assert about["inputs"] == {"forward": ["x"]}
    assert about["precision"] == "int8"
    assert made.artifact.files[0].sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.artifact.tools["executorch"].startswith("1.5")


def test_two_methods_share_their_weights() -> None:
    made = written(Block)
    file = read_file(made.path)
    assert set(file.methods) == {"forward", "batch2"}
    assert [m.name for m in made.artifact.methods] == ["forward", "batch2"]
    assert made.artifact.methods[1].inputs[0].shape == (2, 4, 16)
    codes = [key for key in file.named if not key.startswith("scale_")]
    assert sum(len(file.named[k]) for k in codes) < 2 * 16 * 16 * 8 + 4096
    assert kernels(made, "batch2")["FullyConnected", "int8"] == 4


def test_a_dynamic_batch_is_planned_for_the_largest_that_goes() -> None:
    made = written(SmallCNN, dynamic=True)
    (tensor,) = read_file(made.path).methods["forward"].inputs
    assert tensor.dynamic
    # torch chooses a convolution's kernel by the batch, and guards the choice below 16
    assert tensor.shape == (15, 3, 8, 8)
    assert made.artifact.methods[0].inputs[0].shape == ("batch", 3, 8, 8)
    assert made.artifact.options["max_batch"] == 15
    assert any("batch is at most 15, not 16" in note for note in made.artifact.notes)


def test_dynamic_sizes_get_the_wanted_bound_and_the_captured_program_keeps_its_own() -> None:
    captured = state(Block).carrier_programs["forward"]
    before = str(captured.range_constraints)
    (symbol,) = map(str, captured.range_constraints)
    known = {s.address for _, s in edges.sites(captured.graph)}
    for largest in (3, 40):
        limited = lowering.bounded(captured, {symbol: largest})
        (bound,) = limited.range_constraints.values()
        assert int(bound.upper) == largest
        again = {s.address for _, s in edges.sites(limited.graph)}
        assert {a for a in again if "sym_size" not in a} == {
            a for a in known if "sym_size" not in a
        }
    assert str(captured.range_constraints) == before
    fixed = written(Block).programs["forward"]
    assert lowering.bounded(fixed, {}) is fixed


def test_a_dynamic_sequence_needs_a_largest_length() -> None:
    dynamic = {"forward": state(Block).carrier_programs["forward"]}
    wanted = request(dynamic, dynamic=("sequence",))
    wanted = dataclasses.replace(wanted, dimensions=({0: "sequence"},))
    (problem,) = ExecuTorchExporter().unsupported(wanted)
    assert "set the target's option max_sequence" in problem
    long = dataclasses.replace(target(), options={"max_sequence": 40})
    assert ExecuTorchExporter().unsupported(dataclasses.replace(wanted, target=long)) == []


def test_the_same_program_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    made = written(SmallCNN)
    again = (
        "import sys, pathlib\n"
        "from tests.exporters.executorch.models import SmallCNN, written\n"
        "print(*(f.sha256 for f in written(SmallCNN).artifact.files))"
    )
    environment = dict(os.environ, PYTHONHASHSEED="77", PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", again],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[3],
        check=True,
    )
    assert done.stdout.split() == [entry.sha256 for entry in made.artifact.files]


def test_no_path_of_this_machine_is_in_the_file() -> None:
    made = written(SmallCNN)
    data = made.path.read_bytes()
    assert str(Path(__file__).resolve().parents[3]).encode() not in data
    assert b"site-packages" not in data


def test_sizes_list_each_constant_once() -> None:
    made = written(SmallCNN)
    rows = stored_tensors(made.path)
    assert len({name for name, _, _ in rows}) == len(rows)
    weights = {made.artifact.tensor_map[f].name for f in ("stem.weight", "head.weight")}
    assert {dtype for name, dtype, _ in rows if name in weights} == {"int8"}


def with_grid(kind: type[nn.Module], site: str, zero: int) -> dict[str, object]:
    """Return the program with another zero point behind one operator."""
    exported = program.retrace(
        state(kind).carrier_programs["forward"], (written(kind).example[:1],), {}
    )
    editor = ProgramEditor(exported)
    for found in quant_nodes(exported):
        if found.qmin is not None and site in str(found.node.meta["custom"]):
            node = next(n for n in editor.graph.nodes if n.name == found.node.name)
            other = editor.add_buffer("other_zero", torch.tensor(zero, dtype=torch.int8))
            node.update_arg(2, other)
            for reader in list(node.users):
                reader.update_arg(2, other)
            return {"forward": editor.finish()}
    raise AssertionError(f"no codes at {site}")


def test_codes_that_a_move_brings_to_another_grid_are_refused() -> None:
    programs = with_grid(SmallCNN, "'op': 'max_pool2d/q.out'", 3)
    problems = ExecuTorchExporter().unsupported(request(programs))  # type: ignore[arg-type]
    assert len(problems) == 1
    assert "pool:max_pool2d#0: moves codes between 2 grids" in problems[0]


def test_a_plan_for_another_runtime_is_refused(tmp_path: Path) -> None:
    x = normal(4, 3, 8, 8)
    ctx = context(x, rules=X86)
    made = run(seeded(SmallCNN), ctx, "capture", "plan", "calibrate", "quantize")
    made = go_on(made, ctx, "unsigned_activations", "integer_bias")
    wanted = request(dict(made.carrier_programs))
    problems = ExecuTorchExporter().unsupported(wanted)
    assert any("uint8 codes" in p and "re-plan" in p for p in problems)
    assert any("int32 codes" in p for p in problems)
    with pytest.raises(ExportError, match=r"executorch: model: .*codes.*and \d+ more"):
        ExecuTorchExporter().export(wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "vulkan"}, "backend 'vulkan'"),
    ],
    ids=["backend"],
)
def test_targets_that_cannot_be_written_for_are_named(
    change: dict[str, object], words: str
) -> None:
    wanted = request(written(SmallCNN).programs)
    wanted = dataclasses.replace(
        wanted,
        target=dataclasses.replace(target(), **change),  # type: ignore[arg-type]
    )
    (problem,) = ExecuTorchExporter().unsupported(wanted)
    assert words in problem


def test_a_batch_that_memory_cannot_be_planned_for_is_named() -> None:
    dynamic = {"forward": state(Block).carrier_programs["forward"]}
    small = dataclasses.replace(target(), options={"max_batch": 0})
    wanted = dataclasses.replace(request(dynamic, dynamic=("batch",)), target=small)
    (problem,) = ExecuTorchExporter().unsupported(wanted)
    assert "max_batch 0" in problem


def test_float16_is_refused() -> None:
    wanted = dataclasses.replace(request(written(SmallCNN).programs), precision="float16")
    (problem,) = ExecuTorchExporter().unsupported(wanted)
    assert "float16" in problem


class Deep(nn.Module):
    """Seven dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 1, 1, 2, 2, 2, 2).exp()


def test_too_many_dimensions_are_named() -> None:
    x = normal(2, 16)
    made = run(Deep(), context(x, rules="xnnpack"), "capture")
    wanted = request(dict(made.carrier_programs), precision="float32")
    assert any("7 dimensions" in p for p in ExecuTorchExporter().unsupported(wanted))


def test_codes_that_fall_out_of_the_delegate_are_an_error(tmp_path: Path) -> None:
    """A product without codes behind it stays outside, and gave zeros in silence."""
    editor = ProgramEditor(written(SmallCNN).programs["forward"])
    (back,) = (
        n for n in editor.graph.nodes if "'op': 'linear/dq.out'" in str(n.meta.get("custom"))
    )
    back.replace_all_uses_with(back.args[0].args[0])
    with pytest.raises(
        ExportError, match=r"head:linear#0.*(outside the delegates|not in the file)"
    ):
        ExecuTorchExporter().export(request({"forward": editor.finish()}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "no ExecuTorch file"),
        (lambda data: b"not a model at all, but some text that is long enough", "no ExecuTorch"),
        (lambda data: data[:600], "damaged|cut short"),
        (lambda data: data[: len(data) // 2], "damaged|cut short"),
    ],
    ids=["empty", "text", "header", "half"],
)
def test_damaged_files_are_one_clear_line(damage: object, words: str) -> None:
    data = written(SmallCNN).path.read_bytes()
    with pytest.raises(BundleError, match=words):
        parse(damage(data), "here.pte")  # type: ignore[operator]


def test_flipped_bytes_in_the_header_never_raise_anything_else() -> None:
    data = written(SmallCNN).path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        broken[int(random.integers(0, 4000))] ^= int(random.integers(1, 256))
        with contextlib.suppress(BundleError):
            parse(bytes(broken), "here.pte")


def test_the_constant_method_is_json_and_no_method_of_the_model() -> None:
    file = read_file(written(SmallCNN).path)
    assert ABOUT not in file.methods
    sites = json.loads((written(SmallCNN).folder / "model.sites.json").read_text())
    assert set(sites["methods"]) == {"forward"}
    assert "stem:conv2d#0" in sites["methods"]["forward"]["handles"].values()
