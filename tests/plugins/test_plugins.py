"""A plug-in is built to a wheel, installed into a fresh environment, used, broken and taken away.

The environment has edgeopt's own wheel; heavy dependencies come from the one that runs the tests.
Each child process runs several commands, since importing torch is most of what one costs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.installing import install

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "edgeopt-sample"
GUIDE = HERE.parents[1] / "docs" / "plugins.md"
BUNDLE = Path("dist/mlp-sample-device")
SAMPLE_NAMES = {
    "passes": "clip_weights",
    "profiles": "sample-device",
    "recipes": "sample-recipe",
    "models": "sample",
}
TINY = """
import torch

def load():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2), torch.ones(2, 4)
"""
PLAIN = shlex.split(
    "build tiny.py:load --profile host --recipe float --limit int8_macs>=0 --no-latency --out"
)
ADAPTED = [
    "build",
    "sample:mlp",
    "--profile",
    "sample-device",
    "--adapter",
    "loud",
    "--out",
    "loud-mlp",
]
GATE = ["gate", "again", "--baseline", str(BUNDLE), "--limit", "largest_tensor_mb<=1", "--json"]


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str
    loaded: list[str]


@dataclasses.dataclass(frozen=True)
class Fresh:
    """An environment with nothing but edgeopt and what a test installs.

    Attributes:
        home: Where it is.
        work: Where commands run.
    """

    home: Path
    work: Path

    @property
    def site(self) -> Path:
        """Where packages are installed."""
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.home)}))

    @property
    def scripts(self) -> Path:
        """Where its interpreter and its commands are."""
        return Path(sysconfig.get_path("scripts", "venv", {"base": str(self.home)}))

    def pip(self, *words: str) -> None:
        """Run this environment's pip on the other one."""
        command = [sys.executable, "-m", "pip", "--python", str(self.home), *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr

    def edgeopt(self, *commands: Sequence[str]) -> list[Ran]:
        """Run commands one after the other, in one process."""
        ran = self._process(
            [str(self.scripts / "python"), str(HERE / "child.py")],
            given=json.dumps([*map(list, commands)]),
        )
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert Path(found["edgeopt"]).is_relative_to(self.site), "not the installed edgeopt"
        return [Ran(**row) for row in found["results"]]

    def script(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command that the wheel installs."""
        return self._process([str(self.scripts / "edgeopt"), *words])

    def _process(self, command: list[str], *, given: str = "") -> subprocess.CompletedProcess[str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            command,
            cwd=self.work,
            env=own,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def fresh(edgeopt_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Make the environment: the two wheels, and packages that are broken in every way."""
    home = tmp_path_factory.mktemp("fresh")
    shutil.copytree(SAMPLE, home / "sample", ignore=shutil.ignore_patterns("__pycache__"))
    wheels = "-m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir"
    built = subprocess.run(
        [sys.executable, *wheels.split(), str(home / "wheels"), str(home / "sample")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (sample,) = (home / "wheels").glob("edgeopt_sample-1.0-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "env")], check=True)
    made = Fresh(home / "env", home / "work")
    made.work.mkdir()
    (made.work / "tiny.py").write_text(TINY, encoding="utf-8")
    made.pip("install", "--quiet", "--no-deps", "--no-index", str(edgeopt_wheel), str(sample))
    # Last, so that pip sees nothing of it. A folder that comes in so runs no .pth of its own, so
    # the checkout's editable edgeopt stays out.
    ours = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (made.site / "parent.pth").write_text("\n".join(ours), encoding="utf-8")
    _install_broken(made.site)
    return made


def _install_broken(site: Path) -> None:
    points = {
        "edgeopt.passes": {
            "raises": "broken_raises:Pass",
            "lost": "broken_fine:Lost",
            "wrong": "broken_fine:Wrong",
            "misnamed": "broken_fine:Misnamed",
        },
        "edgeopt.profiles": {"nowhere": "broken_fine:nowhere"},
    }
    fine = """
        from edgeopt.passes.capture.capture import Capture

        class Wrong:
            name = "wrong"

        class Misnamed(Capture):
            name = "well_named"

        def nowhere():
            return "/nowhere/at/all.toml"
    """
    files = {"broken_raises.py": "raise OSError('libacme.so: cannot open')", "broken_fine.py": fine}
    install(site, "edgeopt-broken", points, files, version="0.3")
    for package in ("edgeopt-twin-a", "edgeopt-twin-b"):
        install(site, package, {"edgeopt.passes": {"twin": "twins:Twin"}}, {"twins.py": ""})
    taken = {"profiles": "orin", "rules": "xnnpack", "recipes": "int8", "exporters": "qnn"}
    points = {f"edgeopt.{kind}": {name: "twins:Twin"} for kind, name in taken.items()}
    install(site, "edgeopt-usurper", points)


@pytest.fixture(scope="module")
def listed(fresh: Fresh) -> dict[str, Ran]:
    """List everything, in one process that must not import torch."""
    commands = [[kind] for kind in SAMPLE_NAMES] + [[kind, "--json"] for kind in SAMPLE_NAMES]
    results = fresh.edgeopt(*commands, ["--help"])
    return {
        " ".join(words): ran for words, ran in zip([*commands, ["--help"]], results, strict=True)
    }


def _guide_commands() -> list[list[str]]:
    """Return the commands of the guide that use the sample, in order."""
    text = GUIDE.read_text(encoding="utf-8")
    return [shlex.split(line)[1:] for line in re.findall(r"^edgeopt .*$", text, re.MULTILINE)]


ASKED = (
    *(["passes", name] for name in ("raises", "lost", "wrong", "misnamed", "twin")),
    ["profiles", "nowhere"],
    ["profiles", "orin"],
)
TOLD = (
    "pass 'raises' of edgeopt-broken 0.3 (broken_raises:Pass): does not import: "
    "OSError: libacme.so: cannot open",
    "pass 'lost' of edgeopt-broken 0.3 (broken_fine:Lost): there is no Lost",
    "pass 'wrong' of edgeopt-broken 0.3 (broken_fine:Wrong): is no Pass",
    "pass 'misnamed' of edgeopt-broken 0.3 (broken_fine:Misnamed): calls itself 'well_named'; "
    "the entry point's name and Misnamed.name must be one",
    "pass 'twin' is claimed by edgeopt-twin-a 1.0 and edgeopt-twin-b 1.0; uninstall all but one",
    "profile 'nowhere' of edgeopt-broken 0.3 (broken_fine:nowhere): /nowhere/at/all.toml is not "
    "a file",
    "profile 'orin' is claimed by edgeopt itself and edgeopt-usurper 1.0; uninstall all but one",
)


@pytest.fixture(scope="module")
def used(fresh: Fresh) -> dict[str, Ran]:
    """Do what the guide says, then ask for what is broken, then build without any plug-in."""
    _write_adapter(fresh.work / "loud")
    commands = [*_guide_commands(), GATE, ADAPTED, *ASKED, [*PLAIN, "with"]]
    results = fresh.edgeopt(*commands)
    return {" ".join(words): ran for words, ran in zip(commands, results, strict=True)}


def _write_adapter(folder: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "SAMPLE_GAIN", "target_modules": ["2"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    gains = {"base_model.model.2.gain": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    save_file(gains, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def edited(fresh: Fresh, used: dict[str, Ran]) -> list[Ran]:
    """Verify and rebuild with a sample whose files are not those of the build."""
    changed = fresh.site / "edgeopt_sample" / "models.py"
    before = changed.read_text(encoding="utf-8")
    changed.write_text(f"{before}\n# edited\n", encoding="utf-8")
    lock = str(BUNDLE / "edgeopt.lock")
    again = fresh.edgeopt(
        ["verify", str(BUNDLE), "--json"], ["build", "--lock", lock, "--out", "edited"]
    )
    changed.write_text(before, encoding="utf-8")
    return again


@pytest.fixture(scope="module")
def gone(fresh: Fresh, used: dict[str, Ran], edited: list[Ran]) -> list[Ran]:
    """Uninstall the sample and everything broken, and go on."""
    fresh.pip("uninstall", "--quiet", "--yes", "edgeopt-sample")
    for info in fresh.site.glob("edgeopt_*.dist-info"):
        shutil.rmtree(info)
    lock = str(BUNDLE / "edgeopt.lock")
    return fresh.edgeopt(
        ["verify", str(BUNDLE), "--json"],
        ["build", "--lock", lock, "--out", "again-again"],
        [*PLAIN, "without"],
    )


def manifest(fresh: Fresh, bundle: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fresh.work / bundle / "manifest.json").read_text("utf-8"))
    return found


def test_the_help_is_that_of_edgeopt_alone(fresh: Fresh, listed: dict[str, Ran]) -> None:
    ran = fresh.script("--help")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == listed["--help"].out
    assert "sample" not in ran.stdout


@pytest.mark.parametrize("kind", SAMPLE_NAMES)
def test_a_listing_names_a_plugins_package_and_imports_nothing(
    listed: dict[str, Ran], kind: str
) -> None:
    for ran in (listed[kind], listed[f"{kind} --json"]):
        assert (ran.code, ran.loaded) == (0, []), ran.err
    assert re.search(rf"\b{SAMPLE_NAMES[kind]}\b.* edgeopt-sample 1\.0\b", listed[kind].out)
    rows = json.loads(listed[f"{kind} --json"].out)
    (row,) = [row for row in rows if row["name"] == SAMPLE_NAMES[kind]]
    assert row["package"] == "edgeopt-sample 1.0"


def test_the_guide_is_followed_to_the_letter(used: dict[str, Ran]) -> None:
    ran = [used[" ".join(words)] for words in _guide_commands()]
    assert len(ran) >= 5
    assert [(r.code, r.err) for r in ran] == [(0, "")] * len(ran)


def test_the_doctor_lists_plugins_and_what_is_wrong_with_them(used: dict[str, Ran]) -> None:
    ran = used["doctor"]
    assert "edgeopt_sample" not in ran.loaded
    text = " ".join(ran.out.partition("Plug-ins")[2].partition("What can be")[0].split())
    assert "edgeopt-sample 1.0 passes clip_weights; rules sample-rules; profiles sample-" in text
    assert "edgeopt-broken 0.3 passes lost, misnamed, raises, wrong; profiles nowhere" in text
    assert "pass 'twin' is also that of edgeopt-twin-b 1.0" in text
    assert "recipe 'int8' is also that of edgeopt itself" in text


def test_a_plugin_compiles_a_model(fresh: Fresh, used: dict[str, Ran]) -> None:
    found = manifest(fresh, BUNDLE)
    assert (found["profile"], found["recipe"]) == ("sample-device", "sample-recipe")
    assert [a["format"] for a in found["artifacts"]] == ["sample-npz"]
    report = json.loads((fresh.work / BUNDLE / "report.json").read_text("utf-8"))
    assert report["verdict"] == "pass"
    limits = {row["name"]: row for row in report["limits"]}
    assert limits["largest_tensor_mb"]["value"] == 32 * 16 * 4 / 1e6
    assert limits["largest_tensor_mb"]["unit"] == "MB"
    (clipped,) = [row for row in report["passes"] if row["name"] == "clip_weights"]
    assert list(clipped["changes"]) == ["0"]
    assert [(c["kind"], c["site"], c["holds"]) for c in report["contracts"]] == [
        ("clipped", "0.weight", True)
    ]
    assert report["accuracy"][0]["runtime"].startswith("numpy ")


def test_a_bundle_says_which_plugins_made_it(fresh: Fresh, used: dict[str, Ran]) -> None:
    (plugin,) = manifest(fresh, BUNDLE)["plugins"]
    assert (plugin["package"], plugin["version"]) == ("edgeopt-sample", "1.0")
    assert re.fullmatch(r"[0-9a-f]{64}", plugin["sha256"])
    assert plugin["gives"] == {
        "passes": ["clip_weights"],
        "rules": ["sample-rules"],
        "profiles": ["sample-device"],
        "recipes": ["sample-recipe"],
        "exporters": ["sample-npz"],
        "inspectors": ["sample-npz"],
        "runners": ["sample-numpy"],
        "contracts": ["clipped"],
        "quantities": ["largest_tensor_mb"],
        "models": ["sample"],
    }
    lock = json.loads((fresh.work / BUNDLE / "edgeopt.lock").read_text("utf-8"))
    assert lock["plugins"] == [plugin]
    again = json.loads((fresh.work / "again" / "edgeopt.lock").read_text("utf-8"))
    assert (again["files"], again["build_key"]) == (lock["files"], lock["build_key"])


def test_an_adapter_of_a_plugins_family_is_fused(fresh: Fresh, used: dict[str, Ran]) -> None:
    assert used[" ".join(ADAPTED)].code == 0, used[" ".join(ADAPTED)].err
    (plugin,) = manifest(fresh, "loud-mlp")["plugins"]
    assert plugin["gives"]["adapters"] == ["SAMPLE_GAIN"]
    plain, loud = (np.load(fresh.work / bundle / "numpy.npz") for bundle in (BUNDLE, "loud-mlp"))
    for leaf in ("2.weight", "2.bias"):
        gains = np.array([1.0, 2.0, 3.0, 4.0]).reshape(-1, *(1,) * (plain[leaf].ndim - 1))
        np.testing.assert_array_equal(loud[leaf], (gains * plain[leaf]).astype(np.float32))


def test_the_gate_compares_a_plugins_quantity(used: dict[str, Ran]) -> None:
    ran = used[" ".join(GATE)]
    assert ran.code == 0, ran.err
    (row,) = [row for row in json.loads(ran.out)["limits"] if row["name"] == "largest_tensor_mb"]
    number = 32 * 16 * 4 / 1e6
    assert (row["baseline"], row["candidate"], row["value"]) == (number, number, 1.0)
    assert (row["kind"], row["unit"], row["verdict"]) == ("ratio", "MB", "pass")


@pytest.mark.parametrize(
    ("words", "told"),
    list(zip(ASKED, TOLD, strict=True)),
    ids=lambda v: "-".join(v) if isinstance(v, list) else "",
)
def test_a_broken_plugin_names_itself_when_it_is_asked_for(
    used: dict[str, Ran], words: list[str], told: str
) -> None:
    ran = used[" ".join(words)]
    assert (ran.code, ran.out, ran.err) == (2, "", f"edgeopt: {told}\n")


def test_a_build_without_plugins_is_what_it_was(
    fresh: Fresh, used: dict[str, Ran], gone: list[Ran]
) -> None:
    assert used[" ".join([*PLAIN, "with"])].code == gone[2].code == 0
    beside, alone = manifest(fresh, "with"), manifest(fresh, "without")
    assert beside["plugins"] == []
    assert beside == alone


def test_another_state_of_a_plugin_is_told(edited: list[Ran]) -> None:
    verified, rebuilt = edited
    (row,) = [c for c in json.loads(verified.out)["checks"] if "plug-in" in c["name"]]
    assert (row["name"], row["holds"]) == ("run plug-in edgeopt-sample", True)
    assert row["message"] == "edgeopt-sample 1.0: its files are not those of the build"
    assert verified.code == 0
    assert rebuilt.code == 0
    assert "edgeopt-sample 1.0: its files are not those of the build" in rebuilt.err


def test_a_bundle_whose_plugin_is_gone_cannot_be_verified(gone: list[Ran]) -> None:
    found = json.loads(gone[0].out)
    assert (gone[0].code, found["verdict"]) == (3, "not measured")
    assert all(check["holds"] for check in found["checks"] if check["name"].startswith("file "))
    first = next(check for check in found["checks"] if not check["name"].startswith("file "))
    assert (first["name"], first["holds"]) == ("run plug-in edgeopt-sample", False)
    assert first["message"].startswith("edgeopt-sample 1.0 is not installed; it gave passes clip_w")
    assert "contracts clipped" in first["message"]


def test_a_lock_whose_plugin_is_gone_says_so(fresh: Fresh, gone: list[Ran]) -> None:
    assert gone[1].code == 2
    assert gone[1].err.startswith(
        "edgeopt: the lock cannot be met: edgeopt-sample 1.0 is not installed; it gave passes clip"
    )
    assert not (fresh.work / "again-again").exists()
