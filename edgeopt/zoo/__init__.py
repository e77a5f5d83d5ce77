"""Small models that edgeopt ships, trained on real data that any machine has offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import ConfigError, nearest
from edgeopt.zoo.catalogue import CATALOGUE, ZooModel

if TYPE_CHECKING:
    from edgeopt.data import Samples
    from edgeopt.models import LoadedModel

MODELS = CATALOGUE
NAMES = tuple(CATALOGUE)

__all__ = ["CATALOGUE", "MODELS", "NAMES", "ZooModel", "held_out_accuracy", "load", "samples"]


def load(name: str) -> LoadedModel:
    """Load a bundled model with its data: calibration is the training split.

    Raises:
        ConfigError: If there is no such model.
        ModelError: If its weights are damaged.
    """
    from torch import nn

    from edgeopt.artifact import Preprocessing
    from edgeopt.models import from_module
    from edgeopt.weights import load_weights, read_weights
    from edgeopt.zoo.mobilenet import MobileNet
    from edgeopt.zoo.vit import VisionTransformer

    entry = _entry(name)
    factories: dict[str, type[nn.Module]] = {"vit": VisionTransformer, "mobilenet": MobileNet}
    module = factories[name]()
    weights = Path(__file__).parent / "weights" / f"{name}.safetensors"
    load_weights(module, read_weights(weights), f"zoo:{name}")
    calibration = samples(name, "train")
    size = entry.image_size
    return from_module(
        module,
        next(calibration.batches(2)).args,
        name=name,
        source=f"zoo:{name}",
        input_names=("image",),
        output_names=("logits",),
        input_roles=("image",),
        # Of a 0..255 picture; the set itself has grey levels 0..16.
        preprocessing=Preprocessing(resize=size, crop=size, mean=(0.5,), std=(0.5,), channels="L"),
        labels=tuple("0123456789"),
        calibration=calibration,
        evaluation=samples(name, "test"),
        metric="top1",
        copy=False,
    )


def samples(name: str, split: str) -> Samples:
    """Return the `train` or `test` pictures at a model's size, with their labels.

    Raises:
        ConfigError: If there is no such model.
        ValueError: For any other split.
    """
    from edgeopt.data.arrays import from_tensors
    from edgeopt.data.signature import Signature
    from edgeopt.state import Batch
    from edgeopt.zoo import digits

    images, labels = digits.load(split, _entry(name).image_size)
    signature = Signature.of(Batch((images[:1],)), ("image",))
    return from_tensors([images], labels, signature, name=f"digits-{split}")


def held_out_accuracy(name: str) -> float:
    """Run a model on its held-out pictures and return its top-1 in points."""
    import torch

    model = load(name)
    assert model.evaluation is not None  # every zoo model has it
    right = 0
    with torch.no_grad():
        for batch in model.evaluation.batches(100):
            right += int((model.module(*batch.args).argmax(1) == batch.labels).sum())
    return 100.0 * right / model.evaluation.count


def _entry(name: str) -> ZooModel:
    if name not in CATALOGUE:
        raise ConfigError(f"zoo:{name}: no such model{nearest(name, CATALOGUE)}")
    return CATALOGUE[name]
