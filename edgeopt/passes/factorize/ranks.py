"""Which ranks pay, what each keeps, and which the layers get."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from edgeopt.analysis.layers import Layer
from edgeopt.devices.profile import LowRankRule
from edgeopt.errors import ConfigError
from edgeopt.numerics.allocation import Choice, allocate
from edgeopt.numerics.low_rank import Decomposition


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A layer, taken apart."""

    layer: Layer
    parts: Decomposition
    mean: Tensor | None  # of its inputs, where the bias makes up for what it loses


@dataclasses.dataclass(frozen=True)
class Ranks:
    """What becomes of the layers.

    Attributes:
        given: FQN -> rank, of the layers that are factorized.
        skipped: FQN -> why it stays whole.
    """

    given: Mapping[str, int]
    skipped: Mapping[str, str]


def whole_cost(layer: Layer) -> int:
    """Return the weights of the matrix; also its multiply-accumulates for each vector."""
    return layer.inputs * layer.outputs


def cost(layer: Layer, rank: int) -> int:
    """Return the weights, and multiply-accumulates for each vector, of two factors."""
    return rank * (layer.inputs + layer.outputs)


def highest_rank(layer: Layer, rule: LowRankRule) -> int:
    """Return the highest rank that pays, a multiple of the rule's; 0 if none does."""
    affordable = math.floor((1 - rule.saving) * whole_cost(layer))
    # strictly fewer parameters, even where the rule asks for no saving
    rank = min(affordable, whole_cost(layer) - 1) // (layer.inputs + layer.outputs)
    return rank // rule.multiple * rule.multiple


def why_unpayable(layer: Layer, rule: LowRankRule, profile: str) -> str:
    shape = f"{layer.inputs} x {layer.outputs}"
    if min(layer.inputs, layer.outputs) < rule.min_width:
        return f"{shape}: below {rule.min_width} two layers do not pay on {profile}"
    if highest_rank(layer, rule) < 1:
        share = cost(layer, rule.multiple) / whole_cost(layer)
        return (
            f"{shape}: rank {rule.multiple}, the lowest, takes {percent(share)} of the "
            f"parameters, and at most {percent(1 - rule.saving)} pay"
        )
    return ""


def ranks_near(spectra: Sequence[Spectrum], rule: LowRankRule, rank: int) -> Ranks:
    """Give each layer this rank, rounded down to the rule's multiple, where that pays."""

    def wanted(parts: Decomposition) -> tuple[int, str]:
        rounded = max(rank // rule.multiple, 1) * rule.multiple
        rounded = min(rounded, parts.full_rank)
        return rounded, f"rank {rounded} takes"

    return _each_alone(spectra, rule, wanted)


def ranks_keeping(spectra: Sequence[Spectrum], rule: LowRankRule, energy: float) -> Ranks:
    """Give each layer the lowest rank that keeps this share, rounded up, where that pays."""

    def wanted(parts: Decomposition) -> tuple[int, str]:
        # a hair below, so that rounding does not cost a rank
        reached = parts.kept >= energy - 1e-12
        rank = max(int(reached.double().argmax()), 1)
        rank = min(math.ceil(rank / rule.multiple) * rule.multiple, parts.full_rank)
        return rank, f"rank {rank}, which keeps {percent(energy)}, takes"

    return _each_alone(spectra, rule, wanted)


def _each_alone(
    spectra: Sequence[Spectrum],
    rule: LowRankRule,
    wanted: Callable[[Decomposition], tuple[int, str]],
) -> Ranks:
    """Ask for a rank, and for how a reason begins that names it."""
    given: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for spectrum in spectra:
        layer = spectrum.layer
        rank, goal = wanted(spectrum.parts)
        most = highest_rank(layer, rule)
        if rank <= most:
            given[layer.fqn] = rank
            continue
        skipped[layer.fqn] = (
            f"{goal} {cost(layer, rank)} parameters, and at most {cost(layer, most)} (rank "
            f"{most}) pay against {whole_cost(layer)}"
        )
    return Ranks(given, skipped)


def ranks_within(
    spectra: Sequence[Spectrum], rule: LowRankRule, budget: float, *, who: str
) -> Ranks:
    """Share ranks out, so that this share of the parameters stays and the least is lost.

    Args:
        spectra: The layers.
        rule: What pays.
        budget: Share of their parameters that they keep together.
        who: What an error begins with: the pass.

    Raises:
        ConfigError: If the lowest ranks take more.
    """
    total = sum(whole_cost(s.layer) for s in spectra)
    choices = [rank_choices(s, rule) for s in spectra]
    least = sum(rows[0].cost for rows in choices)
    if least > budget * total:
        raise ConfigError(
            f"{who}: budget {budget:g}: the lowest ranks (multiples of {rule.multiple}) take "
            f"{least} of {total} parameters, {percent(least / total)}; raise the budget, or leave "
            "layers out with exclude"
        )
    given: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for spectrum, choice in zip(spectra, allocate(choices, int(budget * total)), strict=True):
        layer = spectrum.layer
        if choice.rank is not None:
            given[layer.fqn] = choice.rank
            continue
        most = highest_rank(layer, rule)
        skipped[layer.fqn] = (
            f"left whole by the budget: rank {most}, the highest that pays, would keep "
            f"{percent(float(spectrum.parts.kept[most]))}"
        )
    return Ranks(given, skipped)


def rank_choices(spectrum: Spectrum, rule: LowRankRule) -> list[Choice]:
    """Return each rank that pays, and the layer left whole, with what is lost.

    Shares, since the layers' outputs have no common scale: by energies, stories260K at 90 % of the
    parameters has perplexity 31, and 12 by shares. Squared, since a layer that loses most of its
    output hurts out of proportion: at 70 % the perplexity is 90, and 106 without.
    """
    layer = spectrum.layer
    lost = (1.0 - spectrum.parts.kept).clamp(min=0) ** 2
    most = highest_rank(layer, rule)
    ranks = range(rule.multiple, most + 1, rule.multiple)
    rows = [Choice(cost(layer, r), float(lost[r]), r) for r in ranks]
    return [*rows, Choice(whole_cost(layer), 0.0, None)]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
