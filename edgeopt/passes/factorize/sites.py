"""Layers that are one matrix: which they are, and how to put two thin ones in their place."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.analysis.layers import Kind, Layer
from edgeopt.pipeline.state import ModelState


class LowRank(nn.Sequential):
    """`up(down(x))` in the place of one layer; `down` has no bias."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__(collections.OrderedDict(down=down, up=up))


def refusal(layer: Layer, state: ModelState, tied: Mapping[str, Sequence[str]]) -> str:
    """Return why a layer cannot be factorized, or empty.

    Args:
        layer: A layer of the state's module.
        state: What holds its weight.
        tied: FQN -> other names of its storage.
    """
    if not layer.fqn:
        return "is the whole model"
    parent = state.carrier_module.get_submodule(layer.fqn.rpartition(".")[0])
    if isinstance(parent, LowRank):
        return "is a factor already"
    if layer.aliases:
        return f"is also {layer.aliases[0]}: one layer under two names"
    return _no_matrix(layer) or _held(layer, state, tied)


def _held(layer: Layer, state: ModelState, tied: Mapping[str, Sequence[str]]) -> str:
    """Return why the state forbids to take this layer's weight apart, or empty."""
    for leaf in ("weight", "bias"):
        fqn = f"{layer.fqn}.{leaf}"
        if fqn in tied:
            return f"{fqn} is tied to {tied[fqn][0]}"
        for contract in state.contracts:
            if fqn in contract.sites:
                return (
                    f"{fqn} is under the contract {contract.kind}, which a product of factors "
                    "does not keep; factorize first"
                )
    return ""


def _no_matrix(layer: Layer) -> str:
    """Return why the layer is no multiplication by one matrix, or empty."""
    child = layer.module
    if layer.kind is Kind.LINEAR:
        return _extras(child, nn.Linear)
    if layer.kind is Kind.PACKED_ATTENTION:
        return "packs its projections and reads them itself"
    if layer.kind is Kind.SPLIT_ATTENTION:
        return "reads its projections itself"
    if layer.kind is not Kind.CONV1D:
        return _not_pointwise(child) or _extras(child, nn.Conv2d)
    extras = _extras(child, type(child))
    if not extras and not _is_linear(layer):
        return "is named Conv1D, but is no linear with its weight stored [in, out]"
    return extras


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


def _extras(child: nn.Module, kind: type[nn.Module]) -> str:
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


def _is_linear(layer: Layer) -> bool:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, 3, layer.inputs, generator=generator).to(layer.weight)
    with torch.no_grad():
        got, want = layer.module(probe), F.linear(probe, layer.matrix(), layer.bias)
    # another order of the same sum
    return isinstance(got, Tensor) and got.shape == want.shape and torch.allclose(got, want, 1e-2)


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
