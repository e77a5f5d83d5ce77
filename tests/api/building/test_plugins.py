"""Which plug-ins a build uses, and where they are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from edgeopt.api.build import run_build
from edgeopt.api.building.inputs import Inputs, resolve
from edgeopt.api.building.lock import Lock, locked_options
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.plugins import check_plugins, plugins_of
from edgeopt.contracts.contract import Contract, FileTensors
from edgeopt.errors import PluginError
from edgeopt.ir.digests import key_of
from edgeopt.models.from_module import from_module
from edgeopt.progress import no_progress
from edgeopt.registry.plugins import Plugin, installed
from tests.installing import install

X = torch.linspace(-1, 1, 16 * 4).reshape(16, 4)
SHELF = Path(__file__).resolve().parents[3] / "device_profiles"
PROFILE = """
name = "board"
title = "A board"
default_recipe = "float"

[[targets]]
name = "onnxruntime"
format = "onnx"
runtime = "onnxruntime"
rules = "{rules}"
"""


def options_of(profile: str | Path, **options: Any) -> BuildOptions:
    torch.manual_seed(0)
    model = from_module(torch.nn.Sequential(torch.nn.Linear(4, 2)).eval(), X[:2])
    options.setdefault("recipe", "float")
    return BuildOptions(model, str(profile), **options)


def resolved(profile: str | Path, **options: Any) -> Inputs:
    return resolve(options_of(profile, **options), no_progress, None)


def shelf(folder: Path, name: str = "board-rules", title: str = "A board") -> Path:
    """Write a profile and its rule set; return the profile's path."""
    (folder / "rules").mkdir(parents=True)
    text = (SHELF / "rules" / "onnxruntime-x86.toml").read_text(encoding="utf-8")
    text = text.replace('name = "onnxruntime-x86"', f'name = "{name}"', 1)
    (folder / "rules" / "own.toml").write_text(text, encoding="utf-8")
    profile = PROFILE.format(rules="rules/own.toml").replace("A board", title)
    (folder / "board.toml").write_text(profile, encoding="utf-8")
    return folder / "board.toml"


def test_a_profile_and_its_rules_have_one_key_wherever_they_lie(tmp_path: Path) -> None:
    first = resolved(shelf(tmp_path / "one"))
    assert first.job.profile.targets[0].rules == str(tmp_path / "one" / "rules" / "own.toml")
    second = resolved(shelf(tmp_path / "two"))
    assert second.made_of.hashes == first.made_of.hashes
    assert second.made_of.build_key == first.made_of.build_key
    other_rules = resolved(shelf(tmp_path / "three", name="other-rules"))
    assert other_rules.made_of.hashes["profile"] != first.made_of.hashes["profile"]
    other_title = resolved(shelf(tmp_path / "four", title="Another board"))
    assert other_title.made_of.build_key != first.made_of.build_key


def test_a_recipe_has_one_key_wherever_it_lies(tmp_path: Path) -> None:
    recipe = """
        name = "mine"
        summary = "Captures."
        passes = [{name = "capture"}]
    """
    keys = set()
    for name, more in (("a", ""), ("b", ""), ("c", "keep_float = ['0']")):
        (tmp_path / f"{name}.toml").write_text(f"{recipe}\n{more}", encoding="utf-8")
        keys.add(resolved("host", recipe=str(tmp_path / f"{name}.toml")).made_of.build_key)
    assert len(keys) == 2, "what stays float decides bytes"


PLUGIN = """
    from edgeopt.limits.counted import Counted
    from edgeopt.limits.quantities import Sense
    from edgeopt.passes.capture.capture import Capture
    from edgeopt.passes.prepare.tensor_scalars import TensorScalars
    from pathlib import Path

    class First(Capture):
        name = "acme_capture"

    class Prepare(TensorScalars):
        name = "acme_prepare"

    class Tensors(Counted):
        name, unit, sense, about = "acme_tensors", "count", Sense.AT_MOST, "stored tensors"

        def count(self, told):
            return float(len(told.sizes))

    def rules():
        return Path(__file__).with_name("acme_rules.toml")
"""


def acme(site: Path) -> None:
    rules = (SHELF / "rules" / "onnxruntime-x86.toml").read_text(encoding="utf-8")
    rules = rules.replace('name = "onnxruntime-x86"', 'name = "acme-rules"', 1)
    rules = rules.replace("legalize =", 'prepare = ["acme_prepare"]\nlegalize =', 1)
    points = {
        "edgeopt.passes": {"acme_capture": "acme:First", "acme_prepare": "acme:Prepare"},
        "edgeopt.rules": {"acme-rules": "acme:rules"},
        "edgeopt.quantities": {"acme_tensors": "acme:Tensors"},
    }
    install(site, "acme", points, {"acme.py": PLUGIN, "acme_rules.toml": rules})


def gives(found: Inputs) -> list[dict[str, list[str]]]:
    plugins = plugins_of(found.made_of.asked, ())
    return [{kind: list(names) for kind, names in p.gives.items()} for p in plugins]


def test_what_of_a_plugin_is_used_is_told_and_nothing_else(site: Path, tmp_path: Path) -> None:
    acme(site)
    assert gives(resolved("host")) == []
    assert gives(resolved("host", limits=("acme_tensors<=9",))) == [
        {"quantities": ["acme_tensors"]}
    ]
    board = tmp_path / "board.toml"
    board.write_text(PROFILE.format(rules="acme-rules"), encoding="utf-8")
    assert gives(resolved(board)) == [{"passes": ["acme_prepare"], "rules": ["acme-rules"]}]
    recipe = tmp_path / "recipe.toml"
    steps = 'passes = [{name = "acme_capture"}]'
    recipe.write_text(f'name = "r"\nsummary = "s"\n{steps}', encoding="utf-8")
    assert gives(resolved("host", recipe=str(recipe))) == [{"passes": ["acme_capture"]}]


def test_the_key_holds_a_plugin_only_where_it_is_used(site: Path, tmp_path: Path) -> None:
    before = resolved("host").made_of
    parts = {
        "options": locked_options(options_of("host")),
        "hashes": before.hashes,
        "tools": before.tools,
        "machine": before.machine,
    }
    assert before.build_key == key_of(parts), "as it was before there were plug-ins"
    acme(site)
    assert resolved("host").made_of == before
    board = tmp_path / "board.toml"
    board.write_text(PROFILE.format(rules="acme-rules"), encoding="utf-8")
    used = resolved(board).made_of.build_key
    (site / "acme.py").write_text(f"{(site / 'acme.py').read_text()}\nMORE = 1\n")
    edited = resolved(board).made_of
    assert edited.build_key != used
    assert "plugins" not in edited.hashes, "an edited plug-in is another tool, not another part"


@dataclasses.dataclass(frozen=True)
class Quiet(Contract):
    """Always holds."""

    fqn: str
    kind: ClassVar[str] = "quiet"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.fqn,)

    def check_module(self, module: Any) -> str | None:
        return None

    def check_programs(self, programs: Any) -> str | None:
        return None

    def check_file(self, file: FileTensors) -> str | None:
        return None


LEAVES = """
    import dataclasses

    from edgeopt.passes.fold.fold_batch_norm import FoldBatchNorm
    from tests.api.building.test_plugins import Quiet

    class Leaves(FoldBatchNorm):
        name = "leaves"

        def run(self, state, ctx):
            found = super().run(state, ctx)
            state = dataclasses.replace(found.state, contracts=(Quiet("0.weight"),))
            return dataclasses.replace(found, state=state)
"""
RECIPE = """
name = "leaving"
summary = "Leaves a contract."
passes = [{name = "leaves"}, {name = "capture"}]
"""


@pytest.mark.parametrize("known", [False, True])
def test_a_contract_that_nobody_could_read_back_is_refused(
    known: bool, site: Path, tmp_path: Path
) -> None:
    install(site, "acme", {"edgeopt.passes": {"leaves": "acme:Leaves"}}, {"acme.py": LEAVES})
    if known:  # by a package that the pass's own does not require
        points = {"edgeopt.contracts": {"quiet": "tests.api.building.test_plugins:Quiet"}}
        install(site, "quiet", points)
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    module = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    options = BuildOptions(
        from_module(module, X[:2]),
        "host",
        str(tmp_path / "r.toml"),
        latency=False,
        out=tmp_path / "out",
    )
    if not known:
        with pytest.raises(PluginError, match=r"^contract kind 'quiet' is not known"):
            run_build(options)
        assert not (tmp_path / "out").exists()
        return
    run_build(options)
    for name in ("manifest.json", "edgeopt.lock"):
        plugins = json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))["plugins"]
        assert [(p["package"], p["gives"]) for p in plugins] == [
            ("acme", {"passes": ["leaves"]}),
            ("quiet", {"contracts": ["quiet"]}),
        ]


FAILS = """
    from edgeopt.exporters.base import Exporter

    class Fails(Exporter):
        format = "acme-fails"

        def unsupported(self, request):
            return []

        def export(self, request, folder):
            return {}[request.name]
"""


def test_an_exporter_that_fails_names_itself(site: Path, tmp_path: Path) -> None:
    points = {"edgeopt.exporters": {"acme-fails": "acme:Fails"}}
    install(site, "acme", points, {"acme.py": FAILS})
    board = tmp_path / "board.toml"
    text = PROFILE.format(rules="onnxruntime-x86").replace('"onnx"', '"acme-fails"')
    board.write_text(text, encoding="utf-8")
    told = r"^format 'acme-fails' of acme 1\.0 \(acme:Fails\): fails: KeyError: 'onnxruntime'$"
    with pytest.raises(PluginError, match=told):
        run_build(options_of(board, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def lock(*plugins: Plugin) -> Lock:
    return Lock({}, (), {}, {}, {}, {}, "", plugins=plugins)


def test_a_lock_asks_for_its_plugins(site: Path) -> None:
    acme(site)
    (found,) = [p for p in installed() if p.distribution.name == "acme"]
    (then,) = plugins_of(found.entries, ())
    assert check_plugins(lock()) == check_plugins(lock(then)) == ()
    (told,) = check_plugins(lock(dataclasses.replace(then, version="0.9")))
    assert told.startswith(
        "not the plug-ins of the lock, so bytes may differ: acme 0.9 made it, 1.0"
    )
    shutil.rmtree(site / "acme-1.0.dist-info")
    installed.cache_clear()
    with pytest.raises(
        PluginError, match=r"^the lock cannot be met: acme 1\.0 is not installed; it "
    ):
        check_plugins(lock(then))
