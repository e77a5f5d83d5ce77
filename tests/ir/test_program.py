"""Programs are edited in copies: the original, its weights and its names stay."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.ir import edges, program
from edgeopt.ir.editor import ProgramEditor, without_traces
from edgeopt.ir.program import copied_inputs
from tests.small_models import QUANTIZE, Block, SmallCNN, context, normal, run, seeded

X = normal(4, 3, 8, 8)


@pytest.fixture(scope="module")
def captured() -> ExportedProgram:
    return run(seeded(SmallCNN), context(X), "capture").carrier_programs["forward"]


def capture(module: nn.Module, *args: Any) -> ExportedProgram:
    return run(module, context(*args), "capture").carrier_programs["forward"]


def snapshot(exported: ExportedProgram) -> tuple[str, dict[str, Tensor], str]:
    tensors = {name: value.clone() for name, value in program.tensors(exported).items()}
    return str(exported.graph), tensors, str(exported.graph_signature)


def same(a: tuple[str, dict[str, Tensor], str], b: tuple[str, dict[str, Tensor], str]) -> bool:
    equal = set(a[1]) == set(b[1]) and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
    return equal and a[0] == b[0] and a[2] == b[2]


# --- editing -------------------------------------------------------------------------------------


def test_an_edit_without_changes_is_the_same_program(captured: ExportedProgram) -> None:
    again = ProgramEditor(captured).finish()
    assert again is not captured
    assert same(snapshot(again), snapshot(captured))
    again.validate()
    assert torch.equal(program.run(again, (X,), {}), program.run(captured, (X,), {}))


def test_an_edit_never_reaches_the_original(captured: ExportedProgram) -> None:
    before = snapshot(captured)
    editor = ProgramEditor(captured)
    relu = next(n for n, s in edges.sites(editor.graph) if s.op == "relu")
    relu.target = torch.ops.aten.silu.default
    relu.meta["val"] = None
    editor.replace("head.weight", torch.zeros(5, 8))
    editor.replace("head.bias", torch.ones(5))
    editor.infer(relu)
    after = editor.finish()
    assert torch.equal(program.run(after, (X,), {}), torch.ones(4, 5))
    assert same(snapshot(captured), before)
    assert all(n.meta["val"] is not None for n in captured.graph.nodes if n.op != "output")


def test_a_replaced_tensor_may_have_another_shape_and_type(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    given = torch.zeros(3, 8, dtype=torch.int8)
    editor.replace("head.weight", given)
    given.fill_(1)  # the editor took a copy
    node = editor.placeholder("head.weight")
    assert tuple(node.meta["val"].shape) == (3, 8)
    assert node.meta["val"].dtype == torch.int8
    assert int(editor.table["head.weight"].sum()) == 0
    assert editor.fqn(node) == "head.weight"
    assert editor.tensor(node) is editor.table["head.weight"]


def test_an_integer_weight_becomes_a_buffer_and_a_float_one_stays_a_parameter(
    captured: ExportedProgram,
) -> None:
    editor = ProgramEditor(captured)
    weight = editor.placeholder("head.weight")
    editor.replace("head.weight", torch.zeros(5, 8, dtype=torch.int8))
    (reader,) = weight.users
    widened = editor.call(
        torch.ops.aten.to.dtype, (weight, torch.float32), parent=reader, suffix="w", before=reader
    )
    reader.update_arg(1, widened)
    after = editor.finish()
    after.validate()
    assert "head.weight" in dict(after.named_buffers())
    assert "head.bias" in dict(after.named_parameters())
    assert not dict(after.named_parameters())["head.bias"].requires_grad
    assert torch.equal(
        program.run(after, (X,), {}), seeded(SmallCNN).head.bias.detach().expand(4, 5)
    )


def test_an_added_buffer_is_found_by_its_name(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    node = editor.add_buffer("head.offset", torch.full((5,), 2.0))
    output = next(n for n in editor.graph.nodes if n.op == "output")
    (result,) = output.args[0]
    added = editor.call(
        torch.ops.aten.add.Tensor, (result, node), parent=result, suffix="offset", after=result
    )
    output.args = ((added,),)
    after = editor.finish()
    after.validate()
    assert torch.equal(program.tensors(after)["head.offset"], torch.full((5,), 2.0))
    torch.testing.assert_close(
        program.run(after, (X,), {}), program.run(captured, (X,), {}) + 2, rtol=0, atol=1e-6
    )
    with pytest.raises(KeyError, match=r"head\.weight exists"):
        ProgramEditor(captured).add_buffer("head.weight", torch.zeros(1))


def test_names_that_differ_only_in_their_dots_stay_apart(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    nodes = [editor.add_buffer(name, torch.tensor(1.0)) for name in ("a.b_c", "a_b.c")]
    assert len({n.name for n in nodes}) == 2
    assert [editor.fqn(n) for n in nodes] == ["a.b_c", "a_b.c"]


def test_what_nobody_reads_is_dropped(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    editor.add_buffer("unread", torch.zeros(1))
    (stem,) = [n for n, s in edges.sites(editor.graph) if s.address == "stem:conv2d#0"]
    editor.call(torch.ops.aten.neg.default, (stem,), parent=stem, suffix="dead", after=stem)
    after = editor.finish()
    assert "unread" not in program.tensors(after)
    assert same(snapshot(after), snapshot(captured))


def test_an_unknown_tensor_has_no_placeholder(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    with pytest.raises(KeyError, match="nowhere"):
        editor.placeholder("nowhere")
    first = next(n for n in editor.graph.nodes if n.op == "call_function")
    assert editor.fqn(first) is None
    assert editor.tensor(first) is None
    assert editor.tensor(3) is None


# --- names and ties ------------------------------------------------------------------------------


class CalledInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, input: Tensor, sum: Tensor) -> Tensor:
        return self.layer(input) + sum


def test_inputs_called_as_builtins_keep_their_names() -> None:
    x, y = normal(2, 4), normal(2, 4, seed=2)
    module = seeded(CalledInput)
    exported = capture(module, x, y)
    for _ in range(3):
        exported = ProgramEditor(exported).finish()
        exported.validate()
        assert program.user_input_names(exported) == ("input", "sum")
        assert torch.equal(program.run(exported, (x, y), {}), module(x, y))


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


def test_a_tied_weight_goes_through_edits() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    module = seeded(TiedHead)
    exported = ProgramEditor(capture(module, tokens)).finish()
    assert torch.equal(program.run(exported, (tokens,), {}), module(tokens))


class WithConstant(nn.Module):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.offset = torch.arange(4.0)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale + self.offset


def test_constants_and_unsaved_buffers_are_tensors_of_the_program_too() -> None:
    x = normal(2, 4)
    module = seeded(WithConstant)
    exported = ProgramEditor(ProgramEditor(capture(module, x)).finish()).finish()
    assert set(program.tensors(exported)) == {"layer.weight", "layer.bias", "scale", "offset"}
    assert torch.equal(program.run(exported, (x,), {}), module(x))


# --- running, capturing again, saving ------------------------------------------------------------


def test_running_takes_no_gradients(captured: ExportedProgram) -> None:
    assert not program.run(captured, (X,), {}).requires_grad


def test_capturing_again_fixes_the_shapes(captured: ExportedProgram) -> None:
    assert captured.range_constraints
    again = program.retrace(captured, (X[:1],), {})
    assert not again.range_constraints
    assert torch.equal(program.run(again, (X[:1],), {}), program.run(captured, (X[:1],), {}))
    assert set(program.tensors(again)) == set(program.tensors(captured))


def test_inputs_are_flattened_in_order(captured: ExportedProgram) -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert program.flat_inputs(captured, (a, [b]), {"k": c}) == [a, b, c]


def test_copied_inputs_share_nothing_and_keep_all_else() -> None:
    x = normal(2)
    (first, (second, number)), kwargs = copied_inputs((x, (x, 3)), {"y": x, "flag": None})
    tensors = [first, second, kwargs["y"]]
    assert all(torch.equal(t, x) for t in tensors)
    assert len({t.data_ptr() for t in (x, *tensors)}) == 4
    assert number == 3
    assert kwargs["flag"] is None


@pytest.mark.parametrize("kind", [SmallCNN, Block])
def test_a_saved_program_holds_no_paths_and_no_example(kind: type[nn.Module]) -> None:
    x = X if kind is SmallCNN else normal(2, 4, 16)
    exported = run(seeded(kind), context(x), *QUANTIZE).carrier_programs["forward"]
    buffer = io.BytesIO()
    torch.export.save(without_traces(exported), buffer)
    with zipfile.ZipFile(buffer) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert b'File "' not in text
    assert b"/tests/" not in text
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    assert torch.equal(program.run(loaded, (x,), {}), program.run(exported, (x,), {}))
    # the program that it was made from keeps what helps in debugging
    assert any("stack_trace" in n.meta for n in exported.graph.nodes)


def test_a_saved_program_needs_no_unpickling_of_objects(captured: ExportedProgram) -> None:
    buffer = io.BytesIO()
    torch.export.save(without_traces(captured), buffer)
    with zipfile.ZipFile(buffer) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if data[:2] == b"\x80\x02" or name.endswith(".pkl"):
                with pytest.raises(pickle.UnpicklingError):
                    pickle.loads(data)
