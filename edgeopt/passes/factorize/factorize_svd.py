"""Replace a layer by two thin ones: truncated SVD, weighted by what its inputs look like."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from edgeopt.analysis.moments import input_moments
from edgeopt.analysis.selection import select
from edgeopt.devices.profile import LowRankRule
from edgeopt.errors import ConfigError, PassError, PreconditionError
from edgeopt.numerics.allocation import allocate
from edgeopt.numerics.low_rank import RANK_DEFICIENT, Decomposition, decompose
from edgeopt.numerics.observers import SecondMoment
from edgeopt.passes.factorize.outside_reads import outside_reads
from edgeopt.passes.factorize.ranks import (
    Spectrum,
    highest_rank,
    percent,
    rank_choices,
    why_unpayable,
)
from edgeopt.passes.factorize.sites import Site, find_sites, matrix, replacement, vectors
from edgeopt.pipeline.compiler_pass import WARNING, Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage

DEFAULT_BUDGET = 0.75


@dataclasses.dataclass(frozen=True)
class FactorizeSVDConfig:
    """Options of `factorize_svd`; at most one of `rank`, `energy` and `budget`.

    Attributes:
        method: `whitened`: least error of the layer's outputs on the calibration data; `plain`:
            least error of the weight, needs no data.
        rank: This rank everywhere, rounded down to the profile's multiple.
        energy: In each layer the lowest rank that keeps this share of the squared singular values,
            0 to 1, rounded up.
        budget: Share of the parameters that the factorized layers keep together; ranks are shared
            out over all of them. Without any of the three it is 0.75.
        include: Globs of modules to factorize; every Linear and 1x1 Conv2d by default.
        exclude: Globs of modules to leave whole.
        ignore_profile: Any rank that saves parameters, whatever pays on the device.
        memory_mb: Memory for the second moments, `8 in^2` bytes a layer; the calibration data are
            read once for each such share. The factors take `8 out (in + min(in, out))` more, for
            all layers at once.
    """

    method: str = "whitened"
    rank: int | None = None
    energy: float | None = None
    budget: float | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    ignore_profile: bool = False
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        if self.method not in ("whitened", "plain"):
            raise ConfigError(f"method is whitened or plain, not {self.method!r}")
        given = [n for n in ("rank", "energy", "budget") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConfigError(f"give one of rank, energy and budget, not {' and '.join(given)}")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is at least 1, not {self.rank}")
        for name in ("energy", "budget"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ConfigError(f"{name} lies between 0 and 1, not {share}")
        if self.memory_mb < 1:
            raise ConfigError(f"memory_mb is at least 1, not {self.memory_mb}")


class FactorizeSVD(Pass[FactorizeSVDConfig]):
    """Replace `y = W x + b` by `y = B (A x) + b`, with `A` [r, in] and `B` [out, r].

    Acts on Linear, on 1x1 Conv2d with one group and on Transformers' `Conv1D`. `fc` becomes
    `fc.down` (no bias) and `fc.up` (with `fc`'s bias).

    `whitened` is SVD-LLM's truncation (ICLR 2025): with `G = mean x x^T = S S^T` over the
    calibration data and the SVD of `W S`, dropping the singular values from r on costs exactly
    `sqrt(sum sigma_i^2)` of `||(W - B A) X||_F`, and no other rank-r map costs less. Where there is
    a bias, `G` is taken about the mean `m`, and `(W - B A) m` goes into the bias (LORD's centred
    form). Padding tokens count as inputs.

    `budget` shares ranks out over the layers by their spectra: what is least is the sum over
    layers of the square of the share of output energy that each loses; a layer may also stay
    whole. Ranks are multiples of what the profile's kernels want.

    Skipped, with the reason: layers where no rank pays on the device; subclasses that do more than
    multiply; weights that are tied, under an N:M contract, or read past the layer's `forward`
    (fused attention); layers that the calibration data never reach.
    """

    name = "factorize_svd"
    config_type = FactorizeSVDConfig
    stage = Stage.MODULE
    effect = Effect.APPROXIMATE
    needs_calibration = True

    def __init__(self, config: FactorizeSVDConfig | None = None) -> None:
        super().__init__(config)
        self.needs_calibration = self.config.method == "whitened"

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        if self.needs_calibration and ctx.calibration is None:
            raise PreconditionError(
                "factorize_svd: method whitened needs calibration data; pass --calib, or set "
                "factorize_svd.method=plain"
            )

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        rule = LowRankRule(multiple=1) if self.config.ignore_profile else ctx.profile.low_rank
        sites, skipped = self._sites(state, ctx, rule)
        if not sites:
            return PassResult(state, {}, skipped)
        spectra, notes = self._spectra(state.carrier_module, sites, ctx, skipped)
        ranks = self._ranks(spectra, rule, skipped)
        changes: dict[str, str] = {}
        for spectrum in spectra:
            site = spectrum.site
            if site.fqn not in ranks:
                continue
            rank = ranks[site.fqn]
            _replace(state.carrier_module, spectrum, rank)
            changes[site.fqn] = self._told(spectrum, rank)
        notes += _total([s.site for s in spectra], ranks)
        return PassResult(state, changes, skipped, tuple(notes))

    def _sites(
        self, state: ModelState, ctx: PassContext, rule: LowRankRule
    ) -> tuple[list[Site], dict[str, str]]:
        """Return the layers to take apart, and why the others are not."""
        found = find_sites(state)
        names = [site.fqn for site in found]
        chosen, idle = select(names, self.config.include)
        left, idle_out = select(names, self.config.exclude)
        if idle == ["*"]:
            return [], {"the model": "holds no Linear or 1x1 Conv2d"}
        if idle or idle_out:
            raise ConfigError(
                f"factorize_svd: pattern {(idle + idle_out)[0]!r} matches no Linear or convolution"
            )
        sites, skipped = [], {}
        for site in found:
            if site.fqn not in chosen:
                continue
            reason = "named in exclude" if site.fqn in left else site.refusal
            reason = reason or why_unpayable(site, rule, ctx.profile.name)
            if reason:
                skipped[site.fqn] = reason
            else:
                sites.append(site)
        readers = outside_reads(state.carrier_module, [s.fqn for s in sites], ctx) if sites else {}
        skipped |= {fqn: f"{reader} reads its weight itself" for fqn, reader in readers.items()}
        return [site for site in sites if site.fqn not in readers], skipped

    def _spectra(
        self, module: nn.Module, sites: list[Site], ctx: PassContext, skipped: dict[str, str]
    ) -> tuple[list[Spectrum], list[str]]:
        for site in sites:
            if not bool(torch.isfinite(matrix(module.get_submodule(site.fqn))).all()):
                raise PassError(f"factorize_svd: {site.fqn}: its weight holds NaN or Inf")
        if self.config.method == "plain":
            return [
                Spectrum(site, decompose(matrix(module.get_submodule(site.fqn))), None)
                for site in sites
            ], []
        spectra: list[Spectrum] = []
        few: dict[str, int] = {}
        for group in _groups(sites, self.config.memory_mb * 1_000_000):
            moments = _moments(module, group, ctx)
            for site in group:
                moment = moments.pop(site.fqn)
                if moment.count == 0:
                    skipped[site.fqn] = "the calibration data never reach it"
                    continue
                if moment.count < site.inputs:
                    few[site.fqn] = moment.count
                layer = module.get_submodule(site.fqn)
                mean = moment.mean if getattr(layer, "bias", None) is not None else None
                gram = moment.gram if mean is None else moment.covariance
                # rounding of constant inputs is no variance
                power = float(moment.gram.trace())
                if float(gram.trace()) <= RANK_DEFICIENT * power:
                    what = "always zero" if power == 0 else "always the same"
                    skipped[site.fqn] = f"its input is {what} on the calibration data"
                    continue
                spectra.append(Spectrum(site, decompose(matrix(layer), gram), mean))
                ctx.progress(f"{self.name}: spectra", len(spectra), len(sites))
        return spectra, _too_few(few, sites)

    def _ranks(
        self, spectra: Sequence[Spectrum], rule: LowRankRule, skipped: dict[str, str]
    ) -> dict[str, int]:
        """Return the rank of each layer that is factorized; say why of the others."""
        if self.config.rank is None and self.config.energy is None:
            return self._shared_out(spectra, rule, skipped)
        ranks = {}
        for spectrum in spectra:
            site, parts = spectrum.site, spectrum.parts
            rank, goal = self._wanted(parts, rule.multiple)
            most = highest_rank(site, rule)
            if rank > most:
                skipped[site.fqn] = (
                    f"{goal} {site.cost(rank)} parameters, and at most {site.cost(most)} (rank "
                    f"{most}) pay against {site.parameters}"
                )
                continue
            ranks[site.fqn] = rank
        return ranks

    def _wanted(self, parts: Decomposition, multiple: int) -> tuple[int, str]:
        """Return the rank that the options ask for, and how a reason begins that names it."""
        if self.config.rank is not None:
            rank = max(self.config.rank // multiple, 1) * multiple
            rank = min(rank, parts.full_rank)
            return rank, f"rank {rank} takes"
        energy = self.config.energy
        assert energy is not None
        # a hair below, so that rounding does not cost a rank
        reached = parts.kept >= energy - 1e-12
        rank = max(int(reached.double().argmax()), 1)
        rank = min(math.ceil(rank / multiple) * multiple, parts.full_rank)
        return rank, f"rank {rank}, which keeps {percent(energy)}, takes"

    def _shared_out(
        self, spectra: Sequence[Spectrum], rule: LowRankRule, skipped: dict[str, str]
    ) -> dict[str, int]:
        budget = DEFAULT_BUDGET if self.config.budget is None else self.config.budget
        total = sum(s.site.parameters for s in spectra)
        choices = [rank_choices(s, rule) for s in spectra]
        least = sum(rows[0].cost for rows in choices)
        if least > budget * total:
            raise ConfigError(
                f"factorize_svd: budget {budget:g}: the lowest ranks (multiples of "
                f"{rule.multiple}) take {least} of {total} parameters, {percent(least / total)}; "
                "raise the budget, or leave layers out with exclude"
            )
        ranks = {}
        for spectrum, choice in zip(spectra, allocate(choices, int(budget * total)), strict=True):
            site = spectrum.site
            if choice.rank is not None:
                ranks[site.fqn] = choice.rank
                continue
            most = highest_rank(site, rule)
            skipped[site.fqn] = (
                f"left whole by the budget: rank {most}, the highest that pays, would keep "
                f"{percent(float(spectrum.parts.kept[most]))}"
            )
        return ranks

    def _told(self, spectrum: Spectrum, rank: int) -> str:
        parts, site = spectrum.parts, spectrum.site
        kept = float(parts.kept[rank])
        what = "squared weight" if self.config.method == "plain" else "output's energy"
        what = what if spectrum.mean is None else "output's variance"
        return (
            f"rank {rank} of {parts.full_rank} keeps {percent(kept)} of the {what} "
            f"(relative error {math.sqrt(max(1 - kept, 0.0)):.3g}), "
            f"{site.parameters} -> {site.cost(rank)} parameters"
        )


def _replace(module: nn.Module, spectrum: Spectrum, rank: int) -> None:
    fqn, parts = spectrum.site.fqn, spectrum.parts
    layer = module.get_submodule(fqn)
    up, down = parts.factors(rank)
    bias = getattr(layer, "bias", None)
    if bias is not None and spectrum.mean is not None:
        lost = parts.weight @ spectrum.mean - up @ (down @ spectrum.mean)
        bias = bias.detach().double() + lost
    module.set_submodule(fqn, replacement(layer, up, down, None if bias is None else bias.detach()))


def _moments(module: nn.Module, sites: Sequence[Site], ctx: PassContext) -> dict[str, SecondMoment]:
    assert ctx.calibration is not None
    layers = {site.fqn: module.get_submodule(site.fqn) for site in sites}
    return input_moments(
        module,
        {s.fqn: (s.inputs, functools.partial(vectors, layers[s.fqn])) for s in sites},
        ctx.calibration,
        lambda batches: ctx.progress("factorize_svd: inputs", batches, None),
    )


def _groups(sites: Sequence[Site], limit_bytes: int) -> Iterator[list[Site]]:
    """Cut the layers into runs whose second moments fit into memory; one always does."""
    group: list[Site] = []
    held = 0
    for site in sites:
        size = 8 * site.inputs**2
        if group and held + size > limit_bytes:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    yield group


def _too_few(few: Mapping[str, int], sites: Sequence[Site]) -> list[str]:
    if not few:
        return []
    widths = {site.fqn: site.inputs for site in sites}
    worst = min(few, key=lambda fqn: few[fqn] / widths[fqn])
    return [
        f"{WARNING}{len(few)} of {len(sites)} layers saw fewer vectors than they have inputs "
        f"({worst}: {few[worst]} for {widths[worst]}), so the errors told are of data that "
        "the factors fit; calibrate with more samples"
    ]


def _total(sites: Sequence[Site], ranks: Mapping[str, int]) -> list[str]:
    before = sum(site.parameters for site in sites)
    after = sum(
        site.cost(ranks[site.fqn]) if site.fqn in ranks else site.parameters for site in sites
    )
    if not before:
        return []
    return [
        f"{len(ranks)} of {len(sites)} layers that could be factorized were; together "
        f"{before} -> {after} parameters ({percent(after / before)})"
    ]
