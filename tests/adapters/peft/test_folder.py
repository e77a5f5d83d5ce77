"""A PEFT folder is read whole or refused in one line; nothing of it is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeopt.adapters.peft.folder import read_adapter
from edgeopt.errors import AdapterError
from tests.adapters.oracle import adapted, saved
from tests.small_models import Block, seeded

P = "base_model.model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of two linears of a block, as PEFT writes it."""
    model = adapted(seeded(Block), r=4, lora_alpha=6, target_modules=["fc1", "attn.qkv"])
    return saved(model, tmp_path_factory.mktemp("adapters") / "tone")


def changed(
    folder: Path,
    to: Path,
    edit: Callable[[dict[str, Tensor]], None] = lambda _tensors: None,
    **config: Any,
) -> Path:
    """Copy an adapter with its tensors and its configuration edited."""
    to.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, to / "adapter_model.safetensors")
    data = json.loads((folder / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps({**data, **config}))
    return to


def refused(folder: Path, message: str) -> None:
    with pytest.raises(AdapterError) as failure:
        read_adapter(folder)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_an_adapter_of_peft_is_read(folder: Path) -> None:
    found = read_adapter(folder)
    assert found.name == "tone"
    assert sorted(found.factors) == ["attn.qkv", "fc1"]
    fc1 = found.factors["fc1"]
    assert (fc1.rank, fc1.scale, fc1.embedding) == (4, 1.5, False)
    assert (tuple(fc1.a.shape), tuple(fc1.b.shape)) == ((4, 16), (32, 4))
    assert not found.whole
    assert sorted(found.sha256) == ["adapter_config.json", "adapter_model.safetensors"]


def test_missing_folders_and_files_are_named(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder; an adapter is a folder with adapter_config.json")
    refused(folder / "adapter_config.json", "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "adapter_config.json: cannot be read")
    without = changed(folder, tmp_path / "without")
    (without / "adapter_model.safetensors").unlink()
    refused(without, "holds no adapter_model.safetensors")


def test_a_pickled_adapter_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    pickled = changed(folder, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    (pickled / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refused(pickled, "adapter_model.bin: is pickled, so loading it could run code; refused")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}"])
def test_damaged_weights_are_refused(content: bytes, folder: Path, tmp_path: Path) -> None:
    damaged = changed(folder, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(content)
    refused(damaged, "damaged or not safetensors")


A, B = f"{P}fc1.lora_A.weight", f"{P}fc1.lora_B.weight"
EDITS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "nothing": (dict.clear, "holds no tensor"),
    "no A": (lambda t: t.pop(A), "fc1: lora_A is missing"),
    "no B": (lambda t: t.pop(B), "fc1: lora_B is missing"),
    "NaN": (lambda t: t[A].fill_(float("nan")), "fc1.lora_A.weight holds NaN or Inf in 64 of 64"),
    "Inf": (lambda t: t[B][0].fill_(float("inf")), "fc1.lora_B.weight holds NaN or Inf in 4 of"),
    "integers": (lambda t: t.update({A: torch.ones(4, 16, dtype=torch.int8)}), "is torch.int8"),
    "another rank": (
        lambda t: t.update({A: torch.ones(2, 16), B: torch.ones(32, 2)}),
        "A is [2, 16] and B is [32, 2], but the configuration says rank 4",
    ),
    "ranks that differ": (lambda t: t.update({A: torch.ones(3, 16)}), "says rank 4"),
    "a shard": (lambda t: t.update({A: torch.zeros(0)}), "a shard was saved"),
    "a vector": (lambda t: t.update({A: torch.ones(64)}), "a shard was saved"),
    "no prefix": (lambda t: t.update({"fc2.lora_A.weight": t.pop(A)}), "does not begin with"),
    "a magnitude without DoRA": (
        lambda t: t.update({f"{P}fc1.lora_magnitude_vector": torch.ones(32)}),
        "its magnitude is in the file, but use_dora is False",
    ),
    "a bias of B without lora_bias": (
        lambda t: t.update({f"{P}fc1.lora_B.bias": torch.ones(32)}),
        "its b_bias is in the file, but lora_bias is False",
    ),
    "factors of two kinds": (
        lambda t: t.update({f"{P}fc1.lora_embedding_A": torch.ones(4, 16)}),
        "lora_embedding_B is missing",
    ),
    "both kinds": (
        lambda t: t.update(
            {f"{P}fc1.lora_embedding_A": torch.ones(4, 16)}
            | {f"{P}fc1.lora_embedding_B": torch.ones(32, 4)}
        ),
        "has factors of an embedding and of another layer",
    ),
    "a long name": (lambda t: t.update({P + "x." * 200 + "w": torch.ones(1)}), "characters"),
}


@pytest.mark.parametrize("name", EDITS)
def test_tensors_that_are_not_as_configured_are_refused(
    name: str, folder: Path, tmp_path: Path
) -> None:
    edit, message = EDITS[name]
    refused(changed(folder, tmp_path / "edited", edit), message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_dora": True}, "its magnitude is missing, but use_dora is True"),
        ({"lora_bias": True}, "its b_bias is missing, but lora_bias is True"),
        ({"r": 8}, "but the configuration says rank 8"),
        ({"rank_pattern": {"fc1": 2}}, "but the configuration says rank 2"),
    ],
    ids=str,
)
def test_options_that_the_tensors_do_not_bear_out_are_refused(
    option: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    refused(changed(folder, tmp_path / "edited", **option), message)


def test_half_precision_factors_are_read(folder: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({key: value.bfloat16() for key, value in tensors.items()})

    found = read_adapter(changed(folder, tmp_path / "half", halve))
    assert found.factors["fc1"].a.dtype is torch.bfloat16


class Headed(nn.Module):
    """A block with a head, which PEFT saves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def test_what_is_saved_whole_is_told_from_what_is_loaded_in_place(tmp_path: Path) -> None:
    model = adapted(
        seeded(Headed), r=4, target_modules=["fc1"], modules_to_save=["head"], bias="all"
    )
    found = read_adapter(saved(model, tmp_path / "headed"))
    assert {"head.weight", "head.bias", "block.fc1.bias", "block.norm1.bias"} <= set(found.whole)
    assert not {"head.weight", "head.bias"} & found.in_place
    assert {"block.fc1.bias", "block.norm1.bias"} <= found.in_place
    assert found.unread == ("head.original_module.bias",)
    assert torch.equal(found.whole["head.bias"], model.base_model.model.head.bias)


def test_one_name_with_two_values_is_refused(folder: Path, tmp_path: Path) -> None:
    def twice(tensors: dict[str, Tensor]) -> None:
        tensors[f"{P}head.weight"] = torch.ones(2)
        tensors[f"{P}head.modules_to_save.weight"] = torch.zeros(2)

    edited = changed(folder, tmp_path / "twice", twice, modules_to_save=["head"])
    refused(edited, "head.weight is there twice, with different values")
