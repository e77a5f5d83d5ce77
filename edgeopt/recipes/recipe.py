"""Recipes: which passes run, in which order, with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edgeopt.errors import ConfigError, nearest
from edgeopt.pipeline.compiler_pass import Pass

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class RecipeStep:
    """One pass of a recipe.

    Attributes:
        name: The pass's name.
        options: Its options; those left out keep their defaults.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An order of passes. The legalizations of a target follow by themselves.

    Attributes:
        name: The recipe's name.
        summary: What it does, in one sentence.
        passes: The steps in order.
        keep_float: Address globs that stay float.
    """

    name: str
    summary: str
    passes: tuple[RecipeStep, ...]
    keep_float: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION

    def instantiate(self, settings: Sequence[str] = ()) -> tuple[Pass[Any], ...]:
        """Make the passes, with `pass.option=value` settings on top of the recipe's options.

        Raises:
            ConfigError: For an unknown pass or option, or a value of the wrong type.
        """
        from edgeopt.files import parse
        from edgeopt.passes import by_name

        overrides = parse_settings(settings)
        present = {step.name for step in self.passes}
        for name in overrides:
            by_name(name)
            if name not in present:
                raise ConfigError(
                    f"--set {name}...: recipe {self.name} does not run {name}"
                    f"{nearest(name, present)}"
                )
        passes = []
        for step in self.passes:
            type_ = by_name(step.name)
            options = {**step.options, **overrides.get(step.name, {})}
            config: Any = parse(
                options, type_.config_type, where=f"recipe {self.name}, {step.name}"
            )
            passes.append(type_(config))
        return tuple(passes)


def parse_settings(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read `pass.option=value`; the value is TOML, or a bare word.

    Raises:
        ConfigError: For any other form.
    """
    import tomllib

    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        name, dot, option = key.strip().partition(".")
        if not equals or not dot or not option:
            raise ConfigError(f"--set takes PASS.OPTION=VALUE, not {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        found.setdefault(name, {})[option] = value
    return found


def _folder() -> Path:
    return Path(str(resources.files("edgeopt.recipes")))


def _file(name: str) -> Path:
    # a colon, as in 2:4, is no legal file name everywhere
    return _folder() / f"{name.replace(':', '_')}.toml"


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that ship with edgeopt."""
    return tuple(sorted(path.stem.replace("_", ":") for path in _folder().glob("*.toml")))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a shipped recipe by name, or one from a TOML file.

    Raises:
        ConfigError: For an unknown name (the nearest is suggested), or a file that does not fit.
    """
    from edgeopt.files import read_toml

    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        if name_or_path not in recipe_names():
            raise ConfigError(
                f"recipe {name_or_path!r} is not known{nearest(name_or_path, recipe_names())}"
            )
        path = _file(name_or_path)
    recipe = read_toml(path, Recipe)
    if recipe.schema != SCHEMA_VERSION:
        raise ConfigError(f"{path}: schema {recipe.schema}; this edgeopt reads {SCHEMA_VERSION}")
    return recipe
