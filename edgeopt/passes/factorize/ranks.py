"""Which ranks pay, and what each keeps."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from edgeopt.devices.profile import LowRankRule
from edgeopt.numerics.allocation import Choice
from edgeopt.numerics.low_rank import Decomposition
from edgeopt.passes.factorize.sites import Site


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A layer, taken apart."""

    site: Site
    parts: Decomposition
    mean: Tensor | None  # of its inputs, where the bias makes up for what it loses


def highest_rank(site: Site, rule: LowRankRule) -> int:
    """Return the highest rank that pays, a multiple of the rule's; 0 if none does."""
    affordable = math.floor((1 - rule.saving) * site.parameters)
    # strictly fewer parameters, even where the rule asks for no saving
    rank = min(affordable, site.parameters - 1) // (site.inputs + site.outputs)
    return rank // rule.multiple * rule.multiple


def why_unpayable(site: Site, rule: LowRankRule, profile: str) -> str:
    narrow = min(site.inputs, site.outputs)
    if narrow < rule.min_width:
        return (
            f"{site.inputs} x {site.outputs}: below {rule.min_width} two layers do not pay on "
            f"{profile}"
        )
    if highest_rank(site, rule) < 1:
        share = site.cost(rule.multiple) / site.parameters
        return (
            f"{site.inputs} x {site.outputs}: rank {rule.multiple}, the lowest, takes "
            f"{percent(share)} of the parameters, and at most {percent(1 - rule.saving)} pay"
        )
    return ""


def rank_choices(spectrum: Spectrum, rule: LowRankRule) -> list[Choice]:
    """Return each rank that pays, and the layer left whole, with what is lost.

    Shares, since the layers' outputs have no common scale: by energies, stories260K at 90 % of the
    parameters has perplexity 31, and 12 by shares. Squared, since a layer that loses most of its
    output hurts out of proportion: at 70 % the perplexity is 90, and 106 without.
    """
    site = spectrum.site
    lost = (1.0 - spectrum.parts.kept).clamp(min=0) ** 2
    most = highest_rank(site, rule)
    ranks = range(rule.multiple, most + 1, rule.multiple)
    rows = [Choice(site.cost(r), float(lost[r]), r) for r in ranks]
    return [*rows, Choice(site.parameters, 0.0, None)]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
