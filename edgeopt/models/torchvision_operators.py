"""Let libraries that import torchvision import beside one that was built for another torch."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_stubs: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision where it is installed, so that a later import of it works.

    Its import fails where its compiled operators do not load (a CPU build of torch beside it).
    Models that we compile never call them, so declaring two of them is enough.

    Raises:
        RuntimeError: If it fails for another reason.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as failure:
        if "torchvision::nms" not in str(failure):
            raise
        import torch

        library: Any = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _stubs.append(library)
        importlib.import_module("torchvision")
