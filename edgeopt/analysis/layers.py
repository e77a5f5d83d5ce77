"""Layers with a weight: which there are, and how each keeps its numbers."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from edgeopt.analysis.selection import select
from edgeopt.contracts.tied import tied_partners

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ROOT = "the model"
_WHAT = "Linear or convolution"


class Kind(enum.Enum):
    """How a layer keeps its weight.

    Attributes:
        LINEAR: `nn.Linear`, [out, in].
        CONV1D: Transformers' `Conv1D`, a linear stored [in, out].
        CONVOLUTION: [out, in / groups, *kernel].
        TRANSPOSED_CONVOLUTION: [in, out / groups, *kernel].
        PACKED_ATTENTION: `nn.MultiheadAttention` with queries, keys and values in one
            `in_proj_weight`, [3 width, width].
        SPLIT_ATTENTION: One of its three weights where keys or values have a width of their own.
        EMBEDDING: A table [rows, out]; as a matrix it multiplies one-hot rows.
    """

    LINEAR = enum.auto()
    CONV1D = enum.auto()
    CONVOLUTION = enum.auto()
    TRANSPOSED_CONVOLUTION = enum.auto()
    PACKED_ATTENTION = enum.auto()
    SPLIT_ATTENTION = enum.auto()
    EMBEDDING = enum.auto()


MULTIPLYING = frozenset(Kind) - {Kind.EMBEDDING}
"""Layers that multiply their input by their weight; an embedding only looks rows up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One weight of a module, by the name that the module goes by.

    Attributes:
        fqn: The module's first FQN; empty for the model itself.
        module: The module.
        kind: How it keeps the weight.
        inputs: Channels that one output sums over: those of one group.
        outputs: Channels that it gives.
        groups: Runs of channels that see nothing of each other.
        leaf: The weight's name in the module.
        bias_leaf: The bias's name; empty for a kind that has none.
        aliases: Further FQNs of the same module.
        tied: FQNs of other modules' parameters that share the weight's storage.
    """

    fqn: str
    module: nn.Module
    kind: Kind
    inputs: int
    outputs: int
    groups: int = 1
    leaf: str = "weight"
    bias_leaf: str = "bias"
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a user calls the module: its FQN, or `the model`."""
        return self.fqn or ROOT

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the module."""
        return (self.name, *self.aliases)

    @property
    def weight_fqn(self) -> str:
        return self._within(self.fqn)

    @property
    def weight_fqns(self) -> tuple[str, ...]:
        """The weight's name under each name of the module."""
        return tuple(self._within(fqn) for fqn in (self.fqn, *self.aliases))

    @property
    def in_axis(self) -> int:
        """The weight's axis that a product sums over."""
        stored_turned = (Kind.CONV1D, Kind.TRANSPOSED_CONVOLUTION, Kind.EMBEDDING)
        return 0 if self.kind in stored_turned else 1

    @property
    def out_axis(self) -> int:
        """The weight's axis of output channels; those of one group, if the other has all inputs."""
        return 1 - self.in_axis

    @property
    def weight(self) -> Tensor:
        weight = getattr(self.module, self.leaf)
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, self.bias_leaf, None) if self.bias_leaf else None

    def matrix(self) -> Tensor:
        """Return the weight as [out, in]: a row is all that one output channel sums over.

        The columns of a convolution run over the inputs of a group, then over its kernel. A view
        wherever torch can give one.
        """
        weight = self.weight.detach()
        if self.in_axis == 0:
            by_group = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            weight = by_group.flatten(0, 1)
        return weight.flatten(1)

    def set_matrix(self, matrix: Tensor) -> None:
        """Write [out, in], as `matrix` gives it, into the weight in place, in its own type."""
        weight = self.weight
        if self.in_axis == 0:
            shape = (self.groups, self.outputs // self.groups, -1, *weight.shape[2:])
            matrix = matrix.reshape(shape).transpose(1, 2)
        with torch.no_grad():
            weight.copy_(matrix.reshape(weight.shape))

    def _within(self, fqn: str) -> str:
        return f"{fqn}.{self.leaf}" if fqn else self.leaf


def find_layers(module: nn.Module, kinds: Collection[Kind] = MULTIPLYING) -> tuple[Layer, ...]:
    """Return every layer of these kinds, in the order of the model.

    A module under several names, or called several times, is one layer.
    """
    return tuple(layer for layer in _every(module) if layer.kind in kinds)


def choose_layers(
    layers: Sequence[Layer], include: Iterable[str], exclude: Iterable[str] = (), *, who: str
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the layers that globs name, in their order, and those left out, with the reason.

    A layer goes by each name of its module. Where there is no layer at all, `*` names none.

    Args:
        layers: What there is.
        include: Globs of the layers wanted.
        exclude: Globs of layers to leave out of them.
        who: What an error begins with: the pass.

    Raises:
        ConfigError: If a glob names no layer; the nearest is suggested.
    """
    if not layers and tuple(include) == ("*",):
        return (), {ROOT: f"holds no {_WHAT}"}
    names = [name for layer in layers for name in layer.names]
    wanted = select(names, include, who=who, what=_WHAT)
    unwanted = select(names, exclude, who=who, what=_WHAT)
    named = [layer for layer in layers if wanted.intersection(layer.names)]
    left = [layer for layer in named if unwanted.intersection(layer.names)]
    chosen = tuple(layer for layer in named if layer not in left)
    return chosen, {layer.name: "named in exclude" for layer in left}


def _every(module: nn.Module) -> Iterator[Layer]:
    names: dict[nn.Module, list[str]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        names.setdefault(child, []).append(name)
    partners = tied_partners(module)
    for child, (fqn, *aliases) in names.items():
        for layer in _layers(fqn, child):
            named = dataclasses.replace(layer, aliases=tuple(aliases))
            tied = partners.get(named.weight_fqn, ())
            others = tuple(name for name in tied if name not in named.weight_fqns)
            yield dataclasses.replace(named, tied=others)


def _layers(fqn: str, child: nn.Module) -> Iterator[Layer]:
    if isinstance(child, nn.Linear):
        yield Layer(fqn, child, Kind.LINEAR, child.in_features, child.out_features)
    elif isinstance(child, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)):
        transposed = isinstance(child, TRANSPOSED_CONVOLUTIONS)
        kind = Kind.TRANSPOSED_CONVOLUTION if transposed else Kind.CONVOLUTION
        inputs = child.in_channels // child.groups
        yield Layer(fqn, child, kind, inputs, child.out_channels, child.groups)
    elif isinstance(child, nn.MultiheadAttention):
        yield from _attention(fqn, child)
    elif isinstance(child, nn.Embedding):
        inputs, outputs = child.num_embeddings, child.embedding_dim
        yield Layer(fqn, child, Kind.EMBEDDING, inputs, outputs, bias_leaf="")
    elif type(child).__name__ == "Conv1D":  # by name, since Transformers may not be installed
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            yield Layer(fqn, child, Kind.CONV1D, weight.shape[0], weight.shape[1])


def _attention(fqn: str, child: nn.MultiheadAttention) -> Iterator[Layer]:
    width = child.embed_dim
    if child.in_proj_weight is not None:
        packed = Layer(fqn, child, Kind.PACKED_ATTENTION, width, 3 * width)
        yield dataclasses.replace(packed, leaf="in_proj_weight", bias_leaf="in_proj_bias")
        return
    for letter, inputs in (("q", width), ("k", child.kdim), ("v", child.vdim)):
        split = Layer(fqn, child, Kind.SPLIT_ATTENTION, inputs, width)
        # one bias is packed of all three
        yield dataclasses.replace(split, leaf=f"{letter}_proj_weight", bias_leaf="")
