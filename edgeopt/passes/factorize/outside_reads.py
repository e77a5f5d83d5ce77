"""Which layers' weights are read by someone else than the layer itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from edgeopt.pipeline.context import PassContext


def outside_reads(module: nn.Module, fqns: Iterable[str], ctx: PassContext) -> dict[str, str]:
    """Run the example and return layer -> who reads its weight or bias past its `forward`.

    Fused attention, fast paths and code that asks a weight for its type read `layer.weight`; once
    the layer is two layers there is no such attribute.
    """
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for fqn in fqns:
            stack.enter_context(_watched(module.get_submodule(fqn), fqn, found))
        with torch.no_grad():
            module(*ctx.example_args, **ctx.example_kwargs)
    return found


@contextlib.contextmanager
def _watched(layer: nn.Module, fqn: str, found: dict[str, str]) -> Iterator[None]:
    """Give one layer, for a while, a class that notes reads from outside."""
    kind = type(layer)
    inside = False

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        inside = True
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            inside = False

    def read(self: nn.Module, name: str) -> Any:
        # parameters are no plain attributes: only __getattr__ finds them
        if name in ("weight", "bias") and not inside:
            found.setdefault(fqn, sys._getframe(1).f_code.co_qualname)
        return kind.__getattr__(self, name)

    members: dict[str, Callable[..., Any]] = {"forward": forward, "__getattr__": read}
    layer.__class__ = type(kind.__name__, (kind,), members)
    try:
        yield
    finally:
        layer.__class__ = kind
