"""A quantity that limits may speak of."""

from __future__ import annotations

from edgeopt.limits.counted import Counted, Told
from edgeopt.limits.quantities import Kind, Sense


class LargestTensor(Counted):
    """The largest stored tensor has to fit into one piece of the board's memory."""

    name = "largest_tensor_mb"
    unit = "MB"
    sense = Sense.AT_MOST
    about = "bytes of the largest stored tensor, 10^6"
    compared = Kind.RATIO

    def count(self, told: Told) -> float | None:
        if not told.sizes:
            return None
        return max(row.bytes for row in told.sizes) / 1e6
