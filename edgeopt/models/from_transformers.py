"""Models from a local Transformers folder: `hf:DIR`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import json
import logging
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ConfigError, ModelError, nearest
from edgeopt.models.loaded import AUTO, LoadedModel, from_module
from edgeopt.models.torchvision_operators import import_torchvision

FORM = "hf:DIR, a folder with config.json and model.safetensors"
OPTIONS = ("class", "inputs", "outputs", "sequence", "image")
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 16 << 20
SEQUENCE = 16
"""Tokens of the example where nobody says how many."""

_NOT_WEIGHTS = {
    "model.safetensors.index.json": "is a sharded checkpoint; save it in one piece: "
    "model.save_pretrained(DIR, max_shard_size='1TB')",
    "pytorch_model.bin": "is a pickled checkpoint, and loading it could run code; save it again: "
    "model.save_pretrained(DIR)",
    "pytorch_model.bin.index.json": "is a sharded, pickled checkpoint, and loading it could run "
    "code; save it again: model.save_pretrained(DIR)",
    "adapter_config.json": "is an adapter; give its base model, and the adapter by --adapter",
    "tokenizer.json": "is a tokenizer's folder; the weights are missing",
}


def load_transformers(spec: str) -> LoadedModel:
    """Load a Transformers folder, without any download and without running code from it.

    The class is the first of `architectures` in config.json. The module keeps that class's names,
    and takes and gives plain tensors: `input_ids` and `attention_mask` `[batch, sequence]` (int64,
    both sizes free), or `pixel_values`; outputs go by their field (`logits`,
    `last_hidden_state`). No cache is kept. Options stand after a `?`, joined by `&`:

    - `class=NAME`: another Transformers class, which may leave weights of the checkpoint unused.
    - `inputs=input_ids,attention_mask,token_type_ids`: other inputs.
    - `outputs=last_hidden_state`: only these outputs.
    - `sequence=N`: tokens of the example, which static files are made for unless data are given.
    - `image=N`: height and width of the picture, where the configuration does not say.

    Raises:
        ConfigError: If the form or an option is wrong, or Transformers is not installed.
        ModelError: If the folder holds no such model, or weights and class do not fit together.
    """
    location, _, query = spec.removeprefix("hf:").partition("?")
    options = _options(query, spec)
    folder = Path(location).expanduser()
    described = _read_config(folder, location)
    _check_files(folder)
    with _offline_and_quiet():
        transformers = _import_transformers()
        kind = _class_of(transformers, described, options.get("class", ""), folder)
        module = _load(kind, described, folder, strict="class" not in options)
    names = _inputs(module, options.get("inputs", ""), spec)
    example, shapes = _example(module, names, options, spec)
    module = _with_plain_tensors(module, names, _names(options.get("outputs", "")), spec, example)
    return from_module(
        module,
        example,
        name=folder.resolve().name,
        source=spec,
        dynamic_shapes=shapes,
        input_names=names,
        metric=_metric(kind),
        labels=_labels(module, kind),
        copy=False,
    )


def _options(query: str, spec: str) -> dict[str, str]:
    options = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in OPTIONS:
            raise ConfigError(f"{spec}: unknown option {key!r}{nearest(key, OPTIONS)}")
        options[key] = value
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _read_config(folder: Path, location: str) -> dict[str, Any]:
    if not location:
        raise ConfigError(f"hf: no folder; use {FORM}")
    if folder.is_file():
        raise ModelError(f"{folder}: is a file; use {FORM}")
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder (nothing is downloaded); use {FORM}")
    path = folder / "config.json"
    if not path.is_file():
        reason = next((why for name, why in _NOT_WEIGHTS.items() if (folder / name).exists()), "")
        raise ModelError(f"{folder}: {reason or f'has no config.json; use {FORM}'}")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes are no configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise ModelError(f"{path}: cannot be read: {_one_line(failure)}") from None
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise ModelError(f"{path}: has no model_type, so it describes no Transformers model")
    if data.get("quantization_config") is not None:
        raise ModelError(f"{path}: the checkpoint is quantized already; give the float model")
    return data


def _check_files(folder: Path) -> None:
    """Refuse a folder that is no single safetensors checkpoint."""
    if not (folder / WEIGHTS).is_file():
        reason = next((why for name, why in _NOT_WEIGHTS.items() if (folder / name).exists()), "")
        raise ModelError(f"{folder}: {reason or f'has no {WEIGHTS}; use {FORM}'}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: holds an adapter beside the model, which would be applied in silence; move "
            "it away and pass --adapter"
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            pass
    except (SafetensorError, OSError, ValueError) as failure:
        raise ModelError(f"{folder / WEIGHTS}: damaged or not safetensors: {failure}") from None


@contextlib.contextmanager
def _offline_and_quiet() -> Iterator[None]:
    """Forbid every download, and keep progress bars and notes of the import to themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:  # then Transformers is not there either, which is said later
        constants = None  # type: ignore[assignment]
    before = getattr(constants, "HF_HUB_OFFLINE", False)
    try:
        if constants is not None:
            constants.HF_HUB_OFFLINE = True
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        if constants is not None:
            constants.HF_HUB_OFFLINE = before


def _import_transformers() -> Any:
    try:
        import_torchvision()
        import transformers
    except ModuleNotFoundError as failure:
        raise ConfigError(
            f"hf: models need {failure.name}, which is not installed: pip install 'edgeopt[hf]'"
        ) from None
    except RuntimeError as failure:
        raise ModelError(f"Transformers cannot be imported: {_one_line(failure)}") from failure
    return transformers


def _class_of(
    transformers: Any, described: Mapping[str, Any], wanted: str, folder: Path
) -> type[nn.Module]:
    listed = described.get("architectures") or [""]
    name = wanted or str(listed[0] if isinstance(listed, list) else listed)
    if not name:
        raise ModelError(
            f"{folder}/config.json: has no architectures; say which class: hf:{folder}?class=NAME"
        )
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        if not wanted and "auto_map" in described:
            raise ModelError(
                f"{folder}: {name} is code in the folder itself, which is never run; build the "
                "model in FILE.py:FACTORY"
            )
        close = difflib.get_close_matches(name, dir(transformers), n=1)
        raise ModelError(
            f"{folder}: Transformers {transformers.__version__} has no model class "
            f"{name!r}{nearest(name, close)}"
        )
    if described.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder}: {name} is an encoder and a decoder, two programs; give one of them in "
            "FILE.py:FACTORY"
        )
    return found


def _load(
    kind: type[Any], described: Mapping[str, Any], folder: Path, *, strict: bool
) -> nn.Module:
    # An attention named in the configuration may stand for a kernel to download.
    plain = {k: v for k, v in described.items() if not k.lstrip("_").startswith("attn_impl")}
    try:
        if kind.config_class is None or plain["model_type"] != kind.config_class.model_type:
            raise ModelError(
                f"{folder}: is of type {plain['model_type']!r}, {kind.__name__} takes another"
            )
        module, info = _load_with(kind, plain, folder, "sdpa")
    except ModelError:
        raise
    except Exception as failure:  # configurations and checkpoints fail in many unrelated ways
        raise ModelError(
            f"{folder}: {kind.__name__} cannot be loaded: {_one_line(failure)}"
        ) from failure
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise ModelError(
            f"{folder / WEIGHTS}: does not fit {kind.__name__}: {len(missing)} missing, first "
            f"{missing[0]!r}{_nearest_key(missing[0], unknown)}"
        )
    if unknown and strict:
        raise ModelError(
            f"{folder / WEIGHTS}: does not fit {kind.__name__}: {len(unknown)} unknown, first "
            f"{unknown[0]!r}{_nearest_key(unknown[0], list(module.state_dict()))}; ?class= chooses "
            "another class"
        )
    return module


def _nearest_key(key: str, known: Sequence[str]) -> str:
    return nearest(key, difflib.get_close_matches(key, known, n=1))  # not all of them


def _load_with(
    kind: type[Any], described: dict[str, Any], folder: Path, attention: str
) -> tuple[nn.Module, Mapping[str, Any]]:
    config = kind.config_class.from_dict(dict(described))
    config.use_cache = False
    config.return_dict = True
    try:
        module, info = kind.from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ValueError as failure:
        if attention == "eager" or "attention" not in str(failure):
            raise
        return _load_with(kind, described, folder, "eager")
    return module.eval(), info


def _inputs(module: Any, wanted: str, spec: str) -> tuple[str, ...]:
    parameters = inspect.signature(module.forward).parameters
    main = str(getattr(module, "main_input_name", "input_ids"))
    names = _names(wanted) or (("input_ids", "attention_mask") if main == "input_ids" else (main,))
    if not wanted and "attention_mask" not in parameters:
        names = names[:1]
    for name in names:
        if name not in parameters:
            raise ConfigError(f"{spec}: the model takes no {name!r}{nearest(name, parameters)}")
    if main not in ("input_ids", "pixel_values") or main not in names:
        raise ModelError(
            f"{spec}: takes {main}, of which no example can be made; build the model in "
            "FILE.py:FACTORY"
        )
    return names


def _example(
    module: Any, names: tuple[str, ...], options: Mapping[str, str], spec: str
) -> tuple[tuple[Tensor, ...], Any]:
    """Return example inputs, two samples, and their free dimensions."""
    config = module.config.get_text_config()
    if "pixel_values" in names:
        if len(names) > 1:
            raise ConfigError(f"{spec}: inputs={','.join(names)}: pictures alone, or text alone")
        height, width = _picture(config, options.get("image", ""), spec)
        generator = torch.Generator().manual_seed(0)
        shape = (2, config.num_channels, height, width)
        return (torch.randn(shape, generator=generator),), None
    longest = _longest(module, config)
    length = _length(options.get("sequence", ""), longest, spec)
    words = int(module.get_input_embeddings().num_embeddings)
    generator = torch.Generator().manual_seed(0)
    # the first words of a vocabulary are often special: padding, start, end
    ids = torch.randint(min(words // 4, 1000), words, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -(length // 4) :] = 0  # the second text is shorter, so the mask means something
    made = {"input_ids": ids, "attention_mask": mask}
    example = tuple(made.get(name, torch.zeros_like(ids)) for name in names)
    sequence = torch.export.Dim("sequence", min=2, max=longest or None)
    free = {0: torch.export.Dim("batch"), 1: sequence}
    return example, {name: free for name in names}


def _picture(config: Any, text: str, spec: str) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{spec}: image={text!r} is no number of pixels")
        size = int(text)
    if size is None:
        raise ConfigError(f"{spec}: the configuration has no image_size; say ?image=N")
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _longest(module: nn.Module, config: Any) -> int:
    """Return how many tokens the model has positions for; 0 where there is no limit."""
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    for name, child in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            # RoBERTa counts positions from behind its padding's
            return child.num_embeddings - (
                0 if child.padding_idx is None else child.padding_idx + 1
            )
    return longest


def _length(text: str, longest: int, spec: str) -> int:
    if not text:
        return min(SEQUENCE, longest) if longest else SEQUENCE
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"{spec}: sequence={text!r} is no number of tokens above 1")
    if longest and int(text) > longest:
        raise ConfigError(f"{spec}: sequence={text}, the model takes at most {longest} tokens")
    return int(text)


def _with_plain_tensors(
    module: nn.Module,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    spec: str,
    example: tuple[Tensor, ...],
) -> nn.Module:
    """Give the module a forward from tensors to a mapping of tensors; names inside stay."""
    original = type(module)
    with torch.no_grad():
        found = module(**dict(zip(inputs, example, strict=True)))
    fields = [name for name, value in found.items() if value is not None]
    for name in outputs:
        if name not in fields:
            raise ConfigError(f"{spec}: the model gives no {name!r}{nearest(name, fields)}")
    kept = outputs or tuple(fields)

    def forward(self: Any, *args: Tensor) -> dict[str, Any]:
        result = original.forward(self, **dict(zip(inputs, args, strict=True)))
        return {name: result[name] for name in kept}

    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        + [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in inputs]
    )
    named = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    module.__class__ = type(original.__name__, (original,), {"forward": forward, **named})
    return module


def _metric(kind: type[Any]) -> str | None:
    if kind.__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return "perplexity"
    return AUTO if kind.__name__.endswith("Classification") else None


def _labels(module: Any, kind: type[Any]) -> tuple[str, ...]:
    named = getattr(module.config, "id2label", None) or {}
    if not kind.__name__.endswith("Classification") or set(named) != set(range(len(named))):
        return ()
    return tuple(str(named[index]) for index in range(len(named)))


def _one_line(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:200]
