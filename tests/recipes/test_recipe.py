"""Recipes: shipped ones work, settings are read strictly, mistakes name the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import ConfigError
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.recipes.recipe import Recipe, RecipeStep, load_recipe, parse_settings, recipe_names

STEPS = (RecipeStep("fold_batch_norm"), RecipeStep("prune_nm", {"n": 1}), RecipeStep("capture"))
RECIPE = Recipe("mine", "A summary.", STEPS)


def options(recipe: Recipe, *settings: str) -> dict[str, dict[str, Any]]:
    return {p.name: p.options() for p in recipe.instantiate(settings)}


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_a_possible_order_with_a_summary(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary.endswith(".")
    pipeline = Pipeline(recipe.instantiate())
    assert [p.name for p in pipeline.passes] == [step.name for step in recipe.passes]
    assert "capture" in [step.name for step in recipe.passes]


def test_the_recipes_that_ship() -> None:
    assert set(recipe_names()) >= {"float", "int8", "low-rank-int8", "sparse-int8", "vit-2:4-int8"}


def test_options_of_a_recipe_go_over_the_defaults_and_settings_over_both() -> None:
    assert options(RECIPE)["prune_nm"]["n"] == 1
    assert options(RECIPE)["prune_nm"]["m"] == 4
    assert options(RECIPE, "prune_nm.n=3", "prune_nm.m=8")["prune_nm"]["n"] == 3
    # the last one counts
    assert options(RECIPE, "prune_nm.n=3", "prune_nm.n=2")["prune_nm"]["n"] == 2
    assert RECIPE.passes[1].options == {"n": 1}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a.b=1", 1),
        ("a.b=1.5", 1.5),
        ("a.b=true", True),
        ('a.b="x"', "x"),
        ("a.b=percentile", "percentile"),
        ('a.b=["x", "y"]', ["x", "y"]),
        ("a.b = 2", 2),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=blocks.*", "blocks.*"),
    ],
)
def test_a_setting_is_toml_or_a_bare_word(setting: str, value: object) -> None:
    assert parse_settings([setting]) == {"a": {"b": value}}


@pytest.mark.parametrize("setting", ["a", "a=1", "a.b", "=1", ".b", "a.=1"])
def test_another_form_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--set takes PASS\.OPTION=VALUE, not "):
        parse_settings([setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prune_mn.n=2", "pass 'prune_mn' is not known (did you mean 'prune_nm'?)"),
        ("plan.weight_bits=7", "--set plan...: recipe mine does not run plan"),
        (
            "prune_nm.nn=2",
            "recipe mine, prune_nm: unknown key 'nn' (did you mean 'n'?)",
        ),
        ("prune_nm.n=two", "recipe mine, prune_nm: n: Input should be a valid integer"),
        ("prune_nm.n=4", "recipe mine, prune_nm: needs 0 < n < m, not 4:4"),
        ("capture.dynamic_batch=maybe", "recipe mine, capture: dynamic_batch: Input should be"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RECIPE.instantiate([setting])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


GOOD = 'name = "mine"\nsummary = "S."\n[[passes]]\nname = "capture"\n'


def test_a_recipe_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "[passes.options]\ndynamic_batch = false\n")
    recipe = load_recipe(str(path))
    assert options(recipe) == {"capture": {"dynamic_batch": False}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("summary", "sumary"), "unknown key 'sumary' (did you mean 'summary'?)"),
        (('name = "capture"', 'nam = "capture"'), "unknown key 'nam' in passes.0"),
        (('summary = "S."', 'summary = "S."\nschema = 9'), "schema 9; this edgeopt reads 1"),
        (("[[passes]]", "[[passes"), "not valid TOML"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_pass_is_refused_with_the_nearest() -> None:
    recipe = Recipe("mine", "S.", (RecipeStep("captrue"),))
    with pytest.raises(ConfigError, match=r"pass 'captrue' is not known \(did you mean 'capture'"):
        recipe.instantiate()


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"recipe 'int-8' is not known \(did you mean 'int8'\?\)"):
        load_recipe("int-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe("nowhere.toml")
