"""What every delta is: what one adapter does to one tensor. A family is a file beside this one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from edgeopt.errors import AdapterError


@dataclasses.dataclass(frozen=True, eq=False)
class Delta(abc.ABC):
    """What an adapter's file says of one tensor, in the terms of one family.

    Attributes:
        family: The family's name, as a report has it.
        multiplies: Whether the change depends on what other adapters add to the tensor, so that
            PEFT's result for several depends on their order.
    """

    family: ClassVar[str]
    multiplies: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def parameters(self) -> int:
        """Numbers that the file holds of it."""

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What it is, for a report: `LoRA of rank 4, scale 2`."""

    @abc.abstractmethod
    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        """Return rows of the tensor with this delta and no other, float64 [rows, in].

        Args:
            base: Those rows without it, float64 [rows, in]; a vector is [rows, 1].
            rows: Which outputs they are.
            transposed: The tensor is stored [in, out], as an embedding's.
        """

    @property
    def transposed(self) -> bool:
        """Whether it was made for a tensor that is stored [in, out]."""
        return False

    def same(self, other: Delta) -> bool:
        """Say whether both do the same to a tensor that is stored once, so that it stays tied."""
        return type(other) is type(self) and self._same(other)

    @abc.abstractmethod
    def _same(self, other: Self) -> bool:
        """Compare with another of this family."""


def as_matrix(tensor: Tensor, *, transposed: bool) -> Tensor:
    """Return a view [out, in] of a tensor; a vector is [out, 1]."""
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix.T if transposed else matrix


def equal(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have one shape and the same values."""
    return one.shape == other.shape and torch.equal(one, other)


def check_shape(
    where: str, what: str, value: Tensor, expected: Sequence[int], weight: Tensor
) -> None:
    """Hold a tensor of the file against the weight that it is for.

    Raises:
        AdapterError: If it has another shape.
    """
    if tuple(value.shape) != tuple(expected):
        raise AdapterError(
            f"{where}: {what} is {list(value.shape)}, the model's weight {list(weight.shape)} "
            f"needs {list(expected)}; is it another base?"
        )
