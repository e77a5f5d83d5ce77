"""A MobileNet-style CNN for handwritten digits."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def _conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        norm=nn.BatchNorm2d(outputs),
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2, Sandler et al. 2018, figure 4d)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Sequential(_conv_norm(inputs, hidden, 1) | {"act": nn.ReLU6()})
        self.depthwise = nn.Sequential(
            _conv_norm(hidden, hidden, 3, stride=stride, groups=hidden) | {"act": nn.ReLU6()}
        )
        self.project = nn.Sequential(_conv_norm(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Classify a one-channel image: float [B, 1, 32, 32] -> logits [B, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(1, 32, 3, stride=2) | {"act": nn.ReLU6()})
        widths = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1))
        self.blocks = nn.Sequential(
            *(InvertedResidual(inputs, outputs, stride, 4) for inputs, outputs, stride in widths)
        )
        self.last = nn.Sequential(_conv_norm(96, 256, 1) | {"act": nn.ReLU6()})
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(256, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(image)))
        return self.head(self.pool(x).flatten(1))
