"""Clip outliers of weights, so that their codes become finer."""

from __future__ import annotations

import dataclasses

import torch

from edgeopt.analysis.layers import choose_layers, find_layers
from edgeopt.errors import ConfigError
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage
from edgeopt_sample.clipped import Clipped


@dataclasses.dataclass(frozen=True)
class ClipWeightsConfig:
    """Options of `clip_weights`.

    Attributes:
        deviations: Weights further from 0 than this many standard deviations are cut off.
        include: Globs of the layers to clip; every Linear and convolution by default.
    """

    deviations: float = 4.0
    include: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.deviations <= 0:
            raise ConfigError(f"deviations is above 0, not {self.deviations}")


class ClipWeights(Pass[ClipWeightsConfig]):
    """Clamp the weights of layers to `deviations` standard deviations.

    Skipped, with the reason: weights that another layer shares, and weights with no outlier.
    """

    name = "clip_weights"
    config_type = ClipWeightsConfig
    stage = Stage.MODULE
    effect = Effect.APPROXIMATE

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        layers = find_layers(state.carrier_module)
        chosen, skipped = choose_layers(layers, self.config.include, who=self.name)
        changes: dict[str, str] = {}
        contracts = []
        for layer in chosen:
            weight = layer.weight
            limit = self.config.deviations * float(weight.detach().double().std())
            outliers = int((weight.detach().abs() > limit).sum())
            if layer.tied:
                skipped[layer.name] = f"its weight is also {layer.tied[0]}"
                continue
            if not outliers:
                skipped[layer.name] = "has no outlier"
                continue
            with torch.no_grad():
                weight.clamp_(-limit, limit)
            changes[layer.name] = f"{outliers} weights clipped to {limit:.3g}"
            contracts.append(Clipped(layer.weight_fqn, limit))
        after = dataclasses.replace(state, contracts=(*state.contracts, *contracts))
        return PassResult(after, changes, skipped)
