"""What a model takes, as far as data must fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeopt.data.samples import LabelledBatch
from edgeopt.errors import DataError
from edgeopt.ir import trees
from edgeopt.ir.trees import leaves

# Storage widths that hold the same numbers; anything else is refused, not converted.
_CASTS = {
    torch.float32: (torch.float64, torch.float16, torch.bfloat16),
    torch.int64: (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16),
    torch.int32: (torch.int16, torch.int8, torch.uint8, torch.uint16),
}


class Example(Protocol):
    """Anything with example arguments: a `Batch`, a `LoadedModel` through its `example`."""

    @property
    def args(self) -> tuple[Any, ...]: ...

    @property
    def kwargs(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One input.

    Attributes:
        name: As the user calls it.
        shape: Without the batch; None is free.
        dtype: Its type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def text(self) -> str:
        """Return `float32 [N, 3, 224, 224]`."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{str(self.dtype)[6:]} [N, {sizes}]" if sizes else f"{str(self.dtype)[6:]} [N]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs of a model, in order, and how they nest.

    Attributes:
        leaves: Its tensors.
        example: The values around them: the example's own, which are not data.
    """

    leaves: tuple[Leaf, ...]
    example: tuple[tuple[Any, ...], Mapping[str, Any]]

    @classmethod
    def of(
        cls, example: Example, input_names: Sequence[str] = (), dynamic_shapes: Any = None
    ) -> Signature:
        """Read a signature off example inputs.

        Args:
            example: Its tensors' first dimension is the batch; they may stand in tuples, lists,
                mappings and dataclasses. What is no tensor (None, a number) is the same for all
                data.
            input_names: One a tensor, in order.
            dynamic_shapes: As `torch.export` takes them; these dimensions are free.

        Raises:
            DataError: If there is no tensor, or one has no batch dimension.
        """
        args, kwargs = tuple(example.args), dict(example.kwargs)
        values = leaves((args, kwargs))
        names = [*input_names, *trees.input_names((), args, kwargs)[len(input_names) :]]
        axes = trees.free_dimensions(args, kwargs, names, dynamic_shapes)
        found = []
        for name, value, free in zip(names, values, axes, strict=True):
            if value.ndim == 0:
                raise DataError(
                    f"input {name}: data can be read for tensors with a batch dimension only, this "
                    "one is a single number"
                )
            shape = tuple(
                None if axis in free else size for axis, size in enumerate(value.shape) if axis
            )
            found.append(Leaf(name, shape, value.dtype))
        if not found:
            raise DataError("the model takes no tensors, so no data fit it")
        return cls(tuple(found), (args, kwargs))

    def fit(self, tensors: Sequence[Tensor], where: str, *, hint: str = "") -> tuple[Tensor, ...]:
        """Check a batch of inputs, and widen what can be widened without loss.

        Raises:
            DataError: For a wrong number, type or shape.
        """
        if len(tensors) != len(self.leaves):
            names = ", ".join(leaf.name for leaf in self.leaves)
            raise DataError(
                f"{where}: {len(tensors)} inputs, the model takes {len(self.leaves)} ({names})"
            )
        count = len(tensors[0]) if tensors[0].ndim else -1
        fitted = []
        for leaf, value in zip(self.leaves, tensors, strict=True):
            got = f"{str(value.dtype)[6:]} {list(value.shape)}"
            same_rank = value.ndim == len(leaf.shape) + 1
            if not same_rank or any(
                want not in (None, size)
                for want, size in zip(leaf.shape, value.shape[1:], strict=True)
            ):
                raise DataError(
                    f"{where}: {leaf.name} is {got}, the model takes {leaf.text()}{hint}"
                )
            if len(value) != count:
                raise DataError(
                    f"{where}: {leaf.name} has {len(value)} samples, another input has {count}"
                )
            if value.dtype != leaf.dtype and value.dtype not in _CASTS.get(leaf.dtype, ()):
                raise DataError(
                    f"{where}: {leaf.name} is {got}, the model takes {leaf.text()}{hint}"
                )
            fitted.append(value.to(leaf.dtype))
        return tuple(fitted)

    def batch(self, tensors: Sequence[Tensor], labels: Tensor | None) -> LabelledBatch:
        """Nest fitted inputs as the model takes them."""
        values = iter(tensors)
        args, kwargs = pytree.tree_map(
            lambda leaf: next(values) if isinstance(leaf, Tensor) else leaf, self.example
        )
        return LabelledBatch(args, kwargs, labels)
