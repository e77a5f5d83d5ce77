"""The vocabulary of quantization: what is wished for, and the numbers that realise it."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Granularity(enum.Enum):
    """How many scales a tensor has."""

    TENSOR = "tensor"
    CHANNEL = "channel"


class Role(enum.Enum):
    """What a tensor is to the operator at its edge."""

    INPUT = "input"
    OUTPUT = "output"
    WEIGHT = "weight"
    BIAS = "bias"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A wish: how one tensor is to be quantized.

    Attributes:
        bits: Width of a code.
        signed: Codes are two's complement; otherwise from 0.
        symmetric: The zero point is fixed: 0 where signed, the middle code where not.
        granularity: One scale, or one a channel.
        axis: The channel axis, for CHANNEL.
        group_size: 0, in bundles as in profiles: nothing computes one scale a group.
        narrow: Leave out the most negative code, so that -q is always a code.
        dynamic: False, as above: nothing computes parameters at run time.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    granularity: Granularity = Granularity.TENSOR
    axis: int = 0
    group_size: int = 0
    narrow: bool = False
    dynamic: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ConfigError(f"quantization bits are 2 to 32, not {self.bits}")
        if self.group_size or self.dynamic:
            raise ConfigError("no group_size and no dynamic parameters: nothing computes them")
        if self.narrow and not self.signed:
            raise ConfigError("a narrow range belongs to signed codes")

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def codes_dtype(self) -> str:
        """The storage type by name, `int8` or `uint4`; torch itself lacks the narrow ones."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        where = {
            Granularity.TENSOR: "per tensor",
            Granularity.CHANNEL: f"per channel (axis {self.axis})",
        }[self.granularity]
        return f"{self.codes_dtype} {kind} {where}"


@dataclasses.dataclass(frozen=True)
class Affine:
    """`real = scale * (q - zero_point)`.

    Attributes:
        scale: float32, [] per tensor or [channels].
        zero_point: An integer tensor of the same shape.
        axis: The channel axis, or None per tensor.
    """

    scale: Tensor
    zero_point: Tensor
    axis: int | None = None
