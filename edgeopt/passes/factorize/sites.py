"""Layers that are one matrix: how to read them, and how to put two thin ones in their place."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.contracts.tied import tied_contracts
from edgeopt.pipeline.state import ModelState

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
ROOT = "the model"


class LowRank(nn.Sequential):
    """`up(down(x))` in the place of one layer; `down` has no bias."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__(collections.OrderedDict(down=down, up=up))


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer that might be factorized.

    Attributes:
        fqn: Its name.
        inputs: Width of the vectors that its matrix takes.
        outputs: Width of those that it gives.
        refusal: Why it cannot be factorized, or empty.
    """

    fqn: str
    inputs: int
    outputs: int
    refusal: str = ""

    @property
    def parameters(self) -> int:
        """Weights of the matrix; also its multiply-accumulates for each vector."""
        return self.inputs * self.outputs

    def cost(self, rank: int) -> int:
        """Return the weights, and multiply-accumulates for each vector, of two factors."""
        return rank * (self.inputs + self.outputs)


def find_sites(state: ModelState) -> list[Site]:
    """Return every layer that is, or resembles, a matrix, in the order of the model."""
    module = state.carrier_module
    names: dict[nn.Module, list[str]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        names.setdefault(child, []).append(name or ROOT)
    tied = {n: pair for c in tied_contracts(module) for n, pair in ((c.a, c.b), (c.b, c.a))}
    found = []
    for child, (name, *others) in names.items():
        site = _site(name, child)
        if site is None:
            continue
        parent = module if "." not in name else module.get_submodule(name.rpartition(".")[0])
        refusal = site.refusal or _held(name, state, tied)
        if name == ROOT:
            refusal = "is the whole model"
        elif isinstance(parent, LowRank):
            refusal = "is a factor already"
        elif others:
            refusal = f"is also {others[0]}: one layer under two names"
        found.append(dataclasses.replace(site, refusal=refusal))
    return found


def _held(name: str, state: ModelState, tied: Mapping[str, str]) -> str:
    """Return why the state forbids to take this layer's weight apart, or empty."""
    for leaf in ("weight", "bias"):
        fqn = f"{name}.{leaf}"
        if fqn in tied:
            return f"{fqn} is tied to {tied[fqn]}"
        for contract in state.contracts:
            if fqn in contract.sites:
                return (
                    f"{fqn} is under the contract {contract.kind}, which a product of factors "
                    "does not keep; factorize first"
                )
    return ""


def _site(name: str, child: nn.Module) -> Site | None:
    if isinstance(child, nn.Linear):
        refusal = _refusal(child, nn.Linear)
        return Site(name, child.in_features, child.out_features, refusal)
    if isinstance(child, CONVOLUTIONS):
        refusal = _not_pointwise(child) or _refusal(child, nn.Conv2d)
        return Site(name, child.in_channels, child.out_channels, refusal)
    if isinstance(child, nn.MultiheadAttention):
        width = child.embed_dim
        return Site(name, width, 3 * width, "packs its projections and reads them itself")
    weight = getattr(child, "weight", None)
    if type(child).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2:
        refusal = _refusal(child, type(child))
        if not refusal and not _is_linear(child):
            refusal = "is named Conv1D, but is no linear with its weight stored [in, out]"
        return Site(name, weight.shape[0], weight.shape[1], refusal)
    return None


def _not_pointwise(child: nn.Module) -> str:
    if not isinstance(child, nn.Conv2d):
        return f"is a {type(child).__name__}, no 1x1 Conv2d"
    if child.kernel_size != (1, 1):
        return f"its kernel is {child.kernel_size[0]}x{child.kernel_size[1]}, not 1x1"
    if child.groups != 1:
        return f"has {child.groups} groups"
    if child.padding not in ((0, 0), "same", "valid"):
        return "pads its input"
    return ""


def _refusal(child: nn.Module, kind: type[nn.Module]) -> str:
    """Return what the layer has or does beyond multiplying by its weight, or empty."""
    if nn.utils.parametrize.is_parametrized(child):
        return "is parametrized"
    if type(child).forward is not kind.forward or "forward" in vars(child):
        return f"is a {type(child).__name__} with a forward of its own"
    held = {*child._parameters, *child._buffers, *child._modules}
    if held - {"weight", "bias"}:
        return f"is a {type(child).__name__} that also holds {min(held - {'weight', 'bias'})}"
    if child._forward_hooks or child._forward_pre_hooks:
        return "has forward hooks"
    weight = child.weight
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    return ""


def _is_linear(child: nn.Module) -> bool:
    weight, bias = child.weight, getattr(child, "bias", None)
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, 3, len(weight), generator=generator).to(weight)
    with torch.no_grad():
        got, want = child(probe), F.linear(probe, weight.T, bias)
    # another order of the same sum
    return isinstance(got, Tensor) and got.shape == want.shape and torch.allclose(got, want, 1e-2)


def matrix(child: nn.Module) -> Tensor:
    """Return the layer's weight as [out, in]."""
    weight = child.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if isinstance(child, nn.Conv2d):
        return weight.flatten(1)
    return weight if isinstance(child, nn.Linear) else weight.T


def vectors(child: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's input as the vectors [rows, in] that its matrix multiplies."""
    if not isinstance(child, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    down, right = child.stride
    return x[..., ::down, ::right].movedim(-3, -1).flatten(0, -2)


def replacement(child: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> LowRank:
    """Return `down` [r, in] and `up` [out, r] as the two layers that take the layer's place."""
    weight = child.weight
    assert isinstance(weight, Tensor)
    rank, inputs = down.shape
    outputs = len(up)
    with_bias = bias is not None
    first: nn.Module
    second: nn.Module
    if isinstance(child, nn.Conv2d):
        # on "meta": nothing is allocated or drawn from the global generator
        first = nn.Conv2d(inputs, rank, 1, child.stride, bias=False, device="meta")  # type: ignore[arg-type]
        second = nn.Conv2d(rank, outputs, 1, bias=with_bias, device="meta")
        up, down = up[..., None, None], down[..., None, None]
    else:
        first = nn.Linear(inputs, rank, bias=False, device="meta")
        second = nn.Linear(rank, outputs, bias=with_bias, device="meta")
    first.weight = nn.Parameter(down.to(weight.dtype).contiguous(), weight.requires_grad)
    second.weight = nn.Parameter(up.to(weight.dtype).contiguous(), weight.requires_grad)
    if bias is not None:
        second.bias = nn.Parameter(bias.to(weight.dtype), weight.requires_grad)
    return LowRank(first, second).train(child.training)
