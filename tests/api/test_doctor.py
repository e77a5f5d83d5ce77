"""`edgeopt doctor`: what is here, what is missing, and how to get it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from edgeopt.api import doctor
from edgeopt.api.doctor import DoctorResult, run_doctor
from edgeopt.cli import main
from edgeopt.devices import machine as machines
from edgeopt.devices.machine import Hardware, machine
from edgeopt.devices.profile import load_profile, profile_names
from tests.installing import install

A100 = Hardware(gpu="NVIDIA A100-SXM4-80GB", capability="sm80")
ORIN = Hardware(board="NVIDIA Jetson AGX Orin Developer Kit")


@pytest.fixture(scope="module")
def result() -> DoctorResult:
    """Look at this machine once: importing every package takes seconds."""
    return run_doctor()


def test_every_piece_says_what_it_is_for_and_how_to_get_it(result: DoctorResult) -> None:
    for piece in result.pieces:
        assert piece.gives, piece.name
        assert piece.without, piece.name
        assert piece.install, piece.name
        assert piece.available != bool(piece.problem), piece.name


def test_what_the_tests_run_on_is_found(result: DoctorResult) -> None:
    found = {piece.name: piece for piece in result.pieces}
    assert found["torch"].available
    assert found["torch"].version
    assert result.healthy


def test_every_target_of_every_profile_is_listed(result: DoctorResult) -> None:
    listed = {(m.profile, m.target) for m in result.measurable}
    for name in profile_names():
        profile = load_profile(name)
        assert {(name, t.name) for t in (*profile.targets, *profile.stand_ins)} <= listed
    assert all(bool(m.reason) == (m.here == "no") for m in result.measurable)


def test_the_cpu_features_are_those_of_the_machine(result: DoctorResult) -> None:
    present = set(machine().features)
    assert result.cpu
    assert all(feature.available == (feature.name in present) for feature in result.cpu)


@pytest.mark.parametrize("found", [A100, ORIN], ids=["a100", "orin"])
def test_on_the_device_what_is_lacking_is_its_runtime(
    found: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "hardware", lambda: found)
    here = "a100" if found is A100 else "orin"
    script = "run build_engine.py here and attach what it writes"
    for name, installed in (("TensorRT is not installed", False), ("edgeopt has no runner", True)):
        monkeypatch.setattr(
            "edgeopt.runtime_tests.tensorrt.inspector.find_spec",
            lambda _name, installed=installed: object() if installed else None,
        )
        reasons = {(m.profile, m.target): (m.here, m.reason) for m in doctor._measurable()}
        word, reason = reasons[here, "tensorrt"]
        assert word == "no"
        assert reason.startswith(name)
        assert reason.endswith(script)
    other = "orin" if here == "a100" else "a100"
    assert reasons[other, "tensorrt"][1].startswith("this machine is not NVIDIA")
    assert reasons[here, "onnxruntime"] == ("stand-in", "")
    assert reasons["host", "onnxruntime"] == ("yes", "")


def test_without_torch_it_looks_all_the_same() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeopt.api.doctor import run_doctor\n"
        "found = run_doctor()\n"
        "assert not found.healthy\n"
        "print({m.here for m in found.measurable}, found.measurable[-1].reason)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("{'no'}")


POINTS = {
    "edgeopt.passes": {"clip": "acme.passes:Clip", "cut": "acme.gone:Cut"},
    "edgeopt.profiles": {"orin": "acme.passes:orin"},
}


def test_plugins_are_listed_and_not_imported(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"acme/__init__.py": "", "acme/passes.py": "raise RuntimeError('imported')"}
    install(site, "acme-pack", POINTS, files, version="1.2")
    found = DoctorResult("1", "3", machine(), (), (), doctor._measurable(), doctor._plugins())
    (plugin,) = [p for p in found.plugins if p.package == "acme-pack"]
    assert plugin.version == "1.2"
    assert plugin.adds == {"passes": ("clip", "cut"), "profiles": ("orin",)}
    told = "there is no module acme.gone; profile 'orin' is also that of edgeopt itself"
    assert plugin.problem == told
    monkeypatch.setattr(doctor, "run_doctor", lambda: found)
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "acme-pack 1.2 passes clip, cut; profiles orin" in text
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["plugins"]
    assert [row["adds"] for row in rows if row["package"] == "acme-pack"] == [
        {"passes": ["clip", "cut"], "profiles": ["orin"]}
    ]


def test_a_profile_whose_name_is_claimed_says_so_and_the_others_are_looked_at(site: Path) -> None:
    install(site, "acme-pack", POINTS)
    found = {(m.profile, m.target): m for m in doctor._measurable()}
    claimed = found["orin", "-"]
    assert claimed.here == "no"
    assert claimed.reason.startswith(
        "profile 'orin' is claimed by edgeopt itself and acme-pack 1.0"
    )
    assert ("host", "onnxruntime") in found


def test_what_does_not_import_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"onnxscript": "not installed", "timm": "does not import: OSError: libtimm.so"}

    class Imports:
        def __init__(self, modules: list[str]) -> None:
            self._modules = modules

        def __enter__(self) -> Imports:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def problems(self) -> dict[str, str]:
            return {module: told.get(module, "") for module in self._modules}

    monkeypatch.setattr(doctor, "Imports", Imports)
    monkeypatch.setattr(doctor, "problem", lambda module: told.get(module, ""))
    result = run_doctor()
    found = {piece.name: piece for piece in result.pieces}
    for name in ("onnxscript", "timm"):
        assert found[name].problem == told[name]
        assert not found[name].available
    assert found["scikit-learn"].available
    assert not result.healthy


def test_the_command_prints_tables_and_json(
    result: DoctorResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run_doctor", lambda: result)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("What is here", "CPU features", "What can be measured here"):
        assert title in text
    assert main(["doctor", "--json"]) == 0
    read = pydantic.TypeAdapter(DoctorResult).validate_python(json.loads(capsys.readouterr().out))
    assert read == result
