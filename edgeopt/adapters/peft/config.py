"""Read `adapter_config.json` of a PEFT LoRA adapter: what is used, ignored or refused, by name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from edgeopt.adapters.peft.patterns import compile_pattern, too_involved
from edgeopt.errors import AdapterError, ConfigError
from edgeopt.files import parse

MAX_CONFIG_BYTES = 16 << 20

# Keys of peft 0.21's LoraConfig that change no weight of a trained adapter.
IGNORED = {
    "auto_mapping": "names a Python class",
    "corda_config": "start values",
    "eva_config": "start values",
    "inference_mode": "a switch of the trainer",
    "loftq_config": "start values",
    "lora_dropout": "training only",
    "lora_ga_config": "start values",
    "megatron_core": "a module's name, used with megatron_config",
    "qalora_group_size": "used with use_qalora",
    "revision": "a version on the hub",
    "runtime_config": "where PEFT computes",
    "velora_config": "its backward pass only",
}
_ALWAYS_SET = frozenset({"auto_mapping", "inference_mode", "megatron_core", "qalora_group_size"})
REFUSED = {
    "alora_invocation_tokens": "the adapter acts on some tokens only, so no weight can hold it",
    "arrow_config": "adapters are routed by token, so no weight can hold them",
    "kasa_config": "it truncates the base weights and stores singular values apart",
    "layer_replication": "the adapter is for a model with repeated layers",
    "megatron_config": "the adapter is for tensor-parallel layers",
    "monteclora_config": "its weights are sampled",
    "target_parameters": "bare parameters (experts) are not supported",
    "trainable_token_indices": "single rows of an embedding are not supported",
    "use_bdlora": "its factors are stored as blocks",
    "use_qalora": "its inputs are pooled, so it fits a quantized base only",
}
_COMMON = frozenset(
    {
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "target_modules",
        "task_type",
    }
)
"""Keys that mean the same in every family that adapts modules by name."""
_COMMON_IGNORED = ("auto_mapping", "inference_mode", "revision", "runtime_config")
# `init_lora_weights` that take part of the base weight into the adapter (METHODS: W - g B A).
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What of a PEFT LoRA configuration decides the fused weights.

    Attributes:
        peft_type: `LORA`; or a plug-in's family, which has what all families have.
        r: Rank, where no pattern names another.
        lora_alpha: Numerator of the scale, where no pattern names another.
        rank_pattern: Module name or regular expression -> rank.
        alpha_pattern: Module name or regular expression -> alpha.
        use_rslora: The scale is `alpha / sqrt(r)`, not `alpha / r` (rank-stabilized LoRA).
        use_dora: Weights have a magnitude of their own (DoRA).
        fan_in_fan_out: Told by the trainer; the layer's type decides, as in PEFT.
        bias: Which biases were trained and saved: `none`, `all` or `lora_only`.
        lora_bias: The B factor has a bias.
        modules_to_save: Ends of the names of modules that were trained whole.
        target_modules: Names or ends of names, or one regular expression, or `all-linear`.
        exclude_modules: Likewise, taken out of the targets.
        layers_to_transform: Only these layer numbers.
        layers_pattern: Names of the lists that layer numbers count in.
        init_lora_weights: How training began.
        ensure_weight_tying: A tied pair was trained as one.
        base_model_name_or_path: The base as the trainer named it.
        task_type: `CAUSAL_LM`, `SEQ_CLS`, ..., or None.
        peft_version: Version of PEFT that wrote the folder, or None.
    """

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] | None = None
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    init_lora_weights: bool | str = True
    ensure_weight_tying: bool = False
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    peft_version: str | None = None

    def __post_init__(self) -> None:
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if rank < 1:
                raise ConfigError(f"{name}: a rank is at least 1, not {rank}")
        for name, alpha in {"lora_alpha": self.lora_alpha, **(self.alpha_pattern or {})}.items():
            if not math.isfinite(alpha):
                raise ConfigError(f"{name}: alpha must be finite, not {alpha}")
        if self.use_dora and self.lora_bias:
            raise ConfigError("use_dora and lora_bias exclude each other")

    def rank(self, module: str) -> int:
        """Return the rank that the configuration gives a module."""
        found = _by_pattern(self.rank_pattern or {}, module)
        return self.r if found is None else int(found)

    def scale(self, module: str, rank: int) -> float:
        """Return `alpha / r`, or `alpha / sqrt(r)` (arXiv 2312.03732), of a module."""
        found = _by_pattern(self.alpha_pattern or {}, module)
        alpha = self.lora_alpha if found is None else float(found)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @property
    def saved_whole(self) -> tuple[str, ...]:
        """Ends of the names of modules that were trained whole."""
        return self.modules_to_save or ()

    @property
    def knows_targets(self) -> bool:
        """Whether the targets can be told from their names; else only the file tells them."""
        if self.target_modules in (None, "all-linear"):
            return False
        return not any(too_involved(expression) for expression in self.expressions())

    def expressions(self) -> list[str]:
        """Return the regular expressions that name the targets."""
        named = (self.target_modules, self.exclude_modules)
        return [*self._numbered(), *(names for names in named if isinstance(names, str))]

    def targets(self, module: str) -> bool:
        """Say whether PEFT would adapt a module of this name; only where `knows_targets`."""
        if _named(self.exclude_modules, module) or self.saves(module):
            return False
        if not _named(self.target_modules, module):
            return False
        exact = not isinstance(self.target_modules, str) and module in (self.target_modules or ())
        return exact or self._layer_wanted(module)

    def saves(self, module: str) -> bool:
        """Say whether a module, or one around it, was trained whole and has no adapter."""
        padded = f".{module}."
        return any(f".{name}." in padded for name in self.saved_whole)

    def copies(self, module: str) -> bool:
        """Say whether PEFT trains a copy of this module, or of one around it.

        It takes every module whose name ends so: `input_layernorm` too for `norm`.
        """
        path = module.split(".")
        around = [".".join(path[: index + 1]) for index in range(len(path))]
        return any(name.endswith(end) for name in around for end in self.saved_whole)

    def _layer_wanted(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        for expression in self._numbered() or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            if found := compile_pattern(expression).match(module):
                numbers = (wanted,) if isinstance(wanted, int) else wanted
                return int(found["idx"]) in numbers
        return False

    def _numbered(self) -> list[str]:
        patterns = self.layers_pattern or ()
        lists = (patterns,) if isinstance(patterns, str) else patterns
        return [rf"(?:^|.*?\.)(?:{name})\.(?P<idx>\d+)\." for name in lists]


def _by_pattern(patterns: Mapping[str, float], module: str) -> float | None:
    """Return the value of the first pattern that names the module, as PEFT's `get_pattern_key`.

    A pattern is a regular expression that the whole name matches, or what follows a dot in it.
    """
    for pattern, value in patterns.items():
        if compile_pattern(_pattern(pattern)).match(module):
            return value
    return None


def _pattern(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _named(names: Iterable[str] | str | None, module: str) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return compile_pattern(names).fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_type(path: Path) -> object:
    """Return what a configuration says of its family, read alone.

    Raises:
        AdapterError: If the file is missing or damaged.
    """
    return _read(path).get("peft_type")


def read_added_config(
    path: Path, options: Collection[str]
) -> tuple[LoraConfig, dict[str, str], dict[str, Any]]:
    """Read the configuration of a plug-in's family, as `read_config`; also return its own options.

    Args:
        path: The file.
        options: Keys that the family reads.

    Raises:
        AdapterError: If it is missing or damaged, or sets a key that nobody knows.
    """
    data = _read(path)
    for key in sorted(set(data) - _COMMON - set(_COMMON_IGNORED) - set(options)):
        if _on(data[key]):
            raise AdapterError(
                f"{path}: {key} is set, which {data.get('peft_type')} does not read; it may change "
                "the weights"
            )
    given = {key: v for key, v in data.items() if key in _COMMON and v is not None}
    config = parse(given, LoraConfig, where=str(path), error=AdapterError)
    _check_patterns(path, config)
    told = [key for key in _COMMON_IGNORED if key not in _ALWAYS_SET and _on(data.get(key))]
    own = {key: data[key] for key in options if key in data}
    return config, {key: IGNORED[key] for key in told}, own


def read_config(path: Path) -> tuple[LoraConfig, dict[str, str]]:
    """Read a LoRA configuration; also return the keys that are set and ignored, with the reason.

    A key that is not known is accepted where it is off (null, false, empty), since it may change
    the mathematics where it is on.

    Raises:
        AdapterError: If the file is missing or damaged, or uses what cannot be fused.
    """
    data = _read(path)
    for key, reason in REFUSED.items():
        if _on(data.get(key)):
            raise AdapterError(f"{path}: {key} is set: {reason}")
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in sorted(set(data) - known - set(IGNORED) - set(REFUSED)):
        if _on(data[key]):
            raise AdapterError(
                f"{path}: {key} is set, which this edgeopt does not know; it may change the weights"
            )
    _check_start(path, data.get("init_lora_weights", True))
    given = {key: value for key, value in data.items() if key in known and value is not None}
    config = parse(given, LoraConfig, where=str(path), error=AdapterError)
    _check_patterns(path, config)
    told = sorted(IGNORED.keys() - _ALWAYS_SET)
    return config, {key: IGNORED[key] for key in told if _on(data.get(key))}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path}: is larger than {MAX_CONFIG_BYTES >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failure:
        raise AdapterError(f"{path}: cannot be read: {failure}") from None
    except (ValueError, RecursionError) as failure:
        raise AdapterError(f"{path}: not valid JSON: {failure}") from None
    if not isinstance(data, Mapping):
        raise AdapterError(f"{path}: holds no JSON object")
    return data


def _on(value: Any) -> bool:
    return value not in (None, False, 0, "", [], {})


def _check_start(path: Path, start: Any) -> None:
    """Refuse adapters whose training moved part of the base weight into them."""
    if not isinstance(start, str) or start in PLAIN_STARTS:
        return
    if start.startswith(CHANGED_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r}: the adapter belongs to a base that its "
            "training changed; save it again with path_initial_model_for_weight_conversion"
        )
    raise AdapterError(f"{path}: init_lora_weights is {start!r}, which is not known")


def _check_patterns(path: Path, config: LoraConfig) -> None:
    """Refuse what is no regular expression, and a pattern of ranks that could take forever.

    Targets may be told by an involved expression: then the file alone tells them.
    """
    needed = [_pattern(p) for p in (*(config.rank_pattern or {}), *(config.alpha_pattern or {}))]
    for expression in (*needed, *config.expressions()):
        involved = too_involved(expression)
        if involved and expression in needed:
            raise AdapterError(f"{path}: {involved}")
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as failure:
            raise AdapterError(
                f"{path}: {expression[:80]!r} is no regular expression: {failure}"
            ) from None
