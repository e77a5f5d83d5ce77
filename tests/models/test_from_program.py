"""Saved programs: what comes back, and everything in a crafted file that could run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgeopt.errors import ModelError
from edgeopt.ir import edges
from edgeopt.ir.editor import without_traces
from edgeopt.ir.reading import read_program
from edgeopt.models.load import load_model
from tests.small_models import QUANTIZE, SmallCNN, context, normal, run, seeded

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Net(nn.Module):
    """A folded form would hide what this keeps: a norm, a tie, a constant, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8)
        self.strip = nn.Conv1d(8, 8, 3, dilation=2, padding="same", bias=False)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.constant = torch.tensor([0.5])
        self.register_buffer("shift", torch.ones(8), persistent=False)
        for value in (self.norm.running_mean, self.norm.running_var):
            value.uniform_(0.5, 1.5)

    def forward(self, image: Tensor, *, scale: Tensor) -> dict[str, Tensor | None]:
        x = self.norm(self.conv(image)).flatten(2)
        x = self.strip(x).mean(2) * self.constant + self.shift
        return {"logits": self.second(torch.relu(self.first(x))) * scale, "nothing": None}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def saved(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    batch, side = Dim("batch"), Dim("side", min=4, max=64)
    exported = torch.export.export(
        net,
        (torch.randn(2, 3, 8, 8),),
        {"scale": torch.ones(2, 1)},
        dynamic_shapes={"image": {0: batch, 2: side}, "scale": {0: batch}},
    )
    path = tmp_path_factory.mktemp("saved") / "net.pt2"
    torch.export.save(exported, path)
    return path


def test_a_program_comes_back_as_modules_that_compute_the_same(net: nn.Module, saved: Path) -> None:
    loaded = load_model(str(saved))
    assert (loaded.name, loaded.input_names, loaded.output_names) == (
        "net", ("image", "scale"), ("logits",),
    )  # fmt: skip
    kinds = {name: type(m).__name__ for name, m in loaded.module.named_modules() if name}
    assert kinds["conv"] == "Conv2d"
    assert kinds["norm"] == "BatchNorm2d"
    assert kinds["strip"] == "Conv1d"
    assert kinds["first"] == kinds["second"] == "Linear"
    assert loaded.module.first.weight is loaded.module.second.weight
    image, scale = torch.randn(5, 3, 12, 8), torch.rand(5, 1)
    with torch.no_grad():
        want = net(image, scale=scale)["logits"]
        got = loaded.module(image, scale=scale)["logits"]
    assert torch.equal(want, got)
    assert {n for n, _ in loaded.module.named_parameters()} == {
        n for n, _ in net.named_parameters()
    }
    loaded.module.train()
    assert loaded.module.norm.training
    loaded.module.eval()
    again = load_model(str(saved))
    with torch.no_grad():
        loaded.module.first.weight.add_(1)
    assert not torch.equal(loaded.module.first.weight, again.module.first.weight)


def test_free_sizes_stay_free_and_shared(saved: Path) -> None:
    dimensions = load_model(str(saved)).dimensions
    assert [{axis: d.name for axis, d in leaf.items()} for leaf in dimensions] == [
        {0: "batch", 2: "image_2"}, {0: "batch"},
    ]  # fmt: skip
    assert dimensions[0][2].size.max == 64


def test_without_example_inputs_some_are_made(net: nn.Module, saved: Path, tmp_path: Path) -> None:
    bare = rewritten(saved, tmp_path, drop="data/sample_inputs/model.pt")
    with pytest.raises(ModelError, match="torch cannot read the program"):
        load_model(str(bare))
    exported = torch.export.load(saved)
    exported._example_inputs = None
    torch.export.save(exported, tmp_path / "none.pt2")
    loaded = load_model(str(tmp_path / "none.pt2"))
    assert loaded.example_args[0].shape == (2, 3, 4, 8)
    assert set(loaded.example_kwargs) == {"scale"}


# --- files that do harm --------------------------------------------------------------------------


def rewritten(
    saved: Path,
    folder: Path,
    *,
    edit: dict[str, Callable[[Any], Any]] | None = None,
    add: dict[str, bytes] | None = None,
    drop: str = "",
) -> Path:
    """Copy an archive member by member, with changes."""
    path = folder / "crafted.pt2"
    root = "net"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        members = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        members |= add or {}
        for name, change in (edit or {}).items():
            data = json.loads(members[name])
            members[name] = json.dumps(change(data) or data).encode()
        for name, data in members.items():
            if name != drop:
                new.writestr(f"{root}/{name}", data)
    return path


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def first_payload(config: Any, **changes: Any) -> None:
    next(iter(config["config"].values())).update(changes)


def first_node(model: Any, **changes: Any) -> None:
    model["graph_module"]["graph"]["nodes"][0].update(changes)


def set_size(model: Any, text: str) -> None:
    values = model["graph_module"]["graph"]["tensor_values"]
    next(v for v in values.values())["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


def set_tree(model: Any, key: str, tree: Any) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature[key] = json.dumps([1, tree])


def leaf(kind: Any = None, context: Any = None, children: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


def rename_input(model: Any, name: str) -> None:
    text = json.dumps(model).replace('"image"', json.dumps(name))
    model.update(json.loads(text))


Craft = Callable[[Path, Path, Path], Path]
"""(a good file, a folder, the file that the attack would make) -> the crafted file."""

ATTACKS: dict[str, tuple[Craft, str]] = {
    "example inputs": (
        lambda saved, folder, mark: rewritten(
            saved, folder, add={"data/sample_inputs/model.pt": pickled(((Touch(mark),), {}))}
        ),
        "sample_inputs/model.pt holds more than tensors",
    ),
    "a bare pickle as example inputs": (
        lambda saved, folder, mark: rewritten(
            saved, folder, add={"data/sample_inputs/model.pt": pickle.dumps(Touch(mark))}
        ),
        "sample_inputs/model.pt holds more than tensors",
    ),
    "a pickled weight": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            add={"data/weights/weight_0": pickled(Touch(mark))},
            edit={WEIGHTS: lambda c: first_payload(c, path_name="weight_0", use_pickle=True)},
        ),
        "weight_0 holds more than tensors",
    ),
    "a pickled constant": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            add={"data/constants/tensor_0": pickled(Touch(mark))},
            edit={CONSTANTS: lambda c: first_payload(c, path_name="tensor_0", use_pickle=True)},
        ),
        "tensor_0 holds more than tensors",
    ),
    "an opaque object": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            add={"data/constants/opaque_obj_0": pickle.dumps(Touch(mark))},
            edit={CONSTANTS: lambda c: first_payload(c, path_name="opaque_obj_0", use_pickle=True)},
        ),
        "an object that is no tensor",
    ),
    "an object of TorchScript": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            add={"data/constants/custom_obj_0": pickle.dumps(Touch(mark))},
            edit={CONSTANTS: lambda c: first_payload(c, path_name="custom_obj_0", use_pickle=True)},
        ),
        "an object that is no tensor",
    ),
    "weights as an older torch pickled them": (
        lambda saved, folder, mark: rewritten(
            saved, folder, add={"data/weights/model.pt": pickled({"a": Touch(mark)})}
        ),
        "not as torch.export.save of torch 2.9",
    ),
    "a size": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={MODEL: lambda m: set_size(m, f"__import__('os').system('touch {mark}')")},
        ),
        "is no size",
    ),
    "a string inside a size": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: set_size(m, f"Max(1, \"__import__('os').system('touch {mark}')\")")
            },
        ),
        "is no size",
    ),
    "an attribute inside a size": (
        lambda saved, folder, mark: rewritten(
            saved, folder, edit={MODEL: lambda m: set_size(m, "Symbol.__subclasses__(Symbol)")}
        ),
        "is no size",
    ),
    "an endless power": (
        lambda saved, folder, mark: rewritten(
            saved, folder, edit={MODEL: lambda m: set_size(m, "Pow(Integer(9), Integer(999))")}
        ),
        "is no size",
    ),
    "an operator": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: first_node(
                    m,
                    target="torch.os.system",
                    inputs=[{"name": "", "arg": {"as_string": f"touch {mark}"}, "kind": 1}],
                )
            },
        ),
        "calls 'torch.os.system', which is no operator",
    ),
    "an operator that reads files": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={MODEL: lambda m: first_node(m, target="torch.ops.aten.from_file.default")},
        ),
        "may not be run from a file",
    ),
    "an operator as argument": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: first_node(
                    m, inputs=[{"name": "f", "arg": {"as_operator": "torch.os.system"}, "kind": 1}]
                )
            },
        ),
        "which is no operator",
    ),
    "a name that is source": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: rename_input(
                    m, f"x=__import__('os').system('touch {mark}') or None"
                )
            },
        ),
        "is no name",
    ),
    "a key that is source": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: set_tree(
                    m,
                    "in_spec",
                    leaf(
                        "builtins.tuple",
                        "null",
                        (
                            leaf("builtins.tuple", "null", (leaf(),)),
                            leaf("builtins.dict", '["a=print(1)"]', (leaf(),)),
                        ),
                    ),
                )
            },
        ),
        "are no names",
    ),
    "an import by the outputs' type": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                MODEL: lambda m: set_tree(
                    m,
                    "out_spec",
                    leaf(
                        "builtins.dict",
                        json.dumps([{"__enum__": True, "fqn": "antigravity:X", "name": "Y"}]),
                        (leaf(),),
                    ),
                )
            },
        ),
        "are no names",
    ),
    "another type of outputs": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={MODEL: lambda m: set_tree(m, "out_spec", leaf("a.b.C", "null", (leaf(),)))},
        ),
        "nest in 'a.b.C'",
    ),
    "compiled code": (
        lambda saved, folder, mark: rewritten(
            saved, folder, add={"data/aotinductor/model/code.so": b"\x7fELF"}
        ),
        "compiled code, which is never run",
    ),
    "a path that leaves the archive": (
        lambda saved, folder, mark: rewritten(saved, folder, add={"../../escape": b"x"}),
        "no part of a program",
    ),
    "a weight's path that leaves the archive": (
        lambda saved, folder, mark: rewritten(
            saved, folder, edit={WEIGHTS: lambda c: first_payload(c, path_name="../../x")}
        ),
        "is no name",
    ),
    "a weight of many more elements than bytes": (
        lambda saved, folder, mark: rewritten(
            saved,
            folder,
            edit={
                WEIGHTS: lambda c: next(iter(c["config"].values()))["tensor_meta"].update(
                    sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}]
                )
            },
        ),
        "elements in",
    ),
}


@pytest.mark.parametrize("as_state", [False, True], ids=["model", "state"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_crafted_file_is_refused_and_runs_nothing(
    name: str, as_state: bool, saved: Path, tmp_path: Path
) -> None:
    craft, reason = ATTACKS[name]
    mark = tmp_path / "ran"
    path = craft(saved, tmp_path, mark)
    with pytest.raises(ModelError, match=reason) as caught:
        read_program(path) if as_state else load_model(str(path))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["example inputs", "an opaque object", "a size"])
def test_the_same_file_runs_code_in_torch_export_load(
    name: str, saved: Path, tmp_path: Path
) -> None:
    """Otherwise the test above would prove nothing."""
    mark = tmp_path / "ran"
    path = ATTACKS[name][0](saved, tmp_path, mark)
    with contextlib.suppress(Exception):  # it fails after the damage is done
        torch.export.load(path)
    assert mark.exists()


def test_a_quantized_program_comes_back_as_state_and_is_no_model(tmp_path: Path) -> None:
    x = normal(4, 3, 8, 8)
    state = run(seeded(SmallCNN), context(x), *QUANTIZE)
    exported = state.carrier_programs["forward"]
    path = tmp_path / "forward.pt2"
    torch.export.save(without_traces(exported), path)
    with pytest.raises(ModelError, match="operator edgeopt"):
        load_model(str(path))
    again = read_program(path)
    with torch.no_grad():
        torch.testing.assert_close(again.module()(x), exported.module()(x), rtol=0, atol=0)
    addresses = [
        [edges.require_site(n).address for n in p.graph.nodes if n.op == "call_function"]
        for p in (again, exported)
    ]
    assert addresses[0] == addresses[1]


def test_guards_in_the_file_are_never_executed(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"__import__('os').system('touch {mark}') == 0"

    def add_guard(model: Any) -> None:
        model["guards_code"] = [source]

    loaded = load_model(str(rewritten(saved, tmp_path, edit={MODEL: add_guard})))
    with torch.no_grad():
        loaded.module(*loaded.example_args, **loaded.example_kwargs)
    assert not mark.exists()


def test_archives_that_are_no_such_archive_are_refused(saved: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            load_model(str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in message(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("not a zip")
    assert "damaged or no .pt2 archive" in message(tmp_path / "text.pt2")
    (tmp_path / "half.pt2").write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    assert "damaged or no .pt2 archive" in message(tmp_path / "half.pt2")
    bomb = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/weights/weight_0", bytes(1 << 20))
    assert "compressed or overlap" in message(bomb)
    twice = tmp_path / "twice.pt2"
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("net/models/model.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("net/models/model.json", "{}")
    assert "stands twice" in message(twice)
    old = tmp_path / "old.pt2"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    assert "saved by an older torch" in message(old)
    damaged = rewritten(saved, tmp_path, add={MODEL: b"{"})
    assert "model.json is damaged" in message(damaged)
    deep = rewritten(saved, tmp_path, add={MODEL: b"[" * 100_000})
    assert "damaged" in message(deep)
    assert "has no models/model.json" in message(rewritten(saved, tmp_path, drop=MODEL))
    flipped = bytearray(saved.read_bytes())
    flipped[flipped.find(b"weight_0") + 200] ^= 0xFF
    (tmp_path / "flipped.pt2").write_bytes(flipped)
    message(tmp_path / "flipped.pt2")


def test_programs_that_are_no_inference_are_refused(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(x)
            return self.count + x

    x = torch.randn(2, 3)
    writes = torch.export.export(Counter(), (x,))
    cases = {
        "writes": (writes, "writes into its buffers"),
        "writes, as an output": (writes.run_decompositions({}), "writes into its buffers"),
        "dropout": (
            torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(), (x,)),
            "dropout trains",
        ),
    }
    for exported, reason in cases.values():
        torch.export.save(exported, tmp_path / "bad.pt2")
        with pytest.raises(ModelError, match=reason):
            load_model(str(tmp_path / "bad.pt2"))


def test_a_shared_module_and_a_bare_weight_survive(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.mix(torch.relu(self.mix(x))), self.weight)

    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 4)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "shared.pt2")
    loaded = load_model(str(tmp_path / "shared.pt2"))
    assert isinstance(loaded.module.mix, nn.Linear)
    calls = [n.target for n in loaded.module.graph.nodes if n.op == "call_module"]
    assert calls == ["mix", "mix"]
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))
