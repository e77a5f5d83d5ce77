"""Load the model that is to be compiled, from wherever it comes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from edgeopt.errors import ConfigError, ModelError, nearest
from edgeopt.models.loaded import LoadedModel, from_module
from edgeopt.userfile import load_function, split_spec

FORMS = "zoo:NAME, FILE.py:FACTORY, hf:DIR, timm:NAME@WEIGHTS or FILE.pt2"


def load_model(spec: str) -> LoadedModel:
    """Load a model.

    - `zoo:NAME`: a bundled one, with its data (`edgeopt models`).
    - `FILE.py:FACTORY`: calls the function, which runs the file's code. It returns a
      `LoadedModel`, a module and its example arguments, or a mapping with `module`,
      `example_args` and any other argument of `from_module`. Data may be given as there.
    - `hf:DIR?OPTIONS`: a Transformers folder, see `edgeopt.models.from_transformers`.
    - `timm:NAME?OPTIONS@WEIGHTS`: see `edgeopt.models.from_timm`.
    - `FILE.pt2`: a program that `torch.export.save` wrote, see `edgeopt.models.from_program`.

    Raises:
        ConfigError: If the form is not known.
        ModelError: If the model cannot be loaded, or its weights are not finite.
        DataError: If data that come with it are not what it takes.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "zoo" and colon:
        from edgeopt.models import zoo

        return zoo.load(rest)
    if kind == "timm" and colon:
        from edgeopt.models.from_timm import load_timm

        return load_timm(spec)
    if kind == "hf" and colon:
        from edgeopt.models.from_transformers import load_transformers

        return load_transformers(spec)
    user = split_spec(spec)
    if user is not None:
        return _from_factory(*user, spec)
    if spec.endswith(".pt2"):
        from edgeopt.models.from_program import load_program

        return load_program(spec)
    if spec.endswith(".py"):
        raise ConfigError(f"{spec}: say which function returns the model: {spec}:FACTORY")
    raise ConfigError(f"{spec}: not a model; use {FORMS}")


def _from_factory(file: Path, function: str, spec: str) -> LoadedModel:
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
