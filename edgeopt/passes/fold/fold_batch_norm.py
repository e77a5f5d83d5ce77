"""Fold inference-time batch norm into the convolution or linear before it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.analysis.chains import chains, trace
from edgeopt.analysis.layers import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from edgeopt.analysis.selection import select
from edgeopt.contracts.tied import tied_partners
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage


@dataclasses.dataclass(frozen=True)
class FoldBatchNormConfig:
    """Options of `fold_batch_norm`.

    Attributes:
        skip: Globs of batch norms to leave alone.
    """

    skip: tuple[str, ...] = ()


class FoldBatchNorm(Pass[FoldBatchNormConfig]):
    """Replace `bn(conv(x))` by one convolution with scaled weights.

    A pair folds when the batch norm is the only reader of the convolution (or linear), both
    modules are called once, and the weight is not tied. A subclass of batch norm that does more
    than normalize (an activation inside) folds if what it does afterwards is to call its children
    in order; that is tried on random numbers before anything is edited.

    Before: `x -> conv -> bn -> act`. After: `x -> conv' -> act`, with
    `w' = w * gamma / sqrt(var + eps)` and `b' = (b - mean) * gamma / sqrt(var + eps) + beta`.
    """

    name = "fold_batch_norm"
    config_type = FoldBatchNormConfig
    stage = Stage.MODULE
    effect = Effect.EQUIVALENT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        module = state.carrier_module
        norms = [name for name, child in module.named_modules() if isinstance(child, _BatchNorm)]
        left = select(norms, self.config.skip, who=self.name, what="batch norm")
        skipped = {name: "named in skip" for name in left}
        traced = trace(module, ctx) if len(norms) > len(left) else None
        if traced is None:
            return PassResult(state, {}, skipped)
        if traced.exported is None:
            reason = f"the model cannot be captured to see what feeds it: {traced.failure}"
            return PassResult(state, {}, skipped | {name: reason for name in norms})
        tied = tied_partners(module)
        changes: dict[str, str] = {}
        for chain in chains(traced.exported, "batch_norm"):
            if chain.consumer not in norms or chain.consumer in left:
                continue
            weight = f"{chain.producer}.weight"
            reason = f"{weight} is tied to {tied[weight][0]}" if weight in tied else chain.reason
            reason = reason or _refusal(module, chain.producer, chain.consumer)
            if reason:
                skipped[chain.consumer] = reason
                continue
            rest = _rest(module.get_submodule(chain.consumer))
            assert rest is not None
            _fold(module.get_submodule(chain.producer), module.get_submodule(chain.consumer))
            module.set_submodule(chain.consumer, rest.eval())
            changes[chain.consumer] = f"folded into {chain.producer}"
        for name in norms:
            if name not in changes and name not in skipped:
                skipped[name] = "is not called, or normalizes by the batch"
        return PassResult(state, changes, skipped)


def _refusal(module: nn.Module, producer: str, consumer: str) -> str:
    source, norm = module.get_submodule(producer), module.get_submodule(consumer)
    assert isinstance(norm, _BatchNorm)
    if not isinstance(source, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear)):
        return f"{producer} is a {type(source).__name__}"
    if nn.utils.parametrize.is_parametrized(source):
        return f"{producer} is parametrized"
    if norm.running_mean is None:
        return "has no running statistics"
    channels = source.out_features if isinstance(source, nn.Linear) else source.out_channels
    if channels != norm.num_features:
        return f"{norm.num_features} channels after {producer} with {channels}"
    if _rest(norm) is None:
        return f"a {type(norm).__name__} does more than its children in order"
    return ""


def _rest(norm: nn.Module) -> nn.Module | None:
    """Return what is left of a batch norm without the normalization, or None if unknown."""
    assert isinstance(norm, _BatchNorm)
    children = [(name, child) for name, child in norm.named_children()]
    if not children and type(norm).forward is _BatchNorm.forward:
        return nn.Identity()
    rest = nn.Sequential()
    for name, child in children:
        if not isinstance(child, nn.Identity):
            rest.add_module(name, child)
    rest.eval()
    dims = {nn.BatchNorm1d: (8,), nn.BatchNorm3d: (2, 2, 2)}
    shape = next((s for kind, s in dims.items() if isinstance(norm, kind)), (4, 4))
    probe = torch.randn(2, norm.num_features, *shape, generator=torch.Generator().manual_seed(0))
    assert norm.running_mean is not None
    probe = probe.to(norm.running_mean.dtype)
    with torch.no_grad():
        plain = F.batch_norm(
            probe, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
        same = torch.equal(norm(probe), rest(plain) if len(rest) else plain)
    if not same:
        return None
    return rest if len(rest) else nn.Identity()


def _fold(source: nn.Module, norm: nn.Module) -> None:
    assert isinstance(norm, _BatchNorm)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    weight, bias = source.weight, source.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    # Folded in float64: the product of two float32 roundings would show up behind many layers.
    factor = torch.rsqrt(var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    with torch.no_grad():
        folded = weight.double() * _along_outputs(source, factor)
        source.weight = nn.Parameter(folded.to(weight.dtype), weight.requires_grad)
        source.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _along_outputs(source: nn.Module, factor: Tensor) -> Tensor:
    """Bring a factor for each output channel to a shape that multiplies the layer's weight."""
    if not isinstance(source, TRANSPOSED_CONVOLUTIONS):
        return factor.reshape(-1, *[1] * (source.weight.dim() - 1))  # type: ignore[operator]
    # [in, out / groups, ...]: the input channels of a group see the outputs of that group
    rows = factor.reshape(source.groups, -1)
    rows = rows.repeat_interleave(source.in_channels // source.groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (source.weight.dim() - 2))
