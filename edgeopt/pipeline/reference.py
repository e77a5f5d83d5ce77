"""The untouched float model that accuracy and drift are judged against."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeopt.pipeline.state import Batch


class FloatReference:
    """A copy of the user's model that owns its storage.

    Attributes:
        module: The copy, in eval mode, without gradients.
        digest: SHA-256 of its weights when it was made.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.digest = digest(self.module)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return the model's outputs on a batch as flat leaves, in pytree order."""
        with torch.no_grad():
            return leaves(self.module(*batch.args, **batch.kwargs))

    def intact(self) -> bool:
        """Say whether the weights are still what they were."""
        return digest(self.module) == self.digest


def leaves(outputs: object) -> list[Tensor]:
    """Return the tensor leaves of any pytree."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, names included."""
    return digest_tensors(module.state_dict(keep_vars=True).items())


def digest_tensors(items: Iterable[tuple[str, object]]) -> str:
    """Return the SHA-256 over named tensors: name, type, shape and bytes, sorted by name."""
    total = hashlib.sha256()
    for name, value in sorted(items, key=lambda item: item[0]):
        if not isinstance(value, Tensor):
            continue
        data = value.detach().cpu().contiguous()
        total.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


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
