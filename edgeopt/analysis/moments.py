"""What the inputs of a module's layers look like: their second moments on calibration data.

Inputs are summed up as they pass; no activation is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import DataError
from edgeopt.ir.calls import Batches
from edgeopt.numerics.observers import SecondMoment

Vectors = Callable[[Tensor], Tensor]
"""Brings a layer's input to the vectors [rows, width] that its weight multiplies."""


def input_moments(
    module: nn.Module,
    layers: Mapping[str, tuple[int, Vectors]],
    batches: Batches,
    progress: Callable[[int], None] = lambda _batches: None,
) -> dict[str, SecondMoment]:
    """Run a module on calibration data and return the second moment of each layer's input.

    Memory: `8 width^2` bytes a layer. The hooks are removed whatever happens.

    Args:
        module: The model, in eval mode.
        layers: FQN -> (width, how its input becomes vectors).
        batches: The calibration data.
        progress: Called with the number of batches done.

    Raises:
        DataError: If there is no sample, or a layer's input takes NaN or Inf.
    """
    moments = {fqn: SecondMoment(width) for fqn, (width, _) in layers.items()}
    seen = 0
    vectors = {fqn: bring for fqn, (_, bring) in layers.items()}
    with _hooked(module, moments, vectors), torch.no_grad():
        for batch in batches():
            module(*batch.args, **batch.kwargs)
            seen += 1
            progress(seen)
    if seen == 0:
        raise DataError("the calibration data hold no sample")
    for fqn, moment in moments.items():
        if not moment.finite:
            raise DataError(
                f"the input of {fqn} took NaN or Inf on the calibration data; look for bad samples"
            )
    return moments


@contextlib.contextmanager
def _hooked(
    module: nn.Module, moments: Mapping[str, SecondMoment], vectors: Mapping[str, Vectors]
) -> Iterator[None]:
    def watch(fqn: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            moments[fqn].update(vectors[fqn](x))

        return hook

    handles = []
    try:
        for fqn in sorted(moments):
            layer = module.get_submodule(fqn)
            handles.append(layer.register_forward_pre_hook(watch(fqn), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
