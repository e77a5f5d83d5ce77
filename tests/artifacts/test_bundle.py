"""A bundle is opened only if it is whole, and says file by file what is not as it was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.artifacts.artifact import Artifact, FileEntry, TensorEntry
from edgeopt.artifacts.build_state import read_contracts, read_programs, write_state
from edgeopt.artifacts.bundle import Bundle, entries, write_manifest
from edgeopt.artifacts.golden import read_golden, write_golden
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.artifacts.manifest import Manifest
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.errors import BundleError
from edgeopt.ir import edges, program
from tests.small_models import QUANTIZE, context, normal, run

INPUTS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
OUTPUTS = {"y": np.ones((2, 1), np.float32), "classes": np.array([1, 0])}


def manifest_of(folder: Path) -> Manifest:
    artifact = Artifact(
        name="onnxruntime",
        target="onnxruntime",
        format="onnx",
        precision="int8",
        plan="onnxruntime-x86",
        files=tuple(e for e in entries(folder) if e.path == "model.onnx"),
        methods=(Method("forward", (IOSpec("x", "float32", ("batch", 3)),), ()),),
        tensor_map={"a.weight": TensorEntry("a.weight", "transpose")},
        edge_map={"n0.out": "x:input#0.out"},
    )
    return Manifest(
        edgeopt="0.1.0",
        model="zoo:vit",
        profile="host",
        recipe="int8",
        build_key="k",
        hashes={"weights": "w"},
        seed=0,
        tools={"torch": "2.13"},
        artifacts=(artifact,),
        files=entries(folder),
        golden={"forward": "golden/forward.npz"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small bundle."""
    place = tmp_path / "bundle"
    place.mkdir()
    (place / "model.onnx").write_bytes(b"model")
    write_golden(place, "forward", INPUTS, OUTPUTS)
    (place / "report.json").write_text("{}")
    (place / "report.html").write_text("<html>")
    (place / "edgeopt.lock").write_text("{}")
    write_manifest(place, manifest_of(place))
    return place


def failed(folder: Path) -> dict[str, str]:
    return {c.name: c.message for c in Bundle.open(folder).checksums() if not c.holds}


# --- whole bundles -------------------------------------------------------------------------------


def test_a_bundle_reads_back_as_it_was_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest == manifest_of(folder)
    assert [e.path for e in bundle.manifest.files] == ["golden/forward.npz", "model.onnx"]
    assert bundle.manifest.artifact("onnxruntime").model_file.path == "model.onnx"
    assert bundle.file("model.onnx").read_bytes() == b"model"
    checks = bundle.checksums()
    assert [c.name for c in checks] == ["file golden/forward.npz", "file model.onnx"]
    assert all(c.holds for c in checks)


def test_reports_and_the_lock_are_in_the_folder_but_not_in_the_manifest(folder: Path) -> None:
    names = {e.path for e in Bundle.open(folder).manifest.files}
    assert not names & {"report.json", "report.html", "edgeopt.lock", "manifest.json"}
    assert failed(folder) == {}


def test_the_same_bundle_is_written_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (again / "model.onnx").write_bytes(b"model")
    write_golden(again, "forward", INPUTS, OUTPUTS)
    write_manifest(again, manifest_of(again))
    for name in ("manifest.json", "golden/forward.npz"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_an_unknown_artifact_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"'onnxruntme' is not in the bundle \(did you mean"):
        Bundle.open(folder).manifest.artifact("onnxruntme")


# --- damage --------------------------------------------------------------------------------------


def test_a_changed_byte_is_found(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"modem")
    assert failed(folder) == {"file model.onnx": "SHA-256 differs"}


def test_another_size_is_found(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"model+")
    assert failed(folder) == {"file model.onnx": "6 bytes, not 5"}


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    assert failed(folder) == {"file model.onnx": "is missing"}
    with pytest.raises(BundleError, match=r"model\.onnx is missing; build the bundle again"):
        Bundle.open(folder).file("model.onnx")


def test_a_file_that_the_manifest_does_not_list_is_found(folder: Path) -> None:
    (folder / "golden" / "extra.bin").write_text("?")
    assert failed(folder) == {"file golden/extra.bin": "is not in the manifest"}


def test_what_was_measured_on_a_device_may_lie_beside(folder: Path) -> None:
    (folder / "measured.json").write_text("{}")
    assert failed(folder) == {}


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return do


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a manifest": (lambda p: p.write_text(p.read_text()[:100]), "not valid JSON"),
    "no text": (lambda p: p.write_bytes(b"\xff\xff"), "cannot be read"),
    "endless nesting": (lambda p: p.write_text("[" * 200_000), "not valid JSON"),
    "a list": (lambda p: p.write_text("[]"), "manifest.json: "),
    "another schema": (edit(lambda d: d.update(schema=99)), "schema 99; this edgeopt reads"),
    "an unknown key": (edit(lambda d: d.update(modle="x")), "unknown key 'modle' (did you mean"),
    "a missing key": (edit(lambda d: d.pop("seed")), "seed: Field required"),
    "a wrong type": (edit(lambda d: d.update(files="x")), "files: Input should be"),
    "a file above the folder": (
        edit(lambda d: d["files"][0].update(path="../secret")),
        "file name '../secret' leaves the folder",
    ),
    "an absolute file": (
        edit(lambda d: d["artifacts"][0]["files"][0].update(path="/etc/hostname")),
        "file name '/etc/hostname' leaves the folder",
    ),
    "an artifact's file above the folder": (
        edit(lambda d: d["artifacts"][0]["files"][0].update(path="a/../../b")),
        "file name 'a/../../b' leaves the folder",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_manifest_is_one_line(case: str, folder: Path) -> None:
    damage, message = DAMAGED[case]
    damage(folder / "manifest.json")
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"model")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"'model\.onnx' leaves the folder"):
        Bundle.open(folder)


def test_what_is_no_bundle_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle \(no such folder\)"):
        Bundle.open(tmp_path / "nowhere")
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"is not a bundle \(no manifest\.json\)"):
        Bundle.open(folder)


def test_a_damaged_report_is_one_line(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"report\.json: bundle: Field required") as caught:
        Bundle.open(folder).report()
    assert len(str(caught.value).splitlines()) == 1


# --- golden vectors ------------------------------------------------------------------------------


def test_golden_vectors_read_back(folder: Path) -> None:
    inputs, outputs = read_golden(folder / "golden" / "forward.npz")
    assert set(inputs) == {"x"}
    assert set(outputs) == {"y", "classes"}
    for got, want in ((inputs, INPUTS), (outputs, OUTPUTS)):
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)
            assert got[name].dtype == value.dtype


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "pickle"])
def test_damaged_golden_vectors_are_one_line(damage: str, folder: Path) -> None:
    path = folder / "golden" / "forward.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        np.savez(path, a=np.ones(2))
    else:
        np.savez(path, **{"input:x": np.array([{"run": "me"}], dtype=object)}, allow_pickle=True)
    with pytest.raises(BundleError) as caught:
        read_golden(path)
    assert len(str(caught.value).splitlines()) == 1


# --- state ---------------------------------------------------------------------------------------


def test_the_state_of_a_plan_reads_back(folder: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8)).eval()
    x = normal(2, 8)
    state = run(module, context(x), *QUANTIZE)
    contracts = (*state.contracts, NMSparse("0.weight", 2, 4, 1))
    write_state(
        folder,
        "onnxruntime-x86",
        programs=state.carrier_programs,
        plan=state.plan,
        statistics=state.statistics,
        contracts=contracts,
    )
    place = folder / "state" / "onnxruntime-x86"
    assert {p.name for p in place.iterdir()} == {
        "forward.pt2",
        "forward.sites.json",
        "plan.json",
        "statistics.json",
        "contracts.json",
    }
    write_manifest(folder, dataclasses.replace(manifest_of(folder), files=entries(folder)))
    bundle = Bundle.open(folder)
    assert read_contracts(bundle, "onnxruntime-x86") == contracts
    loaded, written = (
        p["forward"] for p in (read_programs(bundle, "onnxruntime-x86"), state.carrier_programs)
    )
    assert torch.equal(program.run(loaded, (x,), {}), program.run(written, (x,), {}))
    assert [s for _, s in edges.sites(loaded.graph)] == [s for _, s in edges.sites(written.graph)]
    assert read_programs(bundle, "none") == {}
    good = json.loads((place / "forward.sites.json").read_text())
    for key, value in (
        ("fqn", 'x")\ropen("ran", "w")'),  # torch would write it into source
        ("op", "input'"),
        ("id", "x" * 2000),
        ("index", "first"),
    ):
        rows = [{**row, "site": {**row["site"], key: value}} for row in good["rows"]]
        (place / "forward.sites.json").write_text(json.dumps({**good, "rows": rows}))
        with pytest.raises(BundleError, match=r"forward\.sites\.json"):
            read_programs(bundle, "onnxruntime-x86")
    (place / "forward.sites.json").write_text(json.dumps({**good, "schema": 2}))
    with pytest.raises(BundleError, match="newer edgeopt"):
        read_programs(bundle, "onnxruntime-x86")
    plan = json.loads((place / "plan.json").read_text())
    assert plan["rules"] == "onnxruntime-x86"


def test_programs_of_oddly_named_modules_are_left_out(folder: Path) -> None:
    for name, kept in (("a-b+c", True), ("a b", False)):
        module = nn.Sequential()
        module.add_module(name, nn.Linear(8, 8))
        state = run(module.eval(), context(normal(2, 8)), *QUANTIZE)
        write_state(
            folder, f"p{kept}", programs=state.carrier_programs, plan=None, statistics=None,
            contracts=(),
        )  # fmt: skip
        write_manifest(folder, dataclasses.replace(manifest_of(folder), files=entries(folder)))
        assert list(read_programs(Bundle.open(folder), f"p{kept}")) == ["forward"] * kept


@pytest.mark.parametrize("content", ["", "{}", '["x"]', "[1, 2", '[{"kind": "none"}]'])
def test_damaged_contracts_are_one_line(content: str, folder: Path) -> None:
    place = folder / "state" / "p"
    place.mkdir(parents=True)
    (place / "contracts.json").write_text(content)
    with pytest.raises(BundleError) as caught:
        read_contracts(Bundle.open(folder), "p")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_contracts_are_told(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"state/p/contracts\.json is missing"):
        read_contracts(Bundle.open(folder), "p")


def test_entries_are_sorted_and_leave_out_reports(folder: Path) -> None:
    (folder / "a.bin").write_text("a")
    found = entries(folder)
    assert [e.path for e in found] == ["a.bin", "golden/forward.npz", "model.onnx"]
    assert isinstance(found[0], FileEntry)
    shutil.rmtree(folder / "golden")
    assert [e.path for e in entries(folder)] == ["a.bin", "model.onnx"]
