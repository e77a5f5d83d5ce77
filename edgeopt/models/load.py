"""Load the model that is to be compiled, from wherever it comes."""

from __future__ import annotations

from edgeopt.errors import ConfigError, PluginError
from edgeopt.models.forms import FORMS
from edgeopt.models.from_factory import from_factory
from edgeopt.models.loaded import LoadedModel
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import MODELS
from edgeopt.registry.lookup import find, names
from edgeopt.userfile import split_spec


def load_model(spec: str) -> LoadedModel:
    """Load a model.

    - `zoo:NAME`: a bundled one, with its data (`edgeopt models`).
    - `FILE.py:FACTORY`: calls the function, which runs the file's code. It returns a
      `LoadedModel`, a module and its example arguments, or a mapping with `module`,
      `example_args` and any other argument of `from_module`. Data may be given as there.
    - `hf:DIR?OPTIONS`: a Transformers folder, see `edgeopt.models.from_transformers`.
    - `timm:NAME?OPTIONS@WEIGHTS`: see `edgeopt.models.from_timm`.
    - `FILE.pt2`: a program that `torch.export.save` wrote, see `edgeopt.models.from_program`.
    - `SOURCE:...`: what a plug-in's function of that name makes of it (`edgeopt.models`).

    Raises:
        ConfigError: If the form is not known.
        ModelError: If the model cannot be loaded, or its weights are not finite.
        DataError: If data that come with it are not what it takes.
        PluginError: If a plug-in's source does not import, or returns no `LoadedModel`.
    """
    source, colon, _ = spec.partition(":")
    if colon and source in names(MODELS):
        return _from_source(find(MODELS, source), spec)
    user = split_spec(spec)
    if user is not None:
        return from_factory(*user, spec)
    if spec.endswith(".pt2"):
        from edgeopt.models.from_program import load_program

        return load_program(spec)
    if spec.endswith(".py"):
        raise ConfigError(f"{spec}: say which function returns the model: {spec}:FACTORY")
    raise ConfigError(f"{spec}: not a model; use {FORMS}")


def _from_source(source: Entry, spec: str) -> LoadedModel:
    load = source.load()
    with source.guarded(spec):
        loaded = load(spec)
    if not isinstance(loaded, LoadedModel):
        raise PluginError(f"{source}: {spec}: is a {type(loaded).__name__}, not a LoadedModel")
    return loaded
