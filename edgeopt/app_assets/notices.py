"""Where the model, its data and its runtimes come from, and under which licences.

What is not known is said to be unknown: it is for whoever ships the app to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edgeopt.artifacts.manifest import Manifest
from edgeopt.models.zoo.catalogue import CATALOGUE

_DIGITS = (
    "not established here; see the page of the data set, "
    "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
)
_DATA: Mapping[str, str] = {
    # zoo model: licence of what it was trained on, as NOTICE has it
    "vit": _DIGITS,
    "mobilenet": _DIGITS,
    "bytelm": "Python Software Foundation License Version 2 (the documentation of Python)",
}
UNKNOWN = "unknown"


def plain_model(model: str) -> str:
    """Return a model's name without the folders of whoever compiled it.

    `/home/me/nets/net.py:make` becomes `net.py:make`, `timm:x@/data/w.safetensors` becomes
    `timm:x@w.safetensors`.
    """
    return re.sub(r"(^|[@:=])[^@:=]*[/\\](?=[^/\\])", r"\1", model.rstrip("/\\"))


def text(manifest: Manifest, runtimes: Iterable[tuple[str, str]]) -> str:
    """Return the notices of a bundle.

    Args:
        manifest: The bundle's.
        runtimes: (name, licence) of what runs the chosen artifacts; repeated ones are told once.
    """
    lines = [*_model(manifest), ""]
    for adapter in manifest.adapters:
        lines += [
            f"Adapter {plain_model(adapter)}, fused into the model",
            f"Licence: {UNKNOWN}",
            "",
        ]
    lines += ["Runtimes that the app or the device brings"]
    lines += [f"- {name}: {licence}" for name, licence in dict.fromkeys(runtimes)]
    return "\n".join(lines) + "\n"


def _model(manifest: Manifest) -> list[str]:
    kind, _, name = manifest.model.partition(":")
    shown = plain_model(manifest.model)
    if kind == "zoo" and name in CATALOGUE:
        entry = CATALOGUE[name]
        return [
            f"Model {shown}: {entry.summary}",
            f"Source: {entry.source}",
            "Licence: that of edgeopt, which the weights are part of",
            f"Trained on: {entry.data}",
            f"Licence of the data: {_DATA.get(name, UNKNOWN)}",
        ]
    return [
        f"Model {shown}",
        f"Licence: {UNKNOWN}. edgeopt was given this model and cannot tell who may ship it; ask "
        "whoever made its weights.",
    ]
