"""PEFT as oracle: adapters that it writes, and what the model gives with them unfused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.ir.trees import leaves


def adapted(base: nn.Module, seed: int = 0, **config: Any) -> Any:
    """Return PEFT's model over a copy of `base`, every number of the adapter random.

    `init_lora_weights=False` leaves A and B random; magnitudes and biases are perturbed here.
    """
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied weights and of layouts
        model = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(init_lora_weights=False, **config)
        )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_magnitude_vector" in name:
                value *= 1 + 0.3 * torch.randn_like(value)
            elif value.requires_grad and "lora_" not in name:
                value += 0.1 * torch.randn_like(value)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """Write the adapter as PEFT does, and return the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def outputs(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return a model's outputs as leaves."""
    with torch.no_grad():
        return leaves(model(**inputs))


def farthest(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value of its output."""
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)
    )
