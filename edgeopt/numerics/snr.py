"""Signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def snr_db(reference: Iterable[Tensor], outputs: Iterable[Tensor]) -> float:
    """Return `10 log10(sum r^2 / sum (r - o)^2)` over all elements; infinite where equal.

    Never NaN: an element that is infinite or NaN in both is equal, in one it is endless noise.
    """
    signal = noise = 0.0
    for want, got in zip(reference, outputs, strict=True):
        want64, got64 = want.double(), got.double()
        same = (want64 == got64) | (want64.isnan() & got64.isnan())
        error = torch.where(same, torch.zeros_like(want64), want64 - got64)
        signal += float((want64[want64.isfinite()] ** 2).sum())
        noise += float((error**2).sum())
    if noise == 0.0:
        return float("inf")
    if signal == 0.0 or not math.isfinite(noise):
        return float("-inf")
    return 10.0 * float(torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
