"""Loading models: every form, every refusal, and the user's module left alone."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.errors import ConfigError, DataError, ModelError
from edgeopt.ir.digests import digest as weights_digest
from edgeopt.models.from_module import from_module
from edgeopt.models.load import load_model
from edgeopt.models.weights import check_finite, load_weights, read_weights

FACTORIES = Path(__file__).parents[1] / "factories"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


class Pair(nn.Module):
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"first": ids.float() * attention_mask, "second": ids.float().sum(1)}


def message(spec: str, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        load_model(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


# From Python


def test_the_users_module_is_never_changed() -> None:
    module = Net().half().train()
    before = weights_digest(module)
    loaded = from_module(module, torch.zeros(1, 3, dtype=torch.float64))
    assert module.training
    assert module.head.weight.dtype == torch.float16
    assert module.head.weight.requires_grad
    assert weights_digest(module) == before
    assert not loaded.module.training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    loaded.module.head.bias.add_(1)
    assert weights_digest(module) == before


def test_an_example_of_one_becomes_two_where_the_model_allows_it() -> None:
    loaded = from_module(Net(), torch.zeros(1, 3))
    assert loaded.example_args[0].shape == (2, 3)
    assert (loaded.name, loaded.input_names, loaded.output_names) == ("net", ("x",), ("output",))
    assert loaded.metric == "top1"

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 3)

    assert from_module(Fixed(), torch.zeros(1, 3)).example_args[0].shape == (1, 3)

    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum().reshape(1)

    assert from_module(Total(), torch.zeros(1, 3)).example_args[0].shape == (1, 3)


def test_names_and_roles_come_from_the_model_or_the_user() -> None:
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5)
    loaded = from_module(Pair(), ids, {"attention_mask": mask})
    assert loaded.input_names == ("ids", "attention_mask")
    assert loaded.output_names == ("first", "second")
    assert loaded.input_roles == ("tokens", "mask")
    conv = from_module(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8), output_names=("map",))
    assert (conv.input_roles, conv.output_names, conv.metric) == (("image",), ("map",), None)
    with pytest.raises(ConfigError, match="2 output_names, the model has 1"):
        from_module(Net(), torch.zeros(2, 3), output_names=("a", "b"))


@pytest.mark.parametrize(
    ("given", "folder"),
    [("my net/v2", "my-net-v2"), ("../../net", "net"), (".hidden", "hidden"), ("..", "net")],
)
def test_a_name_is_fit_for_a_folder_that_is_seen(given: str, folder: str) -> None:
    assert from_module(Net(), torch.zeros(2, 3), name=given).name == folder


def test_data_come_with_the_model_or_later() -> None:
    x, y = torch.randn(6, 3), torch.arange(6) % 4
    loaded = from_module(Net(), x[:2], calibration=x, evaluation=(x, y))
    assert loaded.calibration is not None
    assert loaded.calibration.count == loaded.data((x, y)).count == 6
    assert loaded.metric == "top1"
    assert from_module(Net(), x[:2], evaluation=(x, y.float())).metric is None
    with pytest.raises(DataError, match=r"the model takes float32 \[N, 3\]"):
        from_module(Net(), x[:2], calibration=torch.zeros(6, 2))


def test_modules_that_cannot_be_used_are_named() -> None:
    broken = Net()
    broken.head.weight.data[1, 2] = torch.nan
    with pytest.raises(ModelError, match=r"head.weight holds NaN or Inf in 1 of 12 values"):
        from_module(broken, torch.zeros(2, 3))
    with pytest.raises(ModelError, match="meta device"):
        from_module(nn.Linear(3, 4, device="meta"), torch.zeros(2, 3))
    with pytest.raises(ModelError, match="does not run on its example inputs: RuntimeError"):
        from_module(Net(), torch.zeros(2, 7))
    with pytest.raises(ModelError, match="at least one tensor"):
        from_module(Net(), ())

    class Divide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x

    with pytest.raises(ModelError, match="gives NaN or Inf"):
        from_module(Divide(), torch.zeros(2, 3))


# Forms


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo:vti", "no such model .*did you mean 'vit'"),
        ("hf:", "no folder; use hf:DIR"),
        ("model.py", "model.py:FACTORY"),
        ("resnet", "not a model; use zoo:NAME"),
        ("timm:resnet18", "no weights"),
        ("timm:@w.safetensors", "no model's name"),
        ("timm:resnet18?pretrained=True@w.safetensors", "pretrained is not taken"),
    ],
)
def test_a_form_that_is_not_known_says_which_are(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_model(spec)


def test_a_factory_returns_a_pair_or_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def pair():\n    return nn.Linear(3, 4), torch.zeros(1, 3)\n"
        "def mapping():\n    return dict(module=nn.Linear(3, 4), example_args=(torch.zeros(2, 3),),"
        " name='mine', labels=list('abcd'), preprocessing={'crop': 3}, metric=None)\n"
        "def alone():\n    return nn.Linear(3, 4)\n"
        "def wrong():\n    return dict(module=nn.Linear(3, 4), example_arg=torch.zeros(2, 3))\n"
        "def number():\n    return 7\n"
        "def fails():\n    raise ValueError('two\\nlines')\n"
    )
    pair = load_model(f"{file}:pair")
    assert (pair.name, pair.source) == ("mine-pair", f"{file}:pair")
    mapping = load_model(f"{file}:mapping")
    assert (mapping.name, mapping.labels, mapping.metric) == ("mine", tuple("abcd"), None)
    assert mapping.preprocessing == Preprocessing(crop=3)
    assert "return (module, example_args)" in message(f"{file}:alone", ModelError)
    assert "did you mean 'example_args'" in message(f"{file}:wrong", ModelError)
    assert "returned int" in message(f"{file}:number", ModelError)
    assert message(f"{file}:fails", ModelError).endswith("raised ValueError: two lines")
    assert "did you mean 'pair'" in message(f"{file}:pari", ModelError)
    assert "no such file" in message(f"{tmp_path}/none.py:f", ModelError)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    assert "the import raised SystemExit" in message(f"{tmp_path}/exits.py:f", ModelError)


# Weights


def test_weights_are_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = Net(), Net()
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    del tensors["norm.num_batches_tracked"]  # no inference reads it
    save_file(tensors, tmp_path / "w.safetensors")
    load_weights(target, read_weights(tmp_path / "w.safetensors"), "w")
    assert torch.equal(target.head.weight, source.head.weight.half().float())

    before = weights_digest(target)
    wrong = {"head.bias": torch.zeros(5), "head.weight": torch.ones(4, 3), "extra": torch.ones(1)}
    with pytest.raises(ModelError) as caught:
        load_weights(target, wrong, "w")
    assert str(caught.value) == (
        "w: does not fit the model: 4 missing, first 'norm.weight'; 1 unknown, first 'extra'; "
        "1 of another shape, first 'head.bias': [5], the model has [4]"
    )
    tensors["head.bias"] = torch.tensor([0, 0, torch.inf, 0])
    with pytest.raises(ModelError, match=r"w: head.bias holds NaN or Inf in 1 of 4 values"):
        load_weights(target, tensors, "w")
    assert weights_digest(target) == before
    check_finite(target)


def test_a_tied_weight_may_stand_under_one_name_and_a_mask_may_be_infinite() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    model = Tied()
    mask = model.mask.clone()
    load_weights(model, {"embed.weight": torch.ones(5, 3), "mask": mask}, "w")
    assert torch.equal(model.head.weight, torch.ones(5, 3))
    loaded = from_module(model, torch.zeros(2, 2, dtype=torch.int64))
    assert loaded.module.head.weight is loaded.module.embed.weight
    with pytest.raises(ModelError, match="mask holds NaN or Inf in 1 of 4"):
        load_weights(model, {"embed.weight": torch.ones(5, 3), "mask": -mask}, "w")
    with pytest.raises(ModelError, match=r"embed.weight holds NaN or Inf in 15 of 15"):
        load_weights(
            model,
            {"embed.weight": torch.full((5, 3), 1e300, dtype=torch.float64), "mask": mask},
            "w",
        )


def test_a_torch_file_is_read_without_running_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    wrapped = {"state_dict": {f"module.{k}": v for k, v in Net().state_dict().items()}}
    torch.save(wrapped, tmp_path / "good.pth")
    load_weights(Net(), read_weights(tmp_path / "good.pth"), "good")
    torch.save({"a": Code()}, tmp_path / "code.pt")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Code()))
    torch.save(Net(), tmp_path / "module.pt")
    for name in ("code.pt", "raw.bin", "module.pt"):
        with pytest.raises(ModelError, match=r"could run code; refused: save .* as .safetensors"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="no state dict"):
        read_weights(tmp_path / "other.pt")


def test_damaged_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(100)}, path)
    content = path.read_bytes()
    for damaged in (content[:-8], content[:20], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged or not safetensors") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "w.pt").write_bytes(content[:50])
    with pytest.raises(ModelError, match=r"w.pt"):
        read_weights(tmp_path / "w.pt")
    for name, words in (("none.safetensors", "no such file"), ("w.onnx", r"are \.safetensors")):
        (tmp_path / "w.onnx").write_bytes(b"x")
        with pytest.raises(ModelError, match=words):
            read_weights(tmp_path / name)


# Real models


def test_timm_imports_beside_a_torchvision_for_another_torch(tmp_path: Path) -> None:
    # In a process of its own: the test suite makes timm importable for itself.
    code = (
        "from edgeopt.errors import ModelError\nfrom edgeopt.models.load import load_model\n"
        "try:\n    load_model('timm:resnet18@none.safetensors')\n"
        "except ModelError as failure:\n    print(failure)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "none.safetensors: no such file" in done.stdout


def test_a_timm_model_with_weights_from_a_file(assets: Path) -> None:
    weights = assets / "mobilenetv2-imagenet" / "mobilenetv2_100.safetensors"
    spec = f"timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@{weights}"
    loaded = load_model(spec)
    assert loaded.name == "mobilenetv2_100"
    assert loaded.example_args[0].shape == (2, 3, 224, 224)
    assert loaded.preprocessing == Preprocessing(256, 224, (0.5,), (0.5,))
    assert (loaded.output_names, loaded.metric) == (("logits",), "top1")
    pictures = assets / "imagenet-sample" / "images256_q90.zip"
    samples = loaded.data(f"{pictures}?labels=wnids.json").take(16, seed=0)
    batch = next(samples.batches(16))
    with torch.no_grad():
        right = int((loaded.module(*batch.args).argmax(1) == batch.labels).sum())
    # 85.2 % on all 500; a wrong crop, scale, padding or label order leaves next to nothing.
    assert right >= 11
    with pytest.raises(ModelError, match="missing, first"):
        load_model(f"timm:mobilenetv2_050@{assets / 'resnet-cifar10' / 'resnet20.safetensors'}")
    with pytest.raises(ModelError, match=r"timm cannot make 'mobilenetv2_10'.*did you mean '"):
        load_model(f"timm:mobilenetv2_10@{weights}")
    with pytest.raises(ModelError, match=r"timm cannot make 'xx': [^?:]*$"):
        load_model(f"timm:xx@{weights}")


def test_a_factory_with_real_weights_and_data(assets: Path) -> None:
    loaded = load_model(f"{FACTORIES / 'resnet20.py'}:resnet20")
    assert loaded.calibration is not None
    assert loaded.evaluation is not None
    assert (loaded.calibration.count, loaded.evaluation.count) == (4000, 5000)
    assert sum(p.numel() for p in loaded.module.parameters()) == 269_722
    for samples, least in ((loaded.calibration, 98), (loaded.evaluation, 66)):
        batch = next(samples.take(100, seed=0).batches(100))
        with torch.no_grad():
            right = int((loaded.module(*batch.args).argmax(1) == batch.labels).sum())
        # 99.8 % and 81.0 % on all; 66 is more than three standard errors below.
        assert right >= least


# Nested inputs and outputs


@dataclasses.dataclass
class Found:
    boxes: Tensor
    scores: Tensor
    masks: Tensor | None = None


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
        self.boxes, self.scores = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(
        self, batch: dict[str, Tensor], extra: object = None, *, more: list[Tensor]
    ) -> Found:
        x = torch.relu(self.left(batch["x"]) + self.right(more[0] + more[1]))
        return Found(self.boxes(x), self.scores(x))


def test_a_model_with_nested_inputs_and_outputs_goes_through_a_build(tmp_path: Path) -> None:
    from edgeopt.api.build import BuildOptions, run_build

    torch.manual_seed(0)
    data = {
        "batch_x": torch.randn(24, 4),
        "more_0": torch.randn(24, 3),
        "more_1": torch.randn(24, 3),
    }
    loaded = from_module(
        Nests(),
        ({"x": torch.zeros(2, 4)}, None),
        {"more": [torch.zeros(2, 3), torch.zeros(2, 3)]},
        calibration=data,
        evaluation=data,
    )
    assert loaded.input_names == ("batch_x", "more_0", "more_1")
    assert loaded.output_names == ("boxes", "scores")
    outcome = run_build(
        BuildOptions(
            model=loaded, profile="host", latency=False, drift=False, dynamic=("batch",),
            out=tmp_path / "bundle",
        )
    )  # fmt: skip
    (method,) = outcome.bundle.manifest.artifacts[0].methods
    assert [(i.name, i.shape) for i in method.inputs] == [
        ("batch_x", ("batch", 4)), ("more_0", ("batch", 3)), ("more_1", ("batch", 3)),
    ]  # fmt: skip
    assert [o.name for o in method.outputs] == ["boxes", "scores"]
    (accuracy,) = outcome.report.accuracy
    assert accuracy.snr_db is not None
    assert accuracy.snr_db > 30
    assert outcome.report.artifacts[0].int8_macs == 1.0
    (proof,) = outcome.report.proof
    assert proof.exact


def test_an_output_that_is_no_tensor_is_named() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"logits": x, "count": len(x)}

    with pytest.raises(ModelError, match="output count is int; return tensors"):
        from_module(Counts(), torch.zeros(2, 3))
