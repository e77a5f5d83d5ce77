"""How a kernel slides over the spatial dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeopt.errors import ConfigError

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel slides over the spatial dimensions.

    Attributes:
        kernel: Sizes.
        strides: Steps.
        pads: Begins, then ends, as ONNX writes them.
        dilations: Distances between taps.
        ceil: Whether a last, partly outside window counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil: bool = False

    @staticmethod
    def of(
        kernel: Sequence[int],
        strides: Sequence[int] = (),
        pads: Sequence[int] = (),
        dilations: Sequence[int] = (),
        *,
        ceil: bool = False,
    ) -> Window:
        """Make a window; what is left out is 1 (0 for pads)."""
        rank = len(kernel)
        made = Window(
            tuple(kernel),
            tuple(strides) or (1,) * rank,
            tuple(pads) or (0,) * (2 * rank),
            tuple(dilations) or (1,) * rank,
            ceil,
        )
        if not rank == len(made.strides) == len(made.dilations) == len(made.pads) // 2:
            raise ConfigError(f"window: kernel {made.kernel} and its other sizes differ in rank")
        return made

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the number of windows in each dimension."""
        sizes = []
        for i, size in enumerate(spatial):
            begin, end = self.pads[i], self.pads[i + len(self.kernel)]
            span = size + begin + end - self._reach(i)
            count = (-(-span // self.strides[i]) if self.ceil else span // self.strides[i]) + 1
            if self.ceil and (count - 1) * self.strides[i] >= size + begin:
                count -= 1  # a window must begin inside the input or its left border
            sizes.append(count)
        if min(sizes) < 1:
            raise ConfigError(f"window: kernel {self.kernel} is larger than {tuple(spatial)}")
        return tuple(sizes)

    def _reach(self, dim: int) -> int:
        return (self.kernel[dim] - 1) * self.dilations[dim] + 1

    def view(self, x: Array, fill: Any) -> Array:
        """Return `[N, C, *outputs, *kernel]` as a strided view of the padded `[N, C, *spatial]`."""
        sizes = self.output_size(x.shape[2:])
        borders = [(0, 0), (0, 0)]
        for i, size in enumerate(x.shape[2:]):
            begin = self.pads[i]
            needed = (sizes[i] - 1) * self.strides[i] + self._reach(i)
            borders.append((begin, max(needed - size - begin, 0)))
        padded = np.pad(x, borders, constant_values=fill)
        steps = padded.strides
        return np.lib.stride_tricks.as_strided(
            padded,
            (*x.shape[:2], *sizes, *self.kernel),
            (
                *steps[:2],
                *(s * t for s, t in zip(steps[2:], self.strides, strict=True)),
                *(s * d for s, d in zip(steps[2:], self.dilations, strict=True)),
            ),
            writeable=False,
        )
