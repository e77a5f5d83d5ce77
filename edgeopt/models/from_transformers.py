"""Models from a local Transformers folder: `hf:DIR`."""

from __future__ import annotations

import inspect
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ConfigError, ModelError, nearest
from edgeopt.models.from_module import AUTO, from_module
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.transformers_folder import (
    check_files,
    class_of,
    import_transformers,
    load_checked,
    offline_and_quiet,
    read_config,
)

OPTIONS = ("class", "inputs", "outputs", "sequence", "image")


SEQUENCE = 16
"""Tokens of the example where nobody says how many."""


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
    described = read_config(folder, location)
    check_files(folder)
    with offline_and_quiet():
        transformers = import_transformers()
        kind = class_of(transformers, described, options.get("class", ""), folder)
        module = load_checked(kind, described, folder, strict="class" not in options)
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
