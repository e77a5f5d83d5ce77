"""timm models with weights from a file: `timm:NAME?OPTIONS@WEIGHTS`."""

from __future__ import annotations

import ast
import difflib
import urllib.parse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data.load import preprocessing_options
from edgeopt.data.pixels import check_preprocessing
from edgeopt.errors import ConfigError, ModelError, nearest
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.torchvision_operators import import_torchvision
from edgeopt.models.weights import load_weights, read_weights

FORM = "timm:NAME@WEIGHTS.safetensors"
PICTURE_OPTIONS = ("resize", "crop", "mean", "std", "channels")
# These would fetch or load weights in ways of their own.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def load_timm(spec: str) -> LoadedModel:
    """Create a timm model and load its weights from a file.

    `timm:mobilenetv2_100?pad_type=same@mobilenetv2_100.safetensors`: options before the `@` go to
    `timm.create_model` as Python literals (`features_only=False`) or words. `resize`, `crop`,
    `mean`, `std` and `channels` override timm's own description of the preprocessing, as in
    `?mean=0.5,0.5,0.5&std=0.5`. Nothing is downloaded, and no model has random weights.

    Raises:
        ConfigError: If the form or an option is wrong, or timm is not installed.
        ModelError: If timm cannot make the model, or the weights do not fit.
    """
    rest, at, weights = spec.removeprefix("timm:").partition("@")
    name, _, query = rest.partition("?")
    if not name:
        raise ConfigError(f"{spec}: no model's name; use {FORM}")
    if not at or not weights:
        raise ConfigError(f"{spec}: no weights; use {FORM}, since random weights judge nothing")
    options, pictures = _options(query, spec)
    timm = _import_timm()
    try:
        module = timm.create_model(name, pretrained=False, **options)
    except Exception as failure:
        text = " ".join(str(failure).split())[:200]
        known = [] if timm.is_model(name) else timm.list_models()
        hint = nearest(name, difflib.get_close_matches(name, known, n=1))  # not all thousand
        raise ModelError(f"{spec}: timm cannot make {name!r}: {text}{hint}") from failure
    load_weights(module, read_weights(Path(weights).expanduser()), weights)
    config = timm.data.resolve_data_config({}, model=module)
    fields = _preprocessing(config) | preprocessing_options(pictures, spec)
    description = check_preprocessing(Preprocessing(**fields), spec)
    return from_module(
        module.eval(),
        torch.zeros(2, *config["input_size"]),
        name=name,
        source=spec,
        input_names=("image",),
        output_names=("logits",) if _is_classifier(module) else (),
        input_roles=("image",),
        preprocessing=description,
        copy=False,
    )


def _options(query: str, spec: str) -> tuple[dict[str, Any], dict[str, str]]:
    options: dict[str, Any] = {}
    pictures: dict[str, str] = {}
    for key, text in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key in REFUSED:
            raise ConfigError(f"{spec}: {key} is not taken; weights come after the @")
        if key in PICTURE_OPTIONS:
            pictures[key] = text
            continue
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            options[key] = text
    return options, pictures


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    side = int(config["input_size"][-1])
    return {
        "resize": int(side / float(config["crop_pct"])),
        "crop": side,
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "channels": "L" if config["input_size"][0] == 1 else "RGB",
    }


def _is_classifier(module: nn.Module) -> bool:
    return int(getattr(module, "num_classes", 0) or 0) > 0


def _import_timm() -> Any:
    """Import timm, also beside a torchvision that was built for another torch."""
    try:
        import_torchvision()
        import timm
    except ModuleNotFoundError as failure:
        raise ConfigError(
            f"timm models need {failure.name}, which is not installed: pip install 'edgeopt[timm]'"
        ) from None
    except RuntimeError as failure:
        raise ModelError(f"timm cannot be imported: {failure}") from failure
    return timm
