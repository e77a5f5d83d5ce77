"""A small text classifier with two methods over one set of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """`forward` gives logits, `embed` the features before them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 4]` of features `[B, 12]`."""
        return self.head(self.body(x))

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """Return features `[B, 16]` and their norm `[B]`."""
        features = self.body(x)
        return {"features": features, "norm": features.square().sum(-1)}


def load() -> dict[str, Any]:
    """Return what `edgeopt build` takes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 12, generator=generator)
    return {
        "module": Classifier().eval(),
        "example_args": (x[:2],),
        "methods": {"embed": (x[:3],)},
        "evaluation": (x, torch.randint(4, (64,), generator=generator)),
    }
