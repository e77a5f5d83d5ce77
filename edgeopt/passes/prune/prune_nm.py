"""N:M magnitude pruning along the reduction axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeopt.analysis.layers import MULTIPLYING, Kind, Layer, choose_layers, find_layers
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.devices.profile import Sparsity
from edgeopt.errors import ConfigError, PostconditionError
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage

_PRUNED = MULTIPLYING - {Kind.SPLIT_ATTENTION}


@dataclasses.dataclass(frozen=True)
class PruneNMConfig:
    """Options of `prune_nm`.

    Attributes:
        n: Non-zeros kept in each group.
        m: Neighbours that form a group.
        include: Globs of modules to prune; all Linear and Conv by default.
        exclude: Globs of modules to leave dense.
        ignore_profile: Prune even what the device's kernels cannot use.
    """

    n: int = 2
    m: int = 4
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    ignore_profile: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ConfigError(f"needs 0 < n < m, not {self.n}:{self.m}")


class PruneNM(Pass[PruneNMConfig]):
    """Keep the `n` largest of each `m` neighbours along the reduction axis, set the others to 0.

    Linear: along `in_features`; Conv: along the input channels of each kernel position, which is
    how sparse kernels read an implicit GEMM; transposed `Conv1D` [in, out]: along axis 0; the
    packed projection of `nn.MultiheadAttention`: along its columns. Ties keep the lower index
    (Pool and Yu, NeurIPS 2021, leave the order open). Skipped, with the reason: what the profile's
    sparse kernels cannot use, weights tied to another kind of layer, parametrized modules.
    """

    name = "prune_nm"
    config_type = PruneNMConfig
    stage = Stage.MODULE
    effect = Effect.APPROXIMATE

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        module = state.carrier_module
        layers = find_layers(module, _PRUNED)
        chosen, skipped = choose_layers(
            layers, self.config.include, self.config.exclude, who=self.name
        )
        changes: dict[str, str] = {}
        contracts = []
        for layer in chosen:
            reason = _refusal(layer) or _held_by_others(layer, layers, chosen, module)
            reason = reason or self._unusable(layer, ctx.profile.sparsity, ctx.profile.name)
            if reason:
                skipped[layer.name] = reason
                continue
            kept = self._prune(layer)
            changes[layer.name] = (
                f"{self.config.n}:{self.config.m} along axis {layer.in_axis}, "
                f"{100 * kept:.1f} % of the squared weight kept"
            )
            contracts.append(
                NMSparse(layer.weight_fqn, self.config.n, self.config.m, layer.in_axis)
            )
        after = dataclasses.replace(state, contracts=(*state.contracts, *contracts))
        return PassResult(after, changes, skipped)

    def ensures(self, before: ModelState, after: ModelState, ctx: PassContext) -> None:
        for contract in after.contracts:
            if isinstance(contract, NMSparse):
                message = contract.check_module(after.carrier_module)
                if message:
                    raise PostconditionError(f"prune_nm: {contract.fqn}: {message}")

    def _prune(self, layer: Layer) -> float:
        """Prune in place; return the share of the squared norm that is left."""
        weight = layer.weight
        with torch.no_grad():
            mask = nm_mask(weight, self.config.n, self.config.m, layer.in_axis)
            total = float((weight.double() ** 2).sum())
            weight.mul_(mask)
            return float((weight.double() ** 2).sum()) / total if total else 1.0

    def _unusable(self, layer: Layer, rule: Sparsity | None, profile: str) -> str:
        if layer.inputs < self.config.m:
            return f"{layer.inputs} input channels, fewer than a group of {self.config.m}"
        if self.config.ignore_profile:
            return ""
        if rule is None:
            return f"profile {profile} has no sparse kernels"
        if (rule.n, rule.m) != (self.config.n, self.config.m):
            return f"the kernels of {profile} run {rule.n}:{rule.m}"
        if layer.inputs % rule.in_multiple:
            return f"{layer.inputs} input channels, no multiple of {rule.in_multiple}"
        if layer.outputs % rule.out_multiple:
            return f"{layer.outputs} output channels, no multiple of {rule.out_multiple}"
        if layer.inputs < rule.min_in:
            return f"{layer.inputs} input channels, below {rule.min_in} sparse kernels do not pay"
        if layer.outputs < rule.min_out:
            return (
                f"{layer.outputs} output channels, below {rule.min_out} sparse kernels do not pay"
            )
        return ""


def nm_mask(weight: Tensor, n: int, m: int, axis: int) -> Tensor:
    """Return the magnitude mask, bool, of the weight's shape.

    A last group shorter than `m` is filled up with zeros that never win, so at most `n` of its
    weights stay.
    """
    moved = weight.detach().abs().movedim(axis, -1)
    length = moved.shape[-1]
    padded = torch.nn.functional.pad(moved, (0, -length % m), value=-1.0)
    groups = padded.reshape(*padded.shape[:-1], -1, m)
    order = torch.argsort(groups, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(-1, order[..., :n], True)
    return mask.reshape(padded.shape)[..., :length].movedim(-1, axis)


def _refusal(layer: Layer) -> str:
    if nn.utils.parametrize.is_parametrized(layer.module):
        return "is parametrized"
    if layer.leaf not in layer.module._parameters:
        return "its weight is no parameter"
    if layer.kind is Kind.TRANSPOSED_CONVOLUTION:
        return "a transposed convolution has no sparse kernel"
    return ""


def _held_by_others(
    layer: Layer, layers: Sequence[Layer], chosen: Sequence[Layer], module: nn.Module
) -> str:
    """Return why a weight must stay dense that other layers share, or empty.

    Two linears with one weight are pruned as one.
    """
    if not layer.tied:
        return ""
    by_weight = {fqn: other for other in layers for fqn in other.weight_fqns}
    partners = []
    for fqn in layer.tied:
        partner = by_weight.get(fqn)
        if partner is None or partner.in_axis != layer.in_axis:
            owner = module.get_submodule(fqn.rpartition(".")[0])
            return f"{layer.weight_fqn} is tied to {fqn} of a {type(owner).__name__}"
        partners.append(partner)
    dense = next((p.name for p in partners if p not in chosen or _refusal(p)), None)
    return f"its weight is also that of {dense}, which is to stay dense" if dense else ""
