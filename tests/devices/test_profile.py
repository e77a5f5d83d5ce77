"""Profiles and rule sets: what ships is complete and sourced; what does not fit is one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgeopt.devices.profile import (
    DeviceProfile,
    LowRankRule,
    Protocol,
    Target,
    load_profile,
    profile_names,
)
from edgeopt.devices.rules import Compute, OperatorRule, load_rules
from edgeopt.errors import ConfigError, ProfileError
from edgeopt.limits.limit import Limit
from edgeopt.limits.quantities import old_name_notes
from edgeopt.passes import by_name
from edgeopt.quant.spec import Granularity
from edgeopt.recipes.recipe import recipe_names
from tests.small_models import TENSORRT, X86

# --- what ships ----------------------------------------------------------------------------------


@pytest.fixture(params=profile_names())
def profile(request: pytest.FixtureRequest) -> DeviceProfile:
    return load_profile(request.param)


def test_the_profiles_that_ship() -> None:
    assert {"a100", "host", "orin"} <= set(profile_names())


def test_a_profile_is_named_after_its_file_and_told_in_words(profile: DeviceProfile) -> None:
    assert profile.name in profile_names()
    assert len(profile.title) > 10
    assert profile.default_recipe in recipe_names()
    assert profile.targets


def test_every_number_about_a_device_has_a_source(profile: DeviceProfile) -> None:
    for fact in profile.facts:
        assert fact.source.strip(), fact.name
        assert fact.unit.strip(), fact.name
        assert fact.value > 0, fact.name
    for limit in profile.limits:
        assert limit.source.strip(), limit.name
    if profile.sparsity is not None:
        assert profile.sparsity.source.strip()
        assert profile.sparsity.n < profile.sparsity.m
    assert len(profile.low_rank.source) > 20
    assert profile.low_rank.multiple in (8, 16, 32)
    assert 0 < profile.low_rank.saving < 1
    names = [fact.name for fact in profile.facts]
    assert len(set(names)) == len(names)


def test_what_is_not_known_is_said(profile: DeviceProfile) -> None:
    assert profile.unknown
    assert all(len(text) > 20 for text in profile.unknown)


def test_every_target_has_rules_whose_legalizations_exist(profile: DeviceProfile) -> None:
    for target in (*profile.targets, *profile.stand_ins):
        rules = load_rules(target.rules)
        assert rules.name == target.rules
        assert rules.runtime == target.runtime
        for name in rules.legalize:
            assert by_name(name).from_phase.name == "QUANTIZED"


@pytest.mark.parametrize("name", [X86, TENSORRT])
def test_a_rule_set_has_a_source_and_knows_its_operators(name: str) -> None:
    rules = load_rules(name)
    assert rules.source.strip()
    assert rules.weight.granularity is Granularity.CHANNEL
    assert rules.weight.narrow
    assert rules.rule("linear").compute is Compute.WEIGHTED
    assert rules.rule("conv2d").compute is Compute.WEIGHTED
    assert rules.rule("erfinv").compute is Compute.FLOAT
    assert rules.rule("erfinv").note == "no integer kernel"
    for operator, rule in rules.operators.items():
        if rule.compute is Compute.FLOAT:
            assert rule.note, operator  # why it stays float is shown to the user


def test_targets_are_found_by_name() -> None:
    orin = load_profile("orin")
    assert orin.target("onnxruntime") is orin.stand_ins[0]
    with pytest.raises(ProfileError, match=r"no target 'tensort' \(did you mean 'tensorrt'\?\)"):
        orin.target("tensort")


# --- profiles that do not fit --------------------------------------------------------------------

GOOD = """
name = "mine"
title = "My device"
default_recipe = "int8"
[[targets]]
name = "cpu"
format = "onnx"
runtime = "onnxruntime"
rules = "onnxruntime-x86"
[[limits]]
name = "drop"
maximum = 1.0
"""


def load(tmp_path: Path, text: str) -> DeviceProfile:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_profile(str(path))


def test_a_profile_of_ones_own_is_read(tmp_path: Path) -> None:
    profile = load(tmp_path, GOOD)
    assert profile.targets == (Target("cpu", "onnx", "onnxruntime", "onnxruntime-x86"),)
    assert profile.limits == (Limit("drop", maximum=1.0),)
    assert profile.low_rank == LowRankRule(8, 0, 0.0, "edgeopt's own default")


def test_a_limit_of_an_old_name_is_read(tmp_path: Path) -> None:
    profile = load(tmp_path, GOOD.replace('name = "drop"', 'name = "latency_p50"'))
    assert [limit.text for limit in profile.limits] == ["latency_p50_ms<=1"]


def test_no_profile_that_ships_has_an_old_name(profile: DeviceProfile) -> None:
    assert not old_name_notes(limit.name for limit in profile.limits)


BAD = {
    "an unknown key": ("title =", "titel =", "unknown key 'titel' (did you mean 'title'?)"),
    "an unknown key of a target": (
        'format = "onnx"',
        'fromat = "onnx"',
        "unknown key 'fromat' in targets.0 (did you mean 'format'?)",
    ),
    "an unknown limit": (
        'name = "drop"',
        'name = "dorp"',
        "limit 'dorp' is not known (did you mean 'drop'?)",
    ),
    "a rule of ranks that cannot be": (
        '[[limits]]\nname = "drop"',
        '[low_rank]\nsaving = 1.0\nsource = "x"\n[[limits]]\nname = "drop"',
        "saving from 0 to below 1",
    ),
    "a limit without a bound": (
        "maximum = 1.0",
        "",
        "limit drop: give either maximum or minimum",
    ),
    "a limit that is no number": (
        "maximum = 1.0",
        "maximum = nan",
        "limit 'drop<=nan': 'nan' is not a number",
    ),
    "a limit with two bounds": (
        "maximum = 1.0",
        "maximum = 1.0\nminimum = 0.0",
        "limit drop: give either maximum or minimum",
    ),
    "unknown rules": (
        '"onnxruntime-x86"',
        '"onnxruntime-x68"',
        "rule set 'onnxruntime-x68' is not known (did you mean 'onnxruntime-x86'?)",
    ),
    "a wrong type": ("maximum = 1.0", 'maximum = "much"', "limits.0.maximum: Input should be"),
    "an unknown float type": (
        'runtime = "onnxruntime"',
        'runtime = "onnxruntime"\nfloat_type = "bfloat16"',
        "float_type is float32 or float16, not 'bfloat16'",
    ),
    "no samples": (
        "[[limits]]",
        "[targets.protocol]\nsamples = 0\n[[limits]]",
        "threads, samples, block and batch are at least 1",
    ),
    "another schema": (
        'name = "mine"',
        'name = "mine"\nschema = 2',
        "schema 2; this edgeopt reads 1",
    ),
    "one name twice": (
        "[[limits]]",
        '[[targets]]\nname = "cpu"\nformat = "onnx"\nruntime = "r"\nrules = "tensorrt"\n[[limits]]',
        "target names repeat: cpu, cpu",
    ),
    "no TOML": ("[[limits]]", "[[limits]", "not valid TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_profile_that_does_not_fit_is_one_line(case: str, tmp_path: Path) -> None:
    old, new, message = BAD[case]
    assert old in GOOD
    with pytest.raises(ProfileError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_profile_without_targets_is_refused(tmp_path: Path) -> None:
    text = 'name = "mine"\ntitle = "t"\ndefault_recipe = "int8"\ntargets = []\n'
    with pytest.raises(ProfileError, match="profile mine: has no target"):
        load(tmp_path, text)


def test_an_unknown_profile_is_refused_with_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"profile 'orni' is not known \(did you mean 'orin'\?"):
        load_profile("orni")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile("nowhere.toml")


# --- rules, protocols ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: OperatorRule(Compute.WEIGHTED, output="int4"),
        lambda: OperatorRule(Compute.WEIGHTED, reads="int8"),
        lambda: Protocol(threads=0),
        lambda: Protocol(warmup=-1),
    ],
)
def test_a_rule_or_protocol_that_cannot_be_meant_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_shipped_files_use_every_key_that_they_have() -> None:
    # `load_profile` refuses unknown keys; here: the file's own name is its `name`
    folder = Path(__file__).resolve().parents[2] / "device_profiles"
    for path in sorted(folder.glob("**/*.toml")):
        assert tomllib.loads(path.read_text(encoding="utf-8"))["name"] == path.stem
