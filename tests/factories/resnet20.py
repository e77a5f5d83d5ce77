"""ResNet-20 for CIFAR-10, as a user would bring it: `resnet20.py:resnet20`.

The weights are those of the asset folder `resnet-cifar10` (its SOURCE.md gives structure and
preprocessing), the data those of `cifar10`: lossless training pictures to calibrate with, JPEG
test pictures to judge on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if inputs != outputs else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """Classify float [B, 3, 32, 32] -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        for number, (inputs, outputs) in enumerate(widths, start=1):
            first = BasicBlock(inputs, outputs, 1 if inputs == outputs else 2)
            rest = [BasicBlock(outputs, outputs, 1) for _ in range(2)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20() -> dict[str, Any]:
    """Return the trained model with its data."""
    folder = assets()
    module = ResNet20()
    module.load_state_dict(load_file(folder / "resnet-cifar10" / "resnet20.safetensors"))
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    return {
        "module": module,
        "example_args": torch.zeros(2, 3, 32, 32),
        "output_names": ("logits",),
        "preprocessing": {"mean": MEAN, "std": STD},
        "labels": classes.split(),
        "calibration": folder / "cifar10" / "cifar10_train4000_lossless.npz",
        "evaluation": folder / "cifar10" / "cifar10_test5k_jpeg.zip",
        "metric": "top1",
    }
