"""A small convolutional network and pictures that it is sure about: whole builds in seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SmallCNN(nn.Module):
    """A residual, a depthwise convolution, ReLUs, a global pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.expand = nn.Conv2d(16, 16, 1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 4]` of pictures `[B, 3, 16, 16]`."""
        y = self.relu(self.stem(x))
        y = y + self.expand(self.relu(self.depthwise(y)))
        return self.head(self.gap(y).flatten(1))


def load() -> dict[str, Any]:
    """Return what `edgeopt build` takes; the answers are the float model's clearest."""
    torch.manual_seed(0)
    module = SmallCNN().eval()
    shades = 128 + 40 * torch.randn(512, 3, 16, 16) + 60 * torch.randn(512, 3, 1, 1)
    pixels = shades.round().clamp(0, 255)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    pictures = (pixels / 255 - mean) / std
    with torch.no_grad():
        first, second = module(pictures).topk(2).values.unbind(1)
        clear = (first - second).argsort(descending=True)[:96]
        answers = module(pictures[clear]).argmax(1)
    return {
        "module": module,
        "example_args": pictures[:2],
        "output_names": ("logits",),
        "preprocessing": {"mean": MEAN, "std": STD},
        "dynamic_shapes": {"x": {0: torch.export.Dim("batch")}},
        "calibration": pictures[clear[:32]],
        "evaluation": (pictures[clear[32:]], answers[32:]),
        "metric": "top1",
    }
