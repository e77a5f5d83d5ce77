"""Transformers folders: what is loaded, and every refusal. Nothing reaches for the network."""

from __future__ import annotations

import copy
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgeopt.api.build import BuildOptions, run_build
from edgeopt.errors import ConfigError, EdgeOptError, ModelError
from edgeopt.models.load import load_model
from edgeopt.models.torchvision_operators import import_torchvision

SIZES: dict[str, int] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def transformers() -> Any:
    import_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    folder = tmp_path_factory.mktemp("llama") / "tiny-llama"
    transformers.LlamaForCausalLM(config).half().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def message(spec: object, error: type[EdgeOptError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        load_model(f"hf:{spec}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_language_model_gives_what_transformers_gives(llama: Path, transformers: Any) -> None:
    loaded = load_model(f"hf:{llama}")
    assert loaded.name == "tiny-llama"
    assert loaded.input_names == ("input_ids", "attention_mask")
    assert loaded.input_roles == ("tokens", "mask")
    assert (loaded.output_names, loaded.metric) == (("logits",), "perplexity")
    assert [{a: d.name for a, d in leaf.items()} for leaf in loaded.dimensions] == [
        {0: "batch", 1: "sequence"}
    ] * 2
    own = transformers.LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    ids = torch.randint(0, 120, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    with torch.no_grad():
        want = own(input_ids=ids, attention_mask=mask).logits
        got = loaded.module(ids, mask)
    assert list(got) == ["logits"]
    torch.testing.assert_close(got["logits"], want, rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_names_stay_those_of_the_class_and_ties_stay(llama: Path, transformers: Any) -> None:
    module: Any = copy.deepcopy(load_model(f"hf:{llama}").module)
    assert isinstance(module.get_submodule("model.layers.0.self_attn.q_proj"), nn.Linear)
    assert isinstance(module, transformers.LlamaForCausalLM)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert type(module).__qualname__ == "LlamaForCausalLM"


def test_any_batch_and_length_go_through_one_capture(llama: Path) -> None:
    loaded = load_model(f"hf:{llama}")
    exported = torch.export.export(
        loaded.module, loaded.example_args, dynamic_shapes=loaded.dynamic_shapes
    )
    ids = torch.randint(0, 120, (1, 37))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        want = loaded.module(ids, mask)["logits"]
        got = exported.module()(ids, mask)["logits"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_options_choose_class_inputs_outputs_and_length(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, num_labels=3)
    ).save_pretrained(tmp_path)
    plain = load_model(f"hf:{tmp_path}")
    assert (plain.output_names, plain.metric) == (("logits",), "top1")
    assert plain.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    chosen = load_model(
        f"hf:{tmp_path}?class=BertModel&outputs=last_hidden_state&sequence=24"
        "&inputs=input_ids,attention_mask,token_type_ids"
    )
    assert chosen.output_names == ("last_hidden_state",)
    assert chosen.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert chosen.example_args[0].shape == (2, 24)
    assert chosen.metric is None
    for options, reason in {
        "clas=BertModel": "unknown option 'clas' (did you mean 'class'?)",
        "outputs=logit": "no 'logit' (did you mean 'logits'?)",
        "inputs=input_idz": "takes no 'input_idz' (did you mean 'input_ids'?)",
        "sequence=65": "at most 64 tokens",
        "sequence=one": "is no number of tokens",
    }.items():
        assert reason in message(f"{tmp_path}?{options}", ConfigError)
    assert "has no model class 'BertModle' (did you mean 'BertModel'?)" in message(
        f"{tmp_path}?class=BertModle"
    )
    assert "is of type 'bert', LlamaModel takes another" in message(f"{tmp_path}?class=LlamaModel")


def test_a_picture_model_takes_pixels(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    assert (loaded.input_names, loaded.input_roles) == (("pixel_values",), ("image",))
    assert loaded.example_args[0].shape == (2, 3, 32, 32)
    assert loaded.metric == "top1"


def test_folders_that_hold_no_model_are_named(llama: Path, broken: Path, tmp_path: Path) -> None:
    assert "no such folder (nothing is downloaded)" in message("bert-base-uncased")
    assert "is a file" in message(llama / "config.json")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in message(tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{}")
    assert "is a tokenizer's folder; the weights are missing" in message(tmp_path / "empty")
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert "has no model.safetensors" in message(broken)
    for name, reason in {
        "pytorch_model.bin": "is a pickled checkpoint, and loading it could run code",
        "model.safetensors.index.json": "is a sharded checkpoint",
        "adapter_config.json": "is an adapter",
    }.items():
        (broken / name).write_text("{}")
        assert reason in message(broken)
        (broken / name).unlink()
    weights.write_text('{"version": "1.0", "model": {"type": "BPE"}}')  # a tokenizer
    assert "damaged or not safetensors" in message(broken)
    weights.write_bytes(content[:2000])
    assert "damaged or not safetensors" in message(broken)


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c.pop("model_type"), "has no model_type"),
        (lambda c: c.pop("architectures"), "has no architectures; say which class"),
        (lambda c: c.update(architectures=["LlamaForCausalLn"]), "did you mean 'LlamaForCausalLM'"),
        (lambda c: c.update(architectures=["os"]), "has no model class 'os'"),
        (
            lambda c: c.update(architectures=["Own"], auto_map={"AutoModel": "code.Own"}),
            "Own is code in the folder itself, which is never run",
        ),
        (lambda c: c.update(quantization_config={"bits": 4}), "is quantized already"),
        (lambda c: c.update(is_encoder_decoder=True), "an encoder and a decoder"),
        (lambda c: c.update(hidden_size="many"), "cannot be loaded"),
        (lambda c: c.update(hidden_size=64), "cannot be loaded"),
    ],
)
def test_configurations_that_fit_no_model_are_named(
    spoil: Spoil, reason: str, broken: Path
) -> None:
    path = broken / "config.json"
    config = json.loads(path.read_text())
    spoil(config)
    path.write_text(json.dumps(config))
    assert reason in message(broken)


def test_weights_that_do_not_fit_are_named_with_the_nearest(broken: Path) -> None:
    path = broken / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_projj.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    text = message(broken)
    assert "1 missing, first 'model.layers.0.mlp.up_proj.weight'" in text
    assert "did you mean 'model.layers.0.mlp.up_projj.weight'?" in text
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_projj.weight"]
    save_file({k: v.clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    assert "1 unknown, first 'model.layers.0.mlp.up_projj.weight'" in message(broken)


def test_an_adapter_beside_the_model_is_not_applied_in_silence(broken: Path) -> None:
    (broken / "adapter_config.json").write_text("{}")
    assert "pass --adapter" in message(broken)


def test_weights_that_are_not_finite_are_refused(broken: Path) -> None:
    path = broken / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    assert "model.norm.weight holds NaN or Inf" in message(broken)


def test_without_transformers_the_install_is_named(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'edgeopt[hf]'" in message(llama, ConfigError)


def test_data_of_another_length_than_the_files_need_a_dynamic_dimension(
    llama: Path, tmp_path: Path
) -> None:
    def data(length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 120, (6, length), generator=torch.Generator().manual_seed(length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    options = {
        "model": f"hf:{llama}", "profile": "host", "calib": data(8), "eval": data(12),
        "recipe": "float", "latency": False, "drift": False, "verify": "edited",
        "out": tmp_path / "bundle",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"input_ids is 12 long in sequence.*--dynamic sequence"):
        run_build(BuildOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--dynamic sequense: no such.*'sequence'"):
        run_build(BuildOptions(**{**options, "eval": None, "dynamic": "sequense"}))  # type: ignore[arg-type]
    outcome = run_build(BuildOptions(**options, dynamic=("sequence", "batch")))  # type: ignore[arg-type]
    (method,) = json.loads((outcome.bundle_path / "manifest.json").read_text())["artifacts"][0][
        "methods"
    ]
    assert [i["shape"] for i in method["inputs"]] == [["batch", "sequence"]] * 2
    assert method["outputs"][0]["shape"] == ["batch", "sequence", 120]
    (accuracy,) = outcome.report.accuracy
    assert accuracy.samples == 6
    assert accuracy.snr_db is not None
    assert accuracy.snr_db > 90
