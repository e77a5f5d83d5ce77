"""A source of models."""

from __future__ import annotations

import torch
from torch import nn

from edgeopt.errors import ConfigError
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel


def load(spec: str) -> LoadedModel:
    """Return `sample:mlp`, two linears with an outlier, with data that it is sure about."""
    if spec != "sample:mlp":
        raise ConfigError(f"{spec}: no such model; there is sample:mlp")
    draw = torch.Generator().manual_seed(0)
    first = nn.Linear(16, 32)
    module = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.2, 0.2, generator=draw)
        first.weight[3, 5] = 1.0
        x = torch.randn(64, 16, generator=draw)
        answers = module(x).argmax(1)
    return from_module(
        module,
        x[:2],
        name="mlp",
        source=spec,
        output_names=("output",),
        evaluation=(x, answers),
        metric="top1",
        copy=False,
    )
