"""`fuse_lora` gives what PEFT gives unfused, and refuses what it cannot give."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeopt.contracts.tied import Tied, tied_contracts
from edgeopt.errors import AdapterError, ConfigError, PreconditionError
from edgeopt.passes.fuse.fuse_lora import FuseLora, FuseLoraConfig
from edgeopt.pipeline.compiler_pass import WARNING
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState
from tests.adapters.oracle import adapted, farthest, outputs, saved
from tests.small_models import Block, context, normal, seeded

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(3))
TOKENS = {"input_ids": IDS}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CLOSE = 1e-5
"""Largest relative difference to PEFT's unfused float32 model; rounding alone is about 1e-6."""


def llama() -> nn.Module:
    """A small Llama whose head is tied to its embedding."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    """A small BERT with a classifier."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def gpt2() -> nn.Module:
    """A small GPT-2, whose layers store [in, out]."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=16, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


class Convolutions(nn.Module):
    """Convolutions of 1 and 2 dimensions, with a stride and a kernel of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.line = nn.Conv1d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.norm(self.point(torch.relu(self.plane(x)))).flatten(2))


class Attending(nn.Module):
    """torch's own attention, which calls no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


def fused(
    base: nn.Module, inputs: Mapping[str, Tensor], *adapters: str | Path, contracts: Any = ()
) -> ModelState:
    """Run the pass, fully verified."""
    ctx = context(kwargs=inputs)
    pass_ = FuseLora(FuseLoraConfig(tuple(map(str, adapters))))
    state = ModelState(module=base, contracts=tuple(contracts))
    return Pipeline((pass_,)).run(state, ctx)


def edited(folder: Path, to: Path, tensors: Mapping[str, Tensor | None], **config: Any) -> Path:
    """Copy an adapter with tensors (None: removed) and options changed."""
    to.mkdir()
    found = load_file(folder / "adapter_model.safetensors")
    for name, value in tensors.items():
        found.pop(f"base_model.model.{name}", None)
        if value is not None:
            found[f"base_model.model.{name}"] = value
    save_file(found, to / "adapter_model.safetensors")
    data = json.loads((folder / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps({**data, **config}))
    return to


# --- PEFT as oracle ------------------------------------------------------------------------------

IMAGE = {"x": normal(2, 3, 8, 8)}
SEQUENCE = {"x": normal(2, 5, 16)}
CASES: dict[str, tuple[Any, Mapping[str, Tensor], dict[str, Any]]] = {
    "linears": (llama, TOKENS, {"r": 4, "target_modules": LINEARS}),
    "rank and alpha patterns": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": LINEARS, "lora_alpha": 3}
        | {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}}
        | {"alpha_pattern": {r".*o_proj": 32, "^model.layers.0.mlp.gate_proj": 1}},
    ),
    "rank-stabilized": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": LINEARS, "use_rslora": True, "rank_pattern": {"o_proj": 9}},
    ),
    "one layer": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    ),
    "all linears": (llama, TOKENS, {"r": 4, "target_modules": "all-linear"}),
    "a regular expression": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": r".*layers\.0\..*[qk]_proj"},
    ),
    "DoRA": (llama, TOKENS, {"r": 4, "target_modules": LINEARS, "use_dora": True}),
    "DoRA, rank-stabilized": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": LINEARS, "use_dora": True, "use_rslora": True},
    ),
    "embedding of a tie": (llama, TOKENS, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "head of a tie": (llama, TOKENS, {"r": 4, "target_modules": ["lm_head"]}),
    "both of a tie, apart": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["lm_head", "embed_tokens"]},
    ),
    "both of a tie, as one": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "DoRA on an embedding": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["embed_tokens", "down_proj"], "use_dora": True},
    ),
    "modules saved whole": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    ),
    "embedding saved whole": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "tie saved whole": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["q_proj"], "ensure_weight_tying": True}
        | {"modules_to_save": ["embed_tokens", "model.embed_tokens"]},
    ),
    "all biases": (
        bert,
        TOKENS,
        {"r": 4, "target_modules": ["query", "dense"], "bias": "all", "task_type": "SEQ_CLS"},
    ),
    "biases of adapted layers": (
        bert,
        TOKENS,
        {"r": 4, "target_modules": ["query", "dense"], "bias": "lora_only"},
    ),
    "biases of B": (
        bert,
        TOKENS,
        {"r": 4, "target_modules": ["value", "dense"], "lora_bias": True},
    ),
    "embeddings of BERT": (
        bert,
        TOKENS,
        {"r": 4, "target_modules": ["word_embeddings", "position_embeddings", "key"]},
    ),
    "Conv1D": (
        gpt2,
        TOKENS,
        {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    ),
    "Conv1D without its option": (gpt2, TOKENS, {"r": 4, "target_modules": ["c_proj"]}),
    "Conv1D with DoRA": (
        gpt2,
        TOKENS,
        {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "convolutions": (
        lambda: seeded(Convolutions),
        IMAGE,
        {"r": 2, "target_modules": ["plane", "point", "line"]},
    ),
    "convolutions with DoRA": (
        lambda: seeded(Convolutions),
        IMAGE,
        {"r": 2, "target_modules": ["plane", "point", "line"], "use_dora": True},
    ),
    "batch norm saved whole": (
        lambda: seeded(Convolutions),
        IMAGE,
        {"r": 2, "target_modules": ["plane"], "modules_to_save": ["norm"]},
    ),
    "velora": (
        llama,
        TOKENS,
        {"r": 4, "target_modules": ["q_proj"], "velora_config": {"num_groups": 4}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fused_model_gives_what_peft_gives_unfused(name: str, tmp_path: Path) -> None:
    make, inputs, options = CASES[name]
    base = make()
    theirs = adapted(base, **options)
    state = fused(base, inputs, saved(theirs, tmp_path / "tone"))
    expected = outputs(theirs, inputs)
    assert farthest(expected, outputs(state.carrier_module, inputs)) <= CLOSE
    # the adapter matters: without it the outputs are elsewhere
    assert farthest(expected, outputs(base, inputs)) > 100 * CLOSE
    (record,) = state.history
    assert record.changes
    assert record.drift_db is not None
    kept = {type(child) for child in base.modules()}
    assert {type(child) for child in state.carrier_module.modules()} == kept


def test_every_site_is_reported_with_rank_scale_and_how_far_it_moved(tmp_path: Path) -> None:
    base = llama()
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]}
    state = fused(base, TOKENS, saved(adapted(base, **options), tmp_path / "tone"))
    (record,) = state.history
    assert sorted(record.changes) == [
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    weight = state.carrier_module.get_parameter("model.layers.0.self_attn.q_proj.weight")
    was = base.get_parameter("model.layers.0.self_attn.q_proj.weight")
    moved = float((weight - was).detach().norm() / was.detach().norm())
    line = record.changes["model.layers.0.self_attn.q_proj"]
    assert line == f"tone: LoRA of rank 4, scale 1.5; |change| / |weight| = {moved:.3g}"
    # PEFT saves the embedding's own weight as well, which is what the model has
    assert record.skipped == {}


def test_fusing_again_is_reported_as_what_it_is(tmp_path: Path) -> None:
    base = llama()
    folder = saved(adapted(base, r=4, target_modules=["q_proj"]), tmp_path / "tone")
    zero = {
        f"model.layers.{n}.self_attn.q_proj.lora_B.weight": torch.zeros(16, 4) for n in range(2)
    }
    state = fused(base, TOKENS, edited(folder, tmp_path / "untrained", zero))
    (record,) = state.history
    assert record.changes == {}
    assert set(record.skipped.values()) == {
        "untrained: LoRA of rank 4, scale 2; that is what the model has"
    }
    for name, value in base.state_dict().items():
        assert torch.equal(value, state.carrier_module.state_dict()[name]), name


def test_targets_that_only_the_file_tells_are_noted(tmp_path: Path) -> None:
    folder = saved(adapted(llama(), r=4, target_modules=["q_proj"]), tmp_path / "tone")
    involved = edited(folder, tmp_path / "involved", {}, target_modules=r"(.*\.)*q_proj")
    (record,) = fused(llama(), TOKENS, involved).history
    assert record.notes == ("involved: which modules it targets is told by its file alone",)
    assert len(record.changes) == 2


# --- several adapters ----------------------------------------------------------------------------


def test_several_weighted_adapters_are_the_sum_that_peft_gives_by_cat(tmp_path: Path) -> None:
    base = llama()
    one = adapted(base, seed=1, r=4, target_modules=["q_proj", "up_proj"])
    two = adapted(base, seed=2, r=3, lora_alpha=9, use_rslora=True, target_modules=["q_proj"])
    folders = [saved(one, tmp_path / "one"), saved(two, tmp_path / "two")]
    state = fused(base, TOKENS, f"{folders[0]}@0.7", f"{folders[1]}@-1.3")
    import peft

    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folders[0]), "one")
    theirs.load_adapter(str(folders[1]), "two")
    # `linear` multiplies the sums of the As and Bs, which has cross terms; `cat` is exact
    theirs.add_weighted_adapter(["one", "two"], [0.7, -1.3], "both", combination_type="cat")
    theirs.set_adapter("both")
    assert farthest(outputs(theirs.eval(), TOKENS), outputs(state.carrier_module, TOKENS)) <= CLOSE
    line = state.history[0].changes["model.layers.0.self_attn.q_proj"]
    assert "one, weight 0.7: LoRA of rank 4" in line
    assert "two, weight -1.3: LoRA of rank 3" in line
    assert state.history[0].notes == ()


def test_adapters_one_after_the_other_are_adapters_together(tmp_path: Path) -> None:
    base = llama()
    folders = [
        saved(adapted(base, seed=n, r=4, target_modules=["v_proj"]), tmp_path / f"n{n}")
        for n in range(2)
    ]
    together = fused(base, TOKENS, *folders).carrier_module
    first = fused(base, TOKENS, folders[0]).carrier_module
    after = fused(first, TOKENS, folders[1]).carrier_module
    for name, value in together.state_dict().items():
        assert torch.allclose(value, after.state_dict()[name], rtol=1e-6, atol=1e-7), name


def test_weight_zero_gives_the_base_to_the_bit_and_says_so(tmp_path: Path) -> None:
    base = bert()
    options: dict[str, Any] = {"r": 4, "target_modules": ["query"], "bias": "all", "use_dora": True}
    folder = saved(adapted(base, task_type="SEQ_CLS", **options), tmp_path / "tone")
    state = fused(base, TOKENS, f"{folder}@0")
    for name, value in base.state_dict().items():
        assert torch.equal(value, state.carrier_module.state_dict()[name]), name
    (record,) = state.history
    assert record.changes == {}
    assert set(record.skipped.values()) == {"tone has weight 0"}
    assert "classifier.weight" in record.skipped
    assert record.drift_db == float("inf")


def test_a_weight_moves_biases_part_of_the_way(tmp_path: Path) -> None:
    base = bert()
    model = adapted(base, r=4, target_modules=["query"], bias="all")
    state = fused(base, TOKENS, f"{saved(model, tmp_path / 'tone')}@0.5")
    name = "bert.encoder.layer.0.output.dense.bias"
    own = model.base_model.model.get_parameter(name)
    middle = (base.get_parameter(name) + own) / 2
    assert torch.allclose(state.carrier_module.get_parameter(name), middle)
    assert any("moved 0.5 of the way" in note for note in state.history[0].notes)


def test_dora_beside_another_adapter_adds_what_each_does_alone(tmp_path: Path) -> None:
    base = llama()
    models = [adapted(base, seed=n, r=4, target_modules=["q_proj"], use_dora=n < 1) for n in (0, 1)]
    folders = [saved(model, tmp_path / f"n{n}") for n, model in enumerate(models)]
    both = fused(base, TOKENS, *folders)
    name = "model.layers.1.self_attn.q_proj.weight"
    was = base.get_parameter(name)
    moves = [fused(base, TOKENS, f).carrier_module.get_parameter(name) - was for f in folders]
    assert torch.allclose(both.carrier_module.get_parameter(name) - was, sum(moves), atol=1e-5)
    assert any("one of them DoRA" in note for note in both.history[0].notes)


def test_two_heads_are_not_added_up(tmp_path: Path) -> None:
    base = bert()
    options: dict[str, Any] = {"r": 4, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    folders = [saved(adapted(base, n, **options), tmp_path / f"n{n}") for n in (0, 1)]
    with pytest.raises(AdapterError, match=r"n0 and n1 both replace classifier\.weight"):
        fused(base, TOKENS, *folders)
    fused(base, TOKENS, folders[0], f"{folders[1]}@0")


# --- tied weights --------------------------------------------------------------------------------


def test_one_side_of_a_tie_is_untied_and_reported(tmp_path: Path) -> None:
    base = llama()
    folder = saved(adapted(base, r=4, target_modules=["embed_tokens"]), tmp_path / "tone")
    state = fused(base, TOKENS, folder, contracts=tied_contracts(base))
    module = state.carrier_module
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    assert torch.equal(module.get_parameter(head), base.get_parameter(head))
    assert not torch.equal(module.get_parameter(embedding), base.get_parameter(embedding))
    assert state.contracts == ()
    (note,) = [n for n in state.history[0].notes if n.startswith(WARNING)]
    assert f"{embedding} shared its weight with {head}" in note
    assert "3,072 bytes more" in note


def test_a_tie_that_was_trained_as_one_stays(tmp_path: Path) -> None:
    base = llama()
    model = adapted(base, r=4, target_modules=["embed_tokens"], ensure_weight_tying=True)
    contracts = tied_contracts(base)
    state = fused(base, TOKENS, saved(model, tmp_path / "tone"), contracts=contracts)
    assert state.contracts == contracts == (Tied("lm_head.weight", "model.embed_tokens.weight"),)
    assert tied_contracts(state.carrier_module) == contracts
    assert not state.history[0].notes


# --- another base --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small Llama's queries and gates."""
    model = adapted(llama(), r=4, target_modules=["q_proj", "gate_proj"])
    return saved(model, tmp_path_factory.mktemp("adapters") / "tone")


def test_a_module_that_is_not_there_is_named_with_the_nearest(tone: Path, tmp_path: Path) -> None:
    base = llama()
    del base.model.layers[1]  # type: ignore[union-attr,operator]
    there = {n: value.clone() for n, value in base.state_dict().items()}
    named = edited(tone, tmp_path / "named", {}, base_model_name_or_path="org/base")
    with pytest.raises(AdapterError) as failure:
        fused(base, TOKENS, named)
    assert str(failure.value) == (
        f"{named}: module 'model.layers.1.mlp.gate_proj' is not in the model (2 of 4 are missing); "
        "the nearest is 'model.layers.0.mlp.gate_proj'; the adapter names 'org/base' as its base"
    )
    for name, value in there.items():
        assert torch.equal(value, base.state_dict()[name])


def test_another_shape_is_named_with_what_was_expected(tone: Path) -> None:
    config = llama().config
    config.intermediate_size = 32
    base = transformers.LlamaForCausalLM(config).eval()
    with pytest.raises(AdapterError) as failure:
        fused(base, TOKENS, tone)
    assert str(failure.value) == (
        f"{tone}: model.layers.0.mlp.gate_proj: B is [24, 4], the model's weight [32, 16] needs "
        "[32, 4]; is it another base?"
    )


GATE = "model.layers.0.mlp.gate_proj"
REFUSALS: dict[str, tuple[dict[str, Tensor | None], dict[str, Any], str]] = {
    "a target without factors": (
        {f"{GATE}.lora_A.weight": None, f"{GATE}.lora_B.weight": None},
        {},
        f"the configuration targets {GATE}, and the file has no factors of it",
    ),
    "factors without a target": (
        {},
        {"target_modules": ["q_proj"]},
        f"has factors of {GATE}, which its configuration does not target",
    ),
    "a bias that is not configured": (
        {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)},
        {},
        "holds model.layers.0.self_attn.q_proj.bias, which its configuration does not speak of",
    ),
    "a tensor of a module not saved": (
        {"model.norm.weight": torch.ones(16)},
        {},
        "holds model.norm.weight, which its configuration does not speak of",
    ),
    "a module to save that is missing": (
        {},
        {"modules_to_save": ["model.norm"]},
        "model.norm.weight is missing, but the configuration says that it was saved",
    ),
    "a tensor that the model lacks": (
        {"model.norm.bias": torch.ones(16)},
        {"modules_to_save": ["model.norm"]},
        "model.norm.weight is missing",
    ),
    "a resized vocabulary": (
        {"model.embed_tokens.weight": torch.ones(50, 16)},
        {},
        "model.embed_tokens.weight is [50, 16], the model's is [48, 16]; was the vocabulary",
    ),
    "factors of an embedding on a linear": (
        {f"{GATE}.lora_A.weight": None, f"{GATE}.lora_B.weight": None}
        | {f"{GATE}.lora_embedding_A": torch.ones(4, 16)}
        | {f"{GATE}.lora_embedding_B": torch.ones(24, 4)},
        {},
        f"{GATE}: the factors are those of an embedding, and the model has a Linear",
    ),
    "factors of a convolution on a linear": (
        {f"{GATE}.lora_A.weight": torch.ones(4, 16, 1, 1)}
        | {f"{GATE}.lora_B.weight": torch.ones(24, 4, 1, 1)},
        {},
        "A is [4, 16, 1, 1], the model's weight [24, 16] needs [4, 16]",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_missing_and_extra_keys_are_refused(name: str, tone: Path, tmp_path: Path) -> None:
    tensors, config, message = REFUSALS[name]
    with pytest.raises(AdapterError) as failure:
        fused(llama(), TOKENS, edited(tone, tmp_path / "edited", tensors, **config))
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_magnitude_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = llama()
    folder = saved(adapted(base, r=4, target_modules=["q_proj"], use_dora=True), tmp_path / "tone")
    name = "model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    with pytest.raises(AdapterError, match=r"the magnitude is \[15\], .* needs \[16\]"):
        fused(base, TOKENS, edited(folder, tmp_path / "edited", {name: torch.ones(15)}))


def test_a_wrapped_model_is_found_under_its_prefix(tone: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, *parts: nn.Module) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.parts[0](input_ids=input_ids).logits

    wrapped = Wrapper(llama()).eval()
    state = fused(wrapped, TOKENS, tone)
    plain = fused(llama(), TOKENS, tone)
    (expected, *_), (found,) = (outputs(s.carrier_module, TOKENS) for s in (plain, state))
    assert torch.equal(expected, found)
    assert state.history[0].notes == ("tone: its names stand under parts.0",)
    with pytest.raises(AdapterError, match=r"fits the model at parts\.0 and at parts\.1"):
        fused(Wrapper(llama(), llama()).eval(), TOKENS, tone)
    short = llama()
    del short.model.layers[1]  # type: ignore[union-attr,operator]
    with pytest.raises(AdapterError, match=r"'parts\.0\.model\.layers\.1\..* \(2 of 4 are missing"):
        fused(Wrapper(short).eval(), TOKENS, tone)


# --- layers that cannot take an update -----------------------------------------------------------


def lora_of(tmp_path: Path, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> Path:
    """Write an adapter by hand, for layers that PEFT itself fails on or treats otherwise."""
    folder = tmp_path / "hand"
    folder.mkdir()
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": normal(*a),
            f"base_model.model.{name}.lora_B.weight": normal(*b),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": a[0], "target_modules": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "has 2 groups"),
        (nn.Conv2d(4, 4, 3, dilation=2), "is dilated"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads by 'reflect'"),
        (nn.ConvTranspose2d(4, 4, 3), "is a ConvTranspose2d"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "is parametrized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_whose_update_no_weight_can_hold_is_refused(
    layer: nn.Module, message: str, tmp_path: Path
) -> None:
    base = nn.Sequential(layer).eval()
    folder = lora_of(tmp_path, "0", (2, 4, 3, 3), (4, 2, 1, 1))
    with pytest.raises(AdapterError, match=f"hand: 0: {message}"):
        fused(base, {"input": normal(1, 4, 9, 9)}, folder)


def test_one_module_under_two_names_is_refused(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.ReLU(), shared).eval()
    with pytest.raises(AdapterError, match="0 and 2 are one module"):
        fused(base, {"input": normal(2, 4)}, lora_of(tmp_path, "0", (2, 4), (4, 2)))


def test_a_bias_of_b_needs_a_bias(tmp_path: Path) -> None:
    base = llama()
    folder = saved(adapted(base, r=4, target_modules=["q_proj"]), tmp_path / "tone")
    biases: dict[str, Tensor | None] = {
        f"model.layers.{n}.self_attn.q_proj.lora_B.bias": torch.ones(16) for n in range(2)
    }
    with pytest.raises(AdapterError, match="B has a bias, and the layer has none"):
        fused(base, TOKENS, edited(folder, tmp_path / "biased", biases, lora_bias=True))


@pytest.mark.parametrize("target", ["attn", "out_proj"])
def test_torchs_attention_is_refused_since_peft_changes_its_output_twice(
    target: str, tmp_path: Path
) -> None:
    base = seeded(Attending)
    model = adapted(base, r=2, target_modules=[target])
    with pytest.raises(AdapterError, match=r"attn is an nn\.MultiheadAttention, whose output"):
        fused(base, SEQUENCE, saved(model, tmp_path / "tone"))


def test_peft_still_changes_that_projection_twice() -> None:
    base = seeded(Attending)
    model = adapted(base, r=2, target_modules=["attn"])
    layer = model.base_model.model.attn.base_layer.out_proj
    update = layer.get_delta_weight("default").detach()
    was = base.get_parameter("attn.out_proj.weight").detach()
    after = model.merge_and_unload().attn.out_proj.weight.detach()
    # once PEFT adds it once, the refusal above can go
    assert torch.allclose(after - was, 2 * update, atol=1e-5)


# --- options -------------------------------------------------------------------------------------


def test_no_adapter_is_an_error() -> None:
    with pytest.raises(PreconditionError, match="no adapter is given"):
        fused(seeded(Block), {"x": normal(2, 5, 16)})


@pytest.mark.parametrize("text", ["dir@", "dir@half", "dir@nan", "dir@inf", "@2"])
def test_a_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="takes DIR or DIR@WEIGHT"):
        FuseLoraConfig((text,))


def test_an_adapter_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        FuseLoraConfig(("a", "./a@2"))


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path, tone: Path) -> None:
    named = edited(tone, tmp_path / "tone@2", {})
    record = fused(llama(), TOKENS, named).history[0]
    assert record.changes[GATE].startswith("tone@2: LoRA of rank 4, scale 2;")
    record = fused(llama(), TOKENS, f"{named}@0.5").history[0]
    assert record.changes[GATE].startswith("tone@2, weight 0.5: LoRA")
