"""The models that benchmarks build, and the data that judge them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def assets() -> Path:
    """Return the folder of real models: what EDGEOPT_ASSETS names, else one by the checkout."""
    return Path(os.environ.get("EDGEOPT_ASSETS", ROOT.parent / "shared" / "assets"))


def zoo() -> dict[str, dict[str, Any]]:
    """Return build options of the bundled pictures' classifiers, by the name shown."""
    return {name: {"model": name} for name in ("zoo:vit", "zoo:mobilenet")}


def mobilenetv2() -> dict[str, dict[str, Any]]:
    """Return build options of MobileNetV2 with ImageNet pictures."""
    weights = assets() / "mobilenetv2-imagenet" / "mobilenetv2_100.safetensors"
    data = f"{assets()}/imagenet-sample/images256_q90.zip?labels=wnids.json"
    model = f"timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@{weights}"
    return {"MobileNetV2 224": {"model": model, "calib": data, "eval": data}}


def resnet20() -> dict[str, dict[str, Any]]:
    """Return build options of ResNet-20 with CIFAR-10 pictures."""
    return {"ResNet-20": {"model": f"{ROOT}/tests/factories/resnet20.py:resnet20"}}
