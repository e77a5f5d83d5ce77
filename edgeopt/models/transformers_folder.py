"""A Transformers folder: its files, its config, its class, its weights."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.errors import ConfigError, ModelError, nearest
from edgeopt.models.torchvision_operators import import_torchvision

FORM = "hf:DIR, a folder with config.json and model.safetensors"


WEIGHTS = "model.safetensors"


MAX_CONFIG_BYTES = 16 << 20


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


def read_config(folder: Path, location: str) -> dict[str, Any]:
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


def check_files(folder: Path) -> None:
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
def offline_and_quiet() -> Iterator[None]:
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


def import_transformers() -> Any:
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


def class_of(
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


def load_checked(
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


def _one_line(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:200]
