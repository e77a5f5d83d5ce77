"""LoRA and rsLoRA: a product of two thin factors is added (arXiv 2106.09685, 2312.03732)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from torch import Tensor

from edgeopt.adapters.deltas.delta import Delta, check_shape, equal
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.analysis.layers import Kind, Layer
from edgeopt.errors import AdapterError


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """`theta_i = W + g B A`, with `g = alpha / r`, or `alpha / sqrt(r)` where rank-stabilized.

    Attributes:
        b: `B`, [out, r].
        a: `A`, [r, in]; of a convolution, flattened.
        scale: `g`.
        transposed: The tensor is stored [in, out] (an embedding, Transformers' `Conv1D`).
    """

    b: Tensor
    a: Tensor
    scale: float = 1.0
    transposed: bool = False
    family: ClassVar[str] = "LoRA"

    @classmethod
    def check(cls, factors: LoraFactors, layer: Layer, where: str) -> None:
        """Hold the factors against the layer that they are for.

        Raises:
            AdapterError: If they are of another kind of layer or another shape.
        """
        if factors.embedding != (layer.kind is Kind.EMBEDDING):
            raise AdapterError(
                f"{where}: the factors are {'' if factors.embedding else 'not '}those of an "
                f"embedding, and the model has a {type(layer.module).__name__}"
            )
        weight = layer.weight
        shape = output_shape(layer)
        check_shape(where, "A", factors.a, (factors.rank, *shape[1:]), weight)
        ones = (1,) * (len(shape) - 2)
        check_shape(where, "B", factors.b, (shape[0], factors.rank, *ones), weight)
        if factors.b_bias is None:
            return
        if layer.bias is None:
            raise AdapterError(f"{where}: B has a bias, and the layer has none to add it to")
        check_shape(where, "B's bias", factors.b_bias, (shape[0],), weight)

    @classmethod
    def update(cls, factors: LoraFactors, *, transposed: bool) -> LowRank:
        """Return what the factors add to the weight."""
        return cls(factors.b.flatten(1), factors.a.flatten(1), factors.scale, transposed)

    @classmethod
    def read(cls, factors: LoraFactors, *, transposed: bool) -> dict[str, Delta]:
        """Return the tensor of the layer -> what the factors do to it, the weight first."""
        found: dict[str, Delta] = {"weight": cls.update(factors, transposed=transposed)}
        if factors.b_bias is not None:
            found["bias"] = BiasOfB(factors.scale * factors.b_bias.double())
        return found

    @property
    def parameters(self) -> int:
        return self.a.numel() + self.b.numel()

    @property
    def size(self) -> str:
        """Rank and scale, in words."""
        return f"of rank {len(self.a)}, scale {self.scale:.6g}"

    @property
    def words(self) -> str:
        return f"{self.family} {self.size}"

    @property
    def norm(self) -> float:
        """`||g B A||_F`, from the r x r products: the product itself is never made."""
        a, b = self.a.double(), self.b.double()
        square = ((b.T @ b) * (a @ a.T)).sum()
        return abs(self.scale) * float(square.clamp(min=0).sqrt())

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        return base + self.scale * (self.b[rows].double() @ self.a.double())

    def _same(self, other: Self) -> bool:
        turned = self.transposed != other.transposed
        b, a = (other.a.T, other.b.T) if turned else (other.b, other.a)
        return self.scale == other.scale and equal(self.b, b) and equal(self.a, a)


@dataclasses.dataclass(frozen=True, eq=False)
class BiasOfB(Delta):
    """`b_i = b + g b_B`: the bias of the B factor, added to the layer's.

    Attributes:
        added: `g b_B`, [out], float64.
    """

    added: Tensor
    family: ClassVar[str] = "LoRA"

    @property
    def parameters(self) -> int:
        return self.added.numel()

    @property
    def words(self) -> str:
        return "B's bias"

    def alone(self, base: Tensor, rows: slice, *, transposed: bool) -> Tensor:
        return base + self.added[rows].double()[:, None]

    def _same(self, other: Self) -> bool:
        return equal(self.added, other.added)


def output_shape(layer: Layer) -> tuple[int, ...]:
    """Return the weight's shape with the outputs first: [out, in, *kernel]."""
    shape = tuple(layer.weight.shape)
    return shape if layer.out_axis == 0 else shape[::-1]
