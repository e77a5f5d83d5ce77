"""A LoRA configuration is read as PEFT means it; what cannot be fused is refused by name."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from edgeopt.adapters.peft.config import IGNORED, REFUSED, LoraConfig, read_config
from edgeopt.adapters.peft.folder import read_adapter
from edgeopt.adapters.peft.patterns import compile_pattern
from edgeopt.errors import AdapterError, ConfigError

NAMES = [
    f"model.layers.{layer}.{part}.{leaf}"
    for layer in (0, 1, 11)
    for part, leaf in (("self_attn", "q_proj"), ("self_attn", "o_proj"), ("mlp", "up_proj"))
] + ["model.embed_tokens", "lm_head", "model.norm", "classifier.dense", "q_proj"]


def written(tmp_path: Path, **changes: Any) -> Path:
    """Write what PEFT writes, with keys changed."""
    peft.LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


# --- what PEFT writes ----------------------------------------------------------------------------


def test_every_key_of_pefts_configuration_is_decided_on() -> None:
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    theirs = {f.name for f in dataclasses.fields(peft.LoraConfig)}
    assert theirs == theirs & (known | IGNORED.keys() | REFUSED.keys())
    assert not known & (IGNORED.keys() | REFUSED.keys())
    assert not IGNORED.keys() & REFUSED.keys()


def test_a_configuration_that_peft_wrote_is_read(tmp_path: Path) -> None:
    peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=0.1, target_modules=["q_proj"], use_rslora=True
    ).save_pretrained(str(tmp_path))
    config, ignored = read_config(tmp_path / "adapter_config.json")
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 6, True)
    assert config.target_modules == ("q_proj",)
    assert config.scale("x.q_proj", 4) == 3.0  # 6 / sqrt(4)
    assert ignored["lora_dropout"] == "training only"


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_changes_the_mathematics_is_refused_by_name(key: str, tmp_path: Path) -> None:
    value: Any = True if key == "use_qalora" else {"x": 1} if key.endswith("config") else [[1, 2]]
    with pytest.raises(AdapterError, match=f"{key} is set: "):
        read_config(written(tmp_path, **{key: value}))
    read_config(written(tmp_path, **{key: None}))


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "ADALORA", "BONE", None, 3])
def test_another_method_is_refused(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="only LORA adapters can be fused"):
        read_adapter(written(tmp_path, peft_type=kind).parent)


def test_an_unknown_key_is_refused_where_it_is_on_and_accepted_where_it_is_off(
    tmp_path: Path,
) -> None:
    read_config(written(tmp_path, use_quantum_lora=False, quantum_config=None, qubits=[]))
    with pytest.raises(AdapterError, match="use_quantum_lora is set, which this edgeopt"):
        read_config(written(tmp_path, use_quantum_lora=True))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_of_a_changed_base_is_refused(start: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        read_config(written(tmp_path, init_lora_weights=start))


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_other_starts_change_nothing(start: Any, tmp_path: Path) -> None:
    assert read_config(written(tmp_path, init_lora_weights=start))[0].init_lora_weights == start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r: a rank is at least 1"),
        ({"r": "many"}, "r: Input should be a valid integer"),
        ({"rank_pattern": {"q": -1}}, "q: a rank is at least 1"),
        ({"lora_alpha": float("nan")}, "alpha must be finite"),
        ({"alpha_pattern": {"q": float("inf")}}, "alpha must be finite"),
        ({"bias": "some"}, "bias: Input should be 'none', 'all' or 'lora_only'"),
        ({"use_dora": True, "lora_bias": True}, "exclude each other"),
        ({"init_lora_weights": "magic"}, "is 'magic', which is not known"),
        ({"target_modules": 3}, "target_modules"),
        ({"rank_pattern": {"(q": 4}}, "is no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 4}}, "repeats a group"),
        ({"rank_pattern": {".*" * 9: 4}}, "repeats too often"),
        ({"target_modules": "(x"}, "is no regular expression"),
        ({"target_modules": "x{1,99999999999}"}, "is no regular expression"),
        ({"layers_pattern": ["[x"]}, "is no regular expression"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_that_cannot_be_meant_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json") as failure:
        read_config(written(tmp_path, **changes))
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"LORA"', "\udcff"])
def test_a_damaged_configuration_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(AdapterError, match=r"adapter_config\.json") as failure:
        read_config(path)
    assert "\n" not in str(failure.value)


def test_a_huge_configuration_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(AdapterError, match="larger than 16 MiB"):
        read_config(path)


# --- PEFT's own matching as oracle ----------------------------------------------------------------

PATTERNS = [
    "q_proj",
    "layers.1.mlp.up_proj",
    "^model.layers.0.self_attn.q_proj",
    r".*layers\.(0|11)\..*",
    "embed_tokens",
    "model.embed_tokens",
    "proj",
    "lm_head|norm",
]


@settings(max_examples=100, deadline=None)
@given(
    keys=st.lists(st.sampled_from(PATTERNS), max_size=4, unique=True), name=st.sampled_from(NAMES)
)
def test_rank_and_alpha_patterns_pick_what_peft_picks(keys: list[str], name: str) -> None:
    ranks = {key: index + 1 for index, key in enumerate(keys)}
    config = LoraConfig("LORA", r=99, lora_alpha=50, rank_pattern=ranks, alpha_pattern=ranks)
    expected = ranks.get(get_pattern_key(list(ranks), name), 99)
    assert config.rank(name) == expected
    assert config.scale(name, 2) == (expected if expected != 99 else 50) / 2


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["model.embed_tokens", "dense"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": []},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]},
        {"target_modules": r".*\.(q|o)_proj"},
        {"target_modules": r".*proj", "exclude_modules": r".*layers\.1\..*"},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "dense"], "modules_to_save": ["classifier"]},
    ],
    ids=str,
)
def test_targets_are_those_of_peft(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft.LoraConfig(**options)
    theirs.save_pretrained(str(tmp_path))
    mine, _ = read_config(tmp_path / "adapter_config.json")
    assert mine.knows_targets
    picked = {name for name in NAMES if mine.targets(name)}
    # PEFT answers with a match, a boolean, or an object that says "excluded" and is true
    found = {name: check_target_module_exists(theirs, name) for name in NAMES}
    assert picked == {
        n for n, answer in found.items() if answer and "Excluded" not in type(answer).__name__
    }


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": None},
        {"target_modules": "all-linear"},
        {"target_modules": "(x+)+y"},
        {"target_modules": ["q_proj"], "exclude_modules": ".*" * 9},
        {"target_modules": ["q_proj"], "layers_pattern": ["h" * 3000]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_targets_that_cannot_be_told_by_name_are_not_guessed(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert not read_config(written(tmp_path, **options))[0].knows_targets


# --- hostile patterns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a?){20}b", "a?" * 11 + "b", ".*" * 6 + "b", "a" * 3000]
)
def test_a_pattern_that_could_take_forever_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"forever|characters"):
        compile_pattern(pattern)


def test_the_worst_pattern_that_is_accepted_ends_soon() -> None:
    started = time.perf_counter()
    assert compile_pattern("(.*.)?(" + "a*" * 3 + "b)$").match("a" * 128) is None
    assert (
        time.perf_counter() - started < 20
    )  # seconds on a busy machine; `(a+)+b` would take years
