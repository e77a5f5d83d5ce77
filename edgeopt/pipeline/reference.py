"""The untouched float model that accuracy and drift are judged against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgeopt.ir.calls import Batch
from edgeopt.ir.digests import digest
from edgeopt.ir.trees import leaves


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
