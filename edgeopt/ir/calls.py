"""One call of a method: batches, and a method's example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call of the model: positional and keyword arguments, any pytree of tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MethodExample:
    """How a method of the model, beside `forward`, is called; its files keep these very shapes.

    Attributes:
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        input_names: One a tensor, in pytree order.
        output_names: One a tensor, in pytree order.
        input_roles: One a tensor.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    input_roles: tuple[str, ...] = ()


FORWARD = "forward"
"""The method that data, accuracy and latency speak of."""


Batches = Callable[[], Iterator[Batch]]
"""A re-iterable source of batches; calling it starts from the beginning, so data can stream."""
