"""Replace a layer by two thin ones: truncated SVD, weighted by what its inputs look like."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from edgeopt.analysis.layers import Layer, choose_layers, find_layers
from edgeopt.analysis.moments import input_moments
from edgeopt.contracts.tied import tied_partners
from edgeopt.devices.profile import LowRankRule
from edgeopt.errors import ConfigError, PassError, PreconditionError
from edgeopt.numerics.low_rank import RANK_DEFICIENT, decompose
from edgeopt.numerics.observers import SecondMoment
from edgeopt.passes.factorize.outside_reads import outside_reads
from edgeopt.passes.factorize.ranks import (
    Ranks,
    Spectrum,
    cost,
    percent,
    ranks_keeping,
    ranks_near,
    ranks_within,
    whole_cost,
    why_unpayable,
)
from edgeopt.passes.factorize.sites import refusal, replacement, vectors
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
        layers, skipped = self._layers(state, ctx, rule)
        if not layers:
            return PassResult(state, {}, skipped)
        spectra, notes = self._spectra(state.carrier_module, layers, ctx, skipped)
        ranks = self._ranks(spectra, rule)
        changes: dict[str, str] = {}
        for spectrum in spectra:
            fqn = spectrum.layer.fqn
            if fqn not in ranks.given:
                continue
            rank = ranks.given[fqn]
            _replace(state.carrier_module, spectrum, rank)
            changes[fqn] = self._told(spectrum, rank)
        notes += _total([s.layer for s in spectra], ranks.given)
        return PassResult(state, changes, {**skipped, **ranks.skipped}, tuple(notes))

    def _layers(
        self, state: ModelState, ctx: PassContext, rule: LowRankRule
    ) -> tuple[list[Layer], dict[str, str]]:
        """Return the layers to take apart, and why the others are not."""
        module = state.carrier_module
        chosen, skipped = choose_layers(
            find_layers(module), self.config.include, self.config.exclude, who=self.name
        )
        tied = tied_partners(module)
        layers = []
        for layer in chosen:
            reason = refusal(layer, state, tied) or why_unpayable(layer, rule, ctx.profile.name)
            if reason:
                skipped[layer.name] = reason
            else:
                layers.append(layer)
        readers = outside_reads(module, [layer.fqn for layer in layers], ctx) if layers else {}
        skipped |= {fqn: f"{reader} reads its weight itself" for fqn, reader in readers.items()}
        return [layer for layer in layers if layer.fqn not in readers], skipped

    def _spectra(
        self, module: nn.Module, layers: list[Layer], ctx: PassContext, skipped: dict[str, str]
    ) -> tuple[list[Spectrum], list[str]]:
        for layer in layers:
            if not bool(torch.isfinite(layer.matrix()).all()):
                raise PassError(f"factorize_svd: {layer.fqn}: its weight holds NaN or Inf")
        if self.config.method == "plain":
            return [Spectrum(layer, decompose(layer.matrix()), None) for layer in layers], []
        spectra: list[Spectrum] = []
        few: dict[str, int] = {}
        for group in _groups(layers, self.config.memory_mb * 1_000_000):
            moments = _moments(module, group, ctx)
            for layer in group:
                moment = moments.pop(layer.fqn)
                if moment.count == 0:
                    skipped[layer.fqn] = "the calibration data never reach it"
                    continue
                if moment.count < layer.inputs:
                    few[layer.fqn] = moment.count
                mean = moment.mean if layer.bias is not None else None
                gram = moment.gram if mean is None else moment.covariance
                # rounding of constant inputs is no variance
                power = float(moment.gram.trace())
                if float(gram.trace()) <= RANK_DEFICIENT * power:
                    what = "always zero" if power == 0 else "always the same"
                    skipped[layer.fqn] = f"its input is {what} on the calibration data"
                    continue
                spectra.append(Spectrum(layer, decompose(layer.matrix(), gram), mean))
                ctx.progress(f"{self.name}: spectra", len(spectra), len(layers))
        return spectra, _too_few(few, layers)

    def _ranks(self, spectra: Sequence[Spectrum], rule: LowRankRule) -> Ranks:
        if self.config.rank is not None:
            return ranks_near(spectra, rule, self.config.rank)
        if self.config.energy is not None:
            return ranks_keeping(spectra, rule, self.config.energy)
        budget = DEFAULT_BUDGET if self.config.budget is None else self.config.budget
        return ranks_within(spectra, rule, budget, who=self.name)

    def _told(self, spectrum: Spectrum, rank: int) -> str:
        parts, layer = spectrum.parts, spectrum.layer
        kept = float(parts.kept[rank])
        what = "squared weight" if self.config.method == "plain" else "output's energy"
        what = what if spectrum.mean is None else "output's variance"
        return (
            f"rank {rank} of {parts.full_rank} keeps {percent(kept)} of the {what} "
            f"(relative error {math.sqrt(max(1 - kept, 0.0)):.3g}), "
            f"{whole_cost(layer)} -> {cost(layer, rank)} parameters"
        )


def _replace(module: nn.Module, spectrum: Spectrum, rank: int) -> None:
    layer, parts = spectrum.layer, spectrum.parts
    up, down = parts.factors(rank)
    bias = layer.bias
    if bias is not None and spectrum.mean is not None:
        lost = parts.weight @ spectrum.mean - up @ (down @ spectrum.mean)
        bias = bias.detach().double() + lost
    pair = replacement(layer.module, up, down, None if bias is None else bias.detach())
    module.set_submodule(layer.fqn, pair)


def _moments(
    module: nn.Module, layers: Sequence[Layer], ctx: PassContext
) -> dict[str, SecondMoment]:
    assert ctx.calibration is not None
    wanted = {
        layer.fqn: (layer.inputs, functools.partial(vectors, layer.module)) for layer in layers
    }
    return input_moments(
        module,
        wanted,
        ctx.calibration,
        lambda batches: ctx.progress("factorize_svd: inputs", batches, None),
    )


def _groups(layers: Sequence[Layer], limit_bytes: int) -> Iterator[list[Layer]]:
    """Cut the layers into runs whose second moments fit into memory; one always does."""
    group: list[Layer] = []
    held = 0
    for layer in layers:
        size = 8 * layer.inputs**2
        if group and held + size > limit_bytes:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    yield group


def _too_few(few: Mapping[str, int], layers: Sequence[Layer]) -> list[str]:
    if not few:
        return []
    widths = {layer.fqn: layer.inputs for layer in layers}
    worst = min(few, key=lambda fqn: few[fqn] / widths[fqn])
    return [
        f"{WARNING}{len(few)} of {len(layers)} layers saw fewer vectors than they have inputs "
        f"({worst}: {few[worst]} for {widths[worst]}), so the errors told are of data that "
        "the factors fit; calibrate with more samples"
    ]


def _total(layers: Sequence[Layer], ranks: Mapping[str, int]) -> list[str]:
    before = sum(whole_cost(layer) for layer in layers)
    after = sum(
        cost(layer, ranks[layer.fqn]) if layer.fqn in ranks else whole_cost(layer)
        for layer in layers
    )
    if not before:
        return []
    return [
        f"{len(ranks)} of {len(layers)} layers that could be factorized were; together "
        f"{before} -> {after} parameters ({percent(after / before)})"
    ]
