"""What a model takes, as far as data must fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from edgeopt.data.samples import LabelledBatch
from edgeopt.errors import DataError

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
        keyword: Whether it is passed by name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    keyword: bool

    def text(self) -> str:
        """Return `float32 [N, 3, 224, 224]`."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{str(self.dtype)[6:]} [N, {sizes}]" if sizes else f"{str(self.dtype)[6:]} [N]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs of a model, in order."""

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(
        cls, example: Example, input_names: Sequence[str] = (), dynamic_shapes: Any = None
    ) -> Signature:
        """Read a signature off example inputs.

        Args:
            example: Its tensors' first dimension is the batch.
            input_names: Names in order; the positional ones may be all there are.
            dynamic_shapes: As `torch.export` takes them; named dimensions are free.

        Raises:
            DataError: If an input is not a tensor with a batch dimension.
        """
        leaves = []
        for position, (key, value) in enumerate(
            [*((None, v) for v in example.args), *example.kwargs.items()]
        ):
            given = input_names[position] if position < len(input_names) else f"input{position}"
            name = key or given
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise DataError(
                    f"input {name}: data can be read for tensor inputs with a batch dimension "
                    f"only, this one is {type(value).__name__}"
                )
            free = _free_axes(dynamic_shapes, position, name)
            shape = tuple(
                None if axis in free else size for axis, size in enumerate(value.shape) if axis
            )
            leaves.append(Leaf(name, shape, value.dtype, key is not None))
        if not leaves:
            raise DataError("the model takes no inputs, so no data fit it")
        return cls(tuple(leaves))

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
        """Split fitted inputs into positional and keyword ones."""
        pairs = list(zip(self.leaves, tensors, strict=True))
        return LabelledBatch(
            tuple(value for leaf, value in pairs if not leaf.keyword),
            {leaf.name: value for leaf, value in pairs if leaf.keyword},
            labels,
        )


def _free_axes(dynamic_shapes: Any, position: int, name: str) -> frozenset[int]:
    if isinstance(dynamic_shapes, Mapping):
        ordered = list(dynamic_shapes.values())
        fallback = ordered[position] if position < len(ordered) else None
        entry = dynamic_shapes.get(name, fallback)
    elif isinstance(dynamic_shapes, (tuple, list)) and position < len(dynamic_shapes):
        entry = dynamic_shapes[position]
    else:
        entry = None
    if isinstance(entry, Mapping):
        return frozenset(int(axis) for axis, size in entry.items() if not _static(size))
    if isinstance(entry, (tuple, list)):
        return frozenset(axis for axis, size in enumerate(entry) if not _static(size))
    return frozenset()


def _static(size: Any) -> bool:
    # torch.export.Dim.STATIC is an enum member; an int or None fixes the size too.
    return size is None or isinstance(size, int) or getattr(size, "name", "") == "STATIC"
