"""Models from a Python file's factory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from edgeopt.errors import ModelError, nearest
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel
from edgeopt.userfile import load_function


def from_factory(file: Path, function: str, spec: str) -> LoadedModel:
    value = load_function(file, function, error=ModelError)()
    if isinstance(value, LoadedModel):
        return value
    if isinstance(value, nn.Module):
        raise ModelError(f"{spec}: returned a module alone; return (module, example_args)")
    if isinstance(value, (tuple, list)) and len(value) in (2, 3):
        value = dict(zip(("module", "example_args", "example_kwargs"), value, strict=False))
    if not isinstance(value, Mapping) or not isinstance(value.get("module"), nn.Module):
        raise ModelError(
            f"{spec}: returned {type(value).__name__}; return (module, example_args), or a mapping "
            "with module, example_args, ..."
        )
    known = set(inspect.signature(from_module).parameters) - {"copy", "source"}
    for key in value:
        if key not in known:
            raise ModelError(f"{spec}: unknown key {key!r}{nearest(str(key), known)}")
    options = {"name": f"{file.stem}-{function}" if function != file.stem else function, **value}
    return from_module(**options, source=spec, copy=False)
