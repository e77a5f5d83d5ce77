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
    GROUP = "group"


class Role(enum.Enum):
    """What a tensor is to the operator at its edge."""

    INPUT = "input"
    OUTPUT = "output"
    WEIGHT = "weight"
    BIAS = "bias"
    CONSTANT = "constant"
    STATE = "state"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A wish: how one tensor is to be quantized.

    Attributes:
        bits: Width of a code.
        signed: Codes are two's complement; otherwise from 0.
        symmetric: The zero point is fixed: 0 where signed, the middle code where not.
        granularity: One scale, one a channel, or one a group of `group_size` along `axis`.
        axis: The channel axis (CHANNEL), or the axis that groups run along (GROUP).
        group_size: Elements that share a scale; only for GROUP.
        narrow: Leave out the most negative code, so that -q is always a code.
        dynamic: Parameters are computed at run time, from each input.
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
        if (self.granularity is Granularity.GROUP) != (self.group_size > 0):
            raise ConfigError("group_size belongs to granularity 'group', and is at least 1 there")
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
            Granularity.GROUP: f"groups of {self.group_size} (axis {self.axis})",
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


@dataclasses.dataclass(frozen=True)
class Block:
    """One affine pair a group, optionally with scales that are themselves codes of a super-scale.

    Attributes:
        scale: float32, the tensor's shape with each axis divided by `block_shape`.
        zero_point: Same shape, or None where symmetric.
        block_shape: Elements along each axis that share a scale.
        super_scale: float32 that multiplies integer `scale` codes (two-level scales), or None.
    """

    scale: Tensor
    zero_point: Tensor | None
    block_shape: tuple[int, ...]
    super_scale: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Codebook:
    """`real = table[q]`, one table of 2^bits values a tensor or a channel."""

    table: Tensor
    axis: int | None = None


QParams = Affine | Block | Codebook
