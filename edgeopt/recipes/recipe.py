"""Recipes: which passes run, in which order, with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.errors import ConfigError, nearest
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.registry.kinds import PASSES, RECIPES
from edgeopt.registry.lookup import builtin, check_name, find, find_file

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
            find(PASSES, name)
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


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that ship with edgeopt."""
    return tuple(sorted(entry.name for entry in builtin(RECIPES)))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a recipe by name, or one from a TOML file.

    Raises:
        ConfigError: For an unknown name (the nearest is suggested), or a file that does not fit.
        PluginError: If a plug-in names no file.
    """
    from edgeopt.files import read_toml

    path = find_file(RECIPES, name_or_path, error=ConfigError)
    recipe = read_toml(path, Recipe)
    if recipe.schema != SCHEMA_VERSION:
        raise ConfigError(f"{path}: schema {recipe.schema}; this edgeopt reads {SCHEMA_VERSION}")
    check_name(RECIPES, name_or_path, recipe.name)
    return recipe
