"""N:M magnitude pruning along the reduction axis."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from edgeopt.analysis.selection import select
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.contracts.tied import tied_contracts
from edgeopt.devices.profile import Sparsity
from edgeopt.errors import ConfigError, PostconditionError
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage


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


@dataclasses.dataclass(frozen=True)
class _Site:
    """A weight that could be pruned: FQN of the module and the weight, and the reduction axis."""

    module: str
    weight: str
    axis: int
    inputs: int
    outputs: int
    refusal: str = ""
    partners: tuple[
        str, ...
    ] = ()  # modules that are pruned with it, since the weight is theirs too


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
        sites = _sites(module)
        names = [site.module for site in sites]
        chosen, idle = select(names, self.config.include)
        left, idle_out = select(names, self.config.exclude)
        if idle == ["*"]:
            return PassResult(state, {}, {"the model": "holds no Linear or Conv"})
        if idle or idle_out:
            raise ConfigError(
                f"prune_nm: pattern {(idle + idle_out)[0]!r} matches no Linear or Conv"
            )
        changes: dict[str, str] = {}
        skipped: dict[str, str] = {}
        contracts = []
        dense = {site.module for site in sites if site.module not in chosen} | left
        for site in sites:
            if site.module not in chosen:
                continue
            reason = site.refusal or ("named in exclude" if site.module in left else "")
            shared = next((name for name in site.partners if name in dense), None)
            if not reason and shared is not None:
                reason = f"its weight is also that of {shared}, which is to stay dense"
            reason = reason or self._unusable(site, ctx.profile.sparsity, ctx.profile.name)
            if reason:
                skipped[site.module] = reason
                continue
            weight = module.get_parameter(site.weight)
            kept = self._prune(weight, site.axis)
            changes[site.module] = (
                f"{self.config.n}:{self.config.m} along axis {site.axis}, "
                f"{100 * kept:.1f} % of the squared weight kept"
            )
            contracts.append(NMSparse(site.weight, self.config.n, self.config.m, site.axis))
        after = dataclasses.replace(state, contracts=(*state.contracts, *contracts))
        return PassResult(after, changes, skipped)

    def ensures(self, before: ModelState, after: ModelState, ctx: PassContext) -> None:
        for contract in after.contracts:
            if isinstance(contract, NMSparse):
                message = contract.check_module(after.carrier_module)
                if message:
                    raise PostconditionError(f"prune_nm: {contract.fqn}: {message}")

    def _prune(self, weight: Tensor, axis: int) -> float:
        """Prune in place; return the share of the squared norm that is left."""
        with torch.no_grad():
            mask = nm_mask(weight, self.config.n, self.config.m, axis)
            total = float((weight.double() ** 2).sum())
            weight.mul_(mask)
            return float((weight.double() ** 2).sum()) / total if total else 1.0

    def _unusable(self, site: _Site, rule: Sparsity | None, profile: str) -> str:
        if site.inputs < self.config.m:
            return f"{site.inputs} input channels, fewer than a group of {self.config.m}"
        if self.config.ignore_profile:
            return ""
        if rule is None:
            return f"profile {profile} has no sparse kernels"
        if (rule.n, rule.m) != (self.config.n, self.config.m):
            return f"the kernels of {profile} run {rule.n}:{rule.m}"
        if site.inputs % rule.in_multiple:
            return f"{site.inputs} input channels, no multiple of {rule.in_multiple}"
        if site.outputs % rule.out_multiple:
            return f"{site.outputs} output channels, no multiple of {rule.out_multiple}"
        if site.inputs < rule.min_in:
            return f"{site.inputs} input channels, below {rule.min_in} sparse kernels do not pay"
        if site.outputs < rule.min_out:
            return f"{site.outputs} output channels, below {rule.min_out} sparse kernels do not pay"
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


def _sites(module: nn.Module) -> list[_Site]:
    found: list[_Site] = []
    for name, child in module.named_modules():
        site = _site(name, child)
        if site is not None:
            found.append(site)
    kinds = {
        f"{name}.{leaf}" if name else leaf: child
        for name, child in module.named_modules()
        for leaf, _ in child.named_parameters(recurse=False)
    }
    by_weight = {site.weight: site for site in found}
    groups: dict[str, list[str]] = {}
    for contract in tied_contracts(module):
        groups.setdefault(contract.a, [contract.a]).append(contract.b)
    for names in groups.values():
        sites = [by_weight[name] for name in names if name in by_weight]
        for site in sites:
            alien = next(
                (
                    name
                    for name in names
                    if name not in by_weight or by_weight[name].axis != site.axis
                ),
                None,
            )
            refusal = site.refusal or next((s.refusal for s in sites if s.refusal), "")
            if alien is not None:
                refusal = f"{site.weight} is tied to {alien} of a {type(kinds[alien]).__name__}"
            # two linears with one weight are pruned as one
            partners = tuple(s.module for s in sites if s is not site)
            by_weight[site.weight] = dataclasses.replace(site, refusal=refusal, partners=partners)
    return list(by_weight.values())


def _site(name: str, child: nn.Module) -> _Site | None:
    refusal = "is parametrized" if nn.utils.parametrize.is_parametrized(child) else ""
    prefix = f"{name}." if name else ""
    if isinstance(child, nn.Linear):
        return _Site(name, f"{prefix}weight", 1, child.in_features, child.out_features, refusal)
    if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        inputs = child.in_channels // child.groups
        return _Site(name, f"{prefix}weight", 1, inputs, child.out_channels, refusal)
    if isinstance(child, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        refusal = "a transposed convolution has no sparse kernel"
        return _Site(name, f"{prefix}weight", 0, child.in_channels, child.out_channels, refusal)
    if isinstance(child, nn.MultiheadAttention):
        if child.in_proj_weight is None:
            return None
        rows, columns = child.in_proj_weight.shape
        return _Site(name, f"{prefix}in_proj_weight", 1, columns, rows, refusal)
    weight = getattr(child, "weight", None)
    if type(child).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2:
        inputs, outputs = weight.shape  # Transformers' Conv1D stores [in, out]
        return _Site(name, f"{prefix}weight", 0, inputs, outputs, refusal)
    return None
