"""Names are found in what ships with edgeopt and in plug-ins alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeopt.api.formats import exporter_for, inspector_for
from edgeopt.contracts.kinds import from_json
from edgeopt.devices.profile import load_profile, profile_names
from edgeopt.devices.rules import load_rules
from edgeopt.errors import BundleError, ConfigError, PluginError, ProfileError
from edgeopt.models.load import load_model
from edgeopt.passes import by_name, shipped
from edgeopt.recipes.recipe import load_recipe, recipe_names
from edgeopt.registry.kinds import MODELS, PASSES, PROFILES, RECIPES
from edgeopt.registry.lookup import builtin, find, find_file, listed, names
from edgeopt.runtime_tests.inspection import runner_for
from tests.installing import install

SHELF = Path(__file__).resolve().parents[2] / "device_profiles"


def test_plugins_follow_what_ships_with_edgeopt(site: Path) -> None:
    ours = builtin(PASSES)
    install(site, "zeta", {"edgeopt.passes": {"b_pass": "zeta:B", "a_pass": "zeta:A"}})
    install(site, "Alpha.Two", {"edgeopt.passes": {"c_pass": "alpha:C"}}, version="2.1")
    found = listed(PASSES)
    assert found[: len(ours)] == ours
    assert [str(e) for e in found[len(ours) :]] == [
        "pass 'c_pass' of Alpha.Two 2.1 (alpha:C)",
        "pass 'a_pass' of zeta 1.0 (zeta:A)",
        "pass 'b_pass' of zeta 1.0 (zeta:B)",
    ]
    assert builtin(PASSES) == ours
    assert "zeta" not in [p.__module__ for p in shipped()]


def test_the_nearest_name_may_be_a_plugins(site: Path) -> None:
    install(site, "zeta", {"edgeopt.recipes": {"zeta-int8": "zeta:recipe"}})
    with pytest.raises(
        ConfigError, match=r"recipe 'zeta-int9' is not known \(did you mean 'zeta-i"
    ):
        load_recipe("zeta-int9")
    assert "zeta-int8" in names(RECIPES)
    assert "zeta-int8" not in recipe_names()


def test_a_plugin_that_cannot_be_read_might_have_the_unknown_name(site: Path) -> None:
    install(site, "damaged", "[edgeopt.passes]\nfoo =\n= bar\n")
    with pytest.raises(ConfigError, match=r"; plug-in damaged 1\.0: its entry points cannot be"):
        find(PASSES, "baz")
    install(site, "misspelt", {"edgeopt.pass": {"mine": "misspelt:Mine"}}, version="2.0")
    assert find(PASSES, "capture").plugin is None


def test_a_name_of_two_plugins_is_refused_when_it_is_asked_for(site: Path) -> None:
    for package in ("acme", "zeta"):
        points = {"edgeopt.passes": {"fine": f"{package}:Fine", f"of_{package}": f"{package}:Own"}}
        install(site, package, points)
    told = "pass 'fine' is claimed by acme 1.0 and zeta 1.0; uninstall all but one"
    with pytest.raises(PluginError, match=f"^{re.escape(told)}$"):
        by_name("fine")
    assert find(PASSES, "of_acme").plugin != find(PASSES, "of_zeta").plugin
    assert names(PASSES).count("fine") == 1
    assert by_name("capture").name == "capture"


def test_a_plugin_cannot_take_a_name_of_edgeopt(site: Path) -> None:
    install(site, "acme", {"edgeopt.profiles": {"orin": "acme:orin"}})
    told = r"^profile 'orin' is claimed by edgeopt itself and acme 1\.0; uninstall all but one$"
    with pytest.raises(PluginError, match=told):
        load_profile("orin")
    assert "orin" in profile_names()
    assert load_profile("host").name == "host"


def test_the_error_is_the_callers() -> None:
    with pytest.raises(ProfileError, match="profile 'nosuch' is not known"):
        find(PROFILES, "nosuch", error=ProfileError)
    with pytest.raises(BundleError, match="contract kind 'nosuch' is not known"):
        from_json([{"kind": "nosuch"}])


def test_a_path_is_taken_as_it_is_or_from_a_folder(tmp_path: Path) -> None:
    assert find_file(PROFILES, "x/y.toml", error=ProfileError) == Path("x/y.toml")
    found = find_file(PROFILES, "y.toml", beside=tmp_path, error=ProfileError)
    assert found == tmp_path / "y.toml"
    whole = find_file(PROFILES, str(tmp_path / "z.toml"), beside=Path("/"), error=ProfileError)
    assert whole == tmp_path / "z.toml"


def shelf(site: Path, name: str) -> None:
    """Install a package with a profile, a rule set and a recipe that call themselves `name`."""
    source = """
        from pathlib import Path

        def profile():
            return Path(__file__).with_name("p.toml")

        def rules():
            return Path(__file__).with_name("r.toml")

        def recipe():
            return Path(__file__).with_name("c.toml")
    """
    rules = (SHELF / "rules" / "onnxruntime-x86.toml").read_text(encoding="utf-8")
    files = {
        "acme_shelf/__init__.py": source,
        "acme_shelf/p.toml": f"""
            name = "{name}"
            title = "A board"
            default_recipe = "acme-one"

            [[targets]]
            name = "onnxruntime"
            format = "onnx"
            runtime = "onnxruntime"
            rules = "acme-one"
        """,
        "acme_shelf/r.toml": rules.replace('name = "onnxruntime-x86"', f'name = "{name}"', 1),
        "acme_shelf/c.toml": f"""
            name = "{name}"
            summary = "Nothing."
            passes = [{{name = "capture"}}]
        """,
    }
    points = {
        f"edgeopt.{plural}": {"acme-one": f"acme_shelf:{function}"}
        for plural, function in (("profiles", "profile"), ("rules", "rules"), ("recipes", "recipe"))
    }
    install(site, "acme", points, files)


def test_a_plugins_files_are_found_by_name(site: Path) -> None:
    shelf(site, "acme-one")
    profile = load_profile("acme-one")
    assert profile.targets[0].rules == "acme-one"
    assert load_rules("acme-one").isa == "x86-64"
    assert [step.name for step in load_recipe(profile.default_recipe).passes] == ["capture"]


def test_a_plugins_file_calls_itself_as_its_entry_point_does(site: Path) -> None:
    shelf(site, "acme-two")
    for noun, load in (("rule set", load_rules), ("recipe", load_recipe)):
        told = (
            rf"^{noun} 'acme-one' of acme 1\.0 \(acme_shelf:\w+\): its file calls itself 'acme-tw"
        )
        with pytest.raises(PluginError, match=told):
            load("acme-one")
    with pytest.raises(
        PluginError, match=r"^profile 'acme-one' of acme 1\.0 .* 'acme-two'; the ent"
    ):
        load_profile("acme-one")
    # by path there is no other name
    assert load_recipe(str(site / "acme_shelf" / "c.toml")).name == "acme-two"


MODELS_OF = """
    from edgeopt.errors import ModelError

    def good(spec):
        import torch
        from edgeopt.models.from_module import from_module
        return from_module(torch.nn.Linear(2, 2), torch.zeros(2, 2), source=spec)

    def refuses(spec):
        raise ModelError(f"{spec}: no such model")

    def fails(spec):
        return {}[spec]

    def bare(spec):
        return 3
"""


def test_a_plugins_source_of_models(site: Path) -> None:
    functions = ("good", "refuses", "fails", "bare")
    points = {"edgeopt.models": {name: f"acme_models:{name}" for name in functions}}
    install(site, "acme", points, {"acme_models.py": MODELS_OF})
    assert names(MODELS)[-4:] == ("bare", "fails", "good", "refuses")
    assert load_model("good:anything").source == "good:anything"
    with pytest.raises(Exception, match=r"^refuses:x: no such model$"):
        load_model("refuses:x")
    told = r"^model source '\w+' of acme 1\.0 \(acme_models:\w+\): "
    with pytest.raises(PluginError, match=f"{told}fails:x: KeyError: 'fails:x'$"):
        load_model("fails:x")
    with pytest.raises(PluginError, match=f"{told}bare:x: is a int, not a LoadedModel$"):
        load_model("bare:x")


def test_a_plugins_format_needs_all_three(site: Path) -> None:
    source = """
        class Exporter:
            format = "acme"

        class Runner:
            runtime = "acme"
    """
    points = {
        "edgeopt.exporters": {"acme": "acme_format:Exporter"},
        "edgeopt.runners": {"acme": "acme_format:Runner"},
    }
    install(site, "acme", points, {"acme_format.py": source})
    with pytest.raises(PluginError, match=r"^format 'acme' of acme 1\.0 .*: is no Exporter$"):
        exporter_for("acme")
    with pytest.raises(
        PluginError, match=r"^runner 'acme' of acme 1\.0 .*: lacks load, unavailable, "
    ):
        runner_for("acme")
    with pytest.raises(ConfigError, match=r"^inspector 'acme' is not known"):
        inspector_for("acme")
