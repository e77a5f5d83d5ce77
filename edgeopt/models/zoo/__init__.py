"""Small models that edgeopt ships, trained on real data that any machine has offline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import ConfigError, nearest
from edgeopt.models.zoo.catalogue import CATALOGUE, ZooModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeopt.data import Samples
    from edgeopt.models.loaded import LoadedModel

MODELS = CATALOGUE
NAMES = tuple(CATALOGUE)

__all__ = ["CATALOGUE", "MODELS", "NAMES", "ZooModel", "held_out_metric", "load", "samples"]


WINDOWS = {"calibration": 64, "evaluation": 128}
"""Windows of text that a build reads, spread over the split."""


def load(name: str) -> LoadedModel:
    """Load a bundled model with its data.

    Calibration and evaluation are the training and test pictures, or the calibration and
    evaluation windows of the text.

    Raises:
        ConfigError: If there is no such model.
        ModelError: If its weights are damaged.
    """
    entry = _entry(name)
    return _language_model(entry) if entry.metric == "perplexity" else _classifier(entry)


def load_spec(spec: str) -> LoadedModel:
    """Load `zoo:NAME`; raises as `load` does."""
    return load(spec.removeprefix("zoo:"))


def _classifier(entry: ZooModel) -> LoadedModel:
    from edgeopt.artifacts.interface import Preprocessing
    from edgeopt.models.from_module import from_module
    from edgeopt.models.zoo.mobilenet import MobileNet
    from edgeopt.models.zoo.vit import VisionTransformer

    factories: dict[str, type[nn.Module]] = {"vit": VisionTransformer, "mobilenet": MobileNet}
    calibration = samples(entry.name, "train")
    size = entry.shape[-1]
    return from_module(
        _trained(factories[entry.name](), entry.name),
        next(calibration.batches(2)).args,
        name=entry.name,
        source=f"zoo:{entry.name}",
        input_names=("image",),
        output_names=("logits",),
        input_roles=("image",),
        # Of a 0..255 picture; the set itself has grey levels 0..16.
        preprocessing=Preprocessing(resize=size, crop=size, mean=(0.5,), std=(0.5,), channels="L"),
        labels=tuple("0123456789"),
        calibration=calibration,
        evaluation=samples(entry.name, "test"),
        metric=entry.metric,
        copy=False,
    )


def _language_model(entry: ZooModel) -> LoadedModel:
    from edgeopt.models.from_module import from_module
    from edgeopt.models.zoo.byte_lm import ByteLM

    calibration = samples(entry.name, "calibration")
    return from_module(
        _trained(ByteLM(), entry.name),
        next(calibration.batches(2)).args,
        name=entry.name,
        source=f"zoo:{entry.name}",
        input_names=("tokens",),
        output_names=("logits",),
        input_roles=("tokens",),
        calibration=calibration,
        evaluation=samples(entry.name, "evaluation"),
        metric=entry.metric,
        copy=False,
    )


def _trained(module: nn.Module, name: str) -> nn.Module:
    from edgeopt.models.weights import load_weights, read_weights

    weights = Path(__file__).parent / "weights" / f"{name}.safetensors"
    load_weights(module, read_weights(weights), f"zoo:{name}")
    return module


def samples(name: str, split: str) -> Samples:
    """Return a split at a model's size, with labels.

    Args:
        name: The model.
        split: Of pictures `train` or `test`. Of text `train` (all windows), `calibration` or
            `evaluation` (as many windows as a build reads, spread over the split).

    Raises:
        ConfigError: If there is no such model.
        ValueError: For any other split.
    """
    from edgeopt.models.zoo import digits

    entry = _entry(name)
    if entry.metric == "perplexity":
        return _windows(split, entry.shape[0])
    images, labels = digits.load(split, entry.shape[-1])
    return _samples("image", images, labels, f"digits-{split}")


def _windows(split: str, length: int) -> Samples:
    from edgeopt.models.zoo import text

    tokens, labels = text.windows(split, length)
    if split in WINDOWS:
        chosen = text.spread(len(tokens), WINDOWS[split])
        tokens, labels = tokens[chosen], labels[chosen]
    return _samples("tokens", tokens, labels, f"python-reference-{split}")


def _samples(role: str, inputs: Tensor, labels: Tensor, name: str) -> Samples:
    from edgeopt.data.arrays import from_tensors
    from edgeopt.data.signature import Signature
    from edgeopt.ir.calls import Batch

    signature = Signature.of(Batch((inputs[:1],)), (role,))
    return from_tensors([inputs], labels, signature, name=name)


def held_out_metric(name: str) -> float:
    """Run a model on its held-out samples; return its top-1 in points, or its perplexity."""
    import torch
    from torch.nn import functional as F

    model = load(name)
    assert model.evaluation is not None  # every zoo model has it
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in model.evaluation.batches(64):
            logits, labels = model.module(*batch.args), batch.labels
            assert labels is not None
            count += labels.numel()
            if model.metric == "perplexity":
                total += float(
                    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                )
            else:
                total += 100.0 * int((logits.argmax(1) == labels).sum())
    return math.exp(total / count) if model.metric == "perplexity" else total / count


def _entry(name: str) -> ZooModel:
    if name not in CATALOGUE:
        raise ConfigError(f"zoo:{name}: no such model{nearest(name, CATALOGUE)}")
    return CATALOGUE[name]
