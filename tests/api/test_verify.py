"""`edgeopt verify` where the plug-ins that made a bundle are here, other ones, broken or gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.api.verify import run_verify
from edgeopt.artifacts.bundle import Bundle, entries, write_manifest
from edgeopt.cli import main
from edgeopt.registry.plugins import Plugin, installed, used
from edgeopt.results.reports import VerifyResult
from edgeopt.results.verdicts import Check, Verdict
from tests.api.small_bundles import Small
from tests.installing import install

GIVES = {"passes": ("clip",), "contracts": ("acme-kind",)}
OWN = {"kind": "tied", "a": "w", "b": "w"}
THEIRS = {"kind": "acme-kind", "fqn": "w"}
KIND = """
    import dataclasses

    from edgeopt.contracts.tied import Tied

    @dataclasses.dataclass(frozen=True)
    class AcmeKind(Tied):
        a: str = "w"
        b: str = "w"
        fqn: str = ""
        kind = "acme-kind"
"""


def bundle(folder: Path, plugins: tuple[Plugin, ...], *contracts: dict[str, Any]) -> Path:
    """Write a bundle with contracts in its state."""
    Small(golden=True).write(folder)
    state = folder / "state" / "onnxruntime"
    state.mkdir(parents=True)
    (state / "contracts.json").write_text(json.dumps(contracts), encoding="utf-8")
    manifest = Bundle.open(folder).manifest
    changed = dataclasses.replace(manifest, files=entries(folder), plugins=plugins)
    write_manifest(folder, changed)
    return folder


def plugin_rows(result: VerifyResult) -> list[Check]:
    return [check for check in result.checks if "plug-in" in check.name]


def acme(site: Path, source: str = KIND) -> Plugin:
    points = {"edgeopt.contracts": {"acme-kind": "acme:AcmeKind"}}
    install(site, "acme", points, {"acme.py": source})
    (found,) = used([e for p in installed() for e in p.entries if e.name == "acme-kind"])
    return found


def test_a_bundle_without_plugins_is_verified_as_before(tmp_path: Path) -> None:
    result = run_verify(bundle(tmp_path / "b", (), OWN))
    assert result.verdict is Verdict.PASS
    assert not plugin_rows(result)


def test_a_plugin_that_is_here_is_named(site: Path, tmp_path: Path) -> None:
    result = run_verify(bundle(tmp_path / "b", (acme(site),), OWN, THEIRS))
    assert plugin_rows(result) == [Check("run plug-in acme", True, "acme 1.0")]
    assert [c.kind for c in result.contracts] == ["tied", "acme-kind"]
    assert result.verdict is Verdict.PASS


def test_another_version_is_told_and_no_failure(site: Path, tmp_path: Path) -> None:
    older = dataclasses.replace(acme(site), version="0.9")
    result = run_verify(bundle(tmp_path / "b", (older,), OWN, THEIRS))
    told = "acme 0.9 made it, 1.0 is installed here"
    assert plugin_rows(result) == [Check("run plug-in acme", True, told)]
    assert result.verdict is Verdict.PASS


def test_without_a_plugin_the_rest_is_still_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle(tmp_path / "b", (Plugin("acme", "1.0", "", GIVES),), OWN, THEIRS)
    result = run_verify(folder)
    told = "acme 1.0 is not installed; it gave passes clip; contracts acme-kind"
    assert plugin_rows(result) == [Check("run plug-in acme", False, told)]
    assert result.verdict is Verdict.NOT_MEASURED
    assert [(c.kind, c.holds) for c in result.contracts] == [("tied", True)]
    assert any(c.name == "golden main" and c.holds for c in result.checks)
    files = [c.name.startswith("file ") for c in result.checks]
    assert files == sorted(files, reverse=True), "checksums come first"
    assert main(["verify", str(folder)]) == 3
    assert "acme 1.0 is not installed" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_file_fails_whatever_is_missing(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", (Plugin("acme", "1.0", "", GIVES),), OWN)
    (folder / "main.onnx").write_bytes(b"damaged")
    assert run_verify(folder).verdict is Verdict.FAIL


def test_a_kind_that_no_missing_plugin_gave_is_damage(tmp_path: Path) -> None:
    other = Plugin("acme", "1.0", "", {"passes": ("clip",)})
    result = run_verify(bundle(tmp_path / "b", (other,), OWN, THEIRS))
    assert result.verdict is Verdict.FAIL
    (check,) = [c for c in result.checks if c.name == "contracts main"]
    assert check.message.startswith("contract kind 'acme-kind' is not known")


def test_a_broken_plugin_names_itself_and_proves_nothing(site: Path, tmp_path: Path) -> None:
    broken = acme(site, "raise OSError('no licence')")
    result = run_verify(bundle(tmp_path / "b", (broken,), OWN, THEIRS))
    assert result.verdict is Verdict.NOT_MEASURED
    (check,) = [c for c in result.checks if not c.holds]
    assert check.name == "run main"
    assert "acme 1.0 (acme:AcmeKind): does not import: OSError: no licence" in check.message
