"""`edgeopt assets`: layouts, contents, what is left out, checks, and the same bytes twice."""

from __future__ import annotations

import dataclasses
import json
import plistlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from torch import nn

from edgeopt.api import assets as module
from edgeopt.api.assets import run_assets
from edgeopt.api.build import BuildOptions, run_build
from edgeopt.api.formats import exporter_for, format_names
from edgeopt.app_assets.manifest import AppManifest, AssetsResult, read_manifest
from edgeopt.app_assets.platforms import PLATFORMS
from edgeopt.app_assets.vectors import read_vectors
from edgeopt.artifacts.golden import read_golden
from edgeopt.artifacts.interface import Preprocessing
from edgeopt.cli import main
from edgeopt.errors import BundleError, CheckFailed, ConfigError
from edgeopt.files import sha256
from edgeopt.models.from_module import from_module
from edgeopt.results.verdicts import Check
from tests.api.small_bundles import Small

pytest.importorskip("onnxruntime")
PICTURES = Small(
    model="/home/someone/secret/net.py:make",
    labels=("cat", "a\ndog", "Œuf"),
    preprocessing=Preprocessing(resize=4, crop=4, mean=(0.5,), std=(0.5,), channels="L"),
)
BOTH = Small(
    format="tensorrt",
    profile="orin",
    target="tensorrt",
    more={
        "tensorrt-float16": ("tensorrt", "tensorrt"),  # a yardstick: `main` is no target's name
        "onnxruntime": ("onnx", "onnxruntime"),
        "odd": ("newfangled", "odd"),
    },
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return PICTURES.write(tmp_path / "home" / "pictures")


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


COMMON = {
    "manifest.json",
    "NOTICES.txt",
    "labels.txt",
    "preprocessing.json",
    "main.onnx",
    "golden/main/index.json",
    "golden/main/input0.bin",
    "golden/main/output0.bin",
}


@pytest.mark.parametrize(
    ("platform", "place", "names"),
    [
        ("android", "src/main/assets/edgeopt/pictures", COMMON),
        ("ios", "pictures.bundle", COMMON | {"Info.plist"}),
    ],
)
def test_the_layout_is_the_platforms_own(
    platform: str, place: str, names: set[str], bundle: Path, tmp_path: Path
) -> None:
    result = run_assets(bundle, platform, tmp_path / "app")
    assert result.path == (tmp_path / "app" / place).as_posix()
    written = files(tmp_path / "app" / place)
    assert set(written) == names
    assert result.size_bytes == sum(len(content) for content in written.values())
    assert all(check.holds for check in result.checks)
    assert written["main.onnx"] == (bundle / "main.onnx").read_bytes()
    if platform == "ios":
        assert plistlib.loads(written["Info.plist"])["CFBundlePackageType"] == "BNDL"


def test_the_manifest_describes_every_file_and_every_model(bundle: Path, tmp_path: Path) -> None:
    folder = Path(run_assets(bundle, "android", tmp_path / "app").path)
    manifest = read_manifest(folder)
    listed = {e.path: (e.sha256, e.size_bytes) for e in manifest.files}
    found = {
        n: (sha256(folder / n), len(c)) for n, c in files(folder).items() if n != "manifest.json"
    }
    assert listed == found
    assert manifest.kind == "edgeopt app assets"
    assert (manifest.name, manifest.platform, manifest.model) == (
        "pictures",
        "android",
        "net.py:make",
    )
    assert manifest.tools == {"torch": "2.13"}
    (model,) = manifest.models
    assert (model.file, model.runtime, model.minimum_runtime) == (
        "main.onnx",
        "onnxruntime",
        "1.20",
    )
    assert model.methods[0].inputs[0].shape == (4, 16)
    assert model.golden == "golden/main/index.json"
    assert manifest.preprocessing == PICTURES.preprocessing
    labels = (folder / manifest.labels).read_text(encoding="utf-8")
    assert labels == "cat\na dog\nŒuf\n"
    told = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    assert (told["mean"], told["channels"]) == ([0.5], "L")
    assert "Licence: unknown" in (folder / manifest.notices).read_text(encoding="utf-8")


def test_the_golden_vectors_are_the_bundles_bit_for_bit(bundle: Path, tmp_path: Path) -> None:
    folder = Path(run_assets(bundle, "ios", tmp_path / "app").path)
    index, *got = read_vectors(folder / "golden" / "main")
    assert (index.method, index.tolerance) == ("forward", 1e-4)
    for wanted, found in zip(read_golden(bundle / "golden" / "main.npz"), got, strict=True):
        assert list(wanted) == list(found)
        for name in wanted:
            assert wanted[name].tobytes() == found[name].tobytes()


def test_nothing_of_the_compiling_machine_is_shipped(bundle: Path, tmp_path: Path) -> None:
    written = files(Path(run_assets(bundle, "android", tmp_path / "app").path))
    for name, content in written.items():
        assert b"someone" not in content, name
        assert str(tmp_path).encode() not in content, name
    assert not any("state/" in n or "report" in n or n.endswith(".lock") for n in written)


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    one = run_assets(bundle, "ios", tmp_path / "a")
    again = run_assets(bundle, "ios", tmp_path / "a")  # takes the place of the first
    other = run_assets(PICTURES.write(tmp_path / "elsewhere" / "pictures"), "ios", tmp_path / "b")
    assert one.path == again.path
    assert files(Path(again.path)) == files(Path(other.path))
    assert again.manifest == other.manifest
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["pictures.bundle"]


def test_an_app_module_keeps_its_own_files(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "app" / "src" / "main" / "Main.kt"
    source.parent.mkdir(parents=True)
    source.write_text("fun main() {}", encoding="utf-8")
    for _ in range(2):
        run_assets(bundle, "android", tmp_path / "app")
    assert source.read_text(encoding="utf-8") == "fun main() {}"


def test_the_place_defaults_to_beside_the_bundle(bundle: Path) -> None:
    result = run_assets(bundle, "ios", name="net-2")
    assert result.path == (bundle.parent / "net-2-ios" / "net-2.bundle").as_posix()
    assert result.manifest.name == "net-2"


def test_what_stays_home_is_not_shipped(tmp_path: Path) -> None:
    small = Small(beside={"main.sites.json": b"{}", "weights.bin": b"w"})
    result = run_assets(small.write(tmp_path / "b"), "ios", tmp_path / "app")
    (model,) = result.manifest.models
    assert model.files == ("main.onnx", "weights.bin")
    assert (Path(result.path) / "weights.bin").read_bytes() == b"w"
    assert not (Path(result.path) / "main.sites.json").exists()


def test_a_plan_for_x86_kernels_is_warned_of(tmp_path: Path) -> None:
    bundle = Small(plan="onnxruntime-x86").write(tmp_path / "b")
    (warning,) = run_assets(bundle, "ios", tmp_path / "app").warnings
    assert "planned for the kernels of x86-64" in warning


def test_without_golden_vectors_the_app_cannot_test(tmp_path: Path) -> None:
    result = run_assets(Small(golden=False).write(tmp_path / "b"), "ios", tmp_path / "app")
    assert result.manifest.models[0].golden == ""
    assert result.warnings == ("main: the bundle has no golden vectors, so the app cannot test it",)


# --- what goes where -----------------------------------------------------------------------------


def test_each_artifact_that_does_not_go_there_is_named(tmp_path: Path) -> None:
    small = dataclasses.replace(BOTH, target="main")  # `main` is its target's own file
    small = dataclasses.replace(small, more={**BOTH.more, "main-float16": ("tensorrt", "main")})
    bundle = small.write(tmp_path / "b")
    result = run_assets(bundle, "jetson", tmp_path / "out")
    assert [m.name for m in result.manifest.models] == ["main", "tensorrt-float16"]
    assert result.manifest.models[0].runtime == "tensorrt"
    assert result.manifest.models[0].minimum_runtime == "10.3"
    assert result.left_out == {
        "main-float16": "is the float yardstick of main; --artifact main-float16 takes it "
        "nevertheless",
        "onnxruntime": "onnx is for android and ios, not for jetson",
        "odd": "newfangled is for no platform that is known, not for jetson",
    }
    assert Path(result.path) == tmp_path / "out" / "b"
    assert (Path(result.path) / "golden" / "main.npz").is_file()  # the on-device script reads it


def test_a_stand_in_is_taken_only_where_asked_for(tmp_path: Path) -> None:
    bundle = BOTH.write(tmp_path / "b")
    with pytest.raises(BundleError, match="stands in for the runtime of profile orin; --artifact"):
        run_assets(bundle, "ios", tmp_path / "app")
    result = run_assets(bundle, "ios", tmp_path / "app", artifacts=["onnxruntime"])
    assert [m.name for m in result.manifest.models] == ["onnxruntime"]
    assert result.left_out["main"] == "tensorrt is for jetson, not for ios"
    with pytest.raises(BundleError, match="--artifact main: tensorrt is for jetson, not for ios"):
        run_assets(bundle, "ios", tmp_path / "app", artifacts=["main"])
    with pytest.raises(BundleError, match="did you mean 'onnxruntime'"):
        run_assets(bundle, "ios", tmp_path / "app", artifacts=["onnxruntim"])


def test_a_bundle_with_nothing_for_the_platform_says_what_it_holds(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["assets", str(bundle), "--platform", "jetson", "--out", str(tmp_path / "app")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "holds nothing for a Jetson" in err
    assert "main: onnx is for android and ios, not for jetson" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "app").exists()


# --- refusals ------------------------------------------------------------------------------------


def test_a_bundle_that_fails_its_verification_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "main.onnx").write_bytes((bundle / "main.onnx").read_bytes()[:-1])
    words = ["assets", str(bundle), "--platform", "ios", "--out", str(tmp_path / "app")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "fails its verification: file main.onnx" in err
    assert not (tmp_path / "app").exists()


def test_a_written_folder_that_fails_its_checks_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = files(Path(run_assets(bundle, "android", tmp_path / "kept").path))
    monkeypatch.setattr(module, "_runs", lambda *_: Check("run main", False, "gives other answers"))
    for out in ("fresh", "kept"):
        with pytest.raises(CheckFailed, match="gives other answers; nothing was written"):
            run_assets(bundle, "android", tmp_path / out)
    assert not (tmp_path / "fresh").exists()
    assert files(tmp_path / "kept" / "src/main/assets/edgeopt/pictures") == older


def test_wrong_bytes_in_the_written_folder_are_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = module._copy

    def torn(source: Any, path: str, folder: Path) -> None:
        copy(source, path, folder)
        if path.endswith(".onnx"):
            (folder / path).write_bytes(b"torn")

    monkeypatch.setattr(module, "_copy", torn)
    with pytest.raises(CheckFailed, match=r"main\.onnx is the bundle's"):
        run_assets(bundle, "ios", tmp_path / "app")


def test_vectors_that_decode_otherwise_are_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_vectors

    def rounded(
        folder: Path, model: str, method: str, inputs: Any, outputs: Any, tol: float
    ) -> Any:
        off = {name: np.nextafter(value, np.float32(9e9)) for name, value in inputs.items()}
        return write(folder, model, method, off, outputs, tol)

    monkeypatch.setattr(module, "write_vectors", rounded)
    with pytest.raises(CheckFailed, match="golden main: decodes to other vectors"):
        run_assets(bundle, "ios", tmp_path / "app")


@pytest.mark.parametrize("name", ["", "a b", "../a", ".hidden", "a/b", "é", "-x"])
def test_a_name_that_is_no_file_name_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name"):
        run_assets(bundle, "ios", tmp_path / "app", name=name)


def test_no_folder_of_the_users_is_replaced(bundle: Path, tmp_path: Path) -> None:
    taken = tmp_path / "app" / "pictures.bundle"
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="holds no app assets"):
        run_assets(bundle, "ios", tmp_path / "app")
    assert (taken / "mine.txt").read_text(encoding="utf-8") == "mine"
    other = PICTURES.write(tmp_path / "robots" / "pictures")  # a bundle has a manifest.json too
    before = files(other)
    small = BOTH.write(tmp_path / "orin")
    with pytest.raises(BundleError, match="holds no app assets"):
        run_assets(small, "jetson", tmp_path / "robots", name="pictures")
    assert files(other) == before


@pytest.mark.parametrize("out", [".", "..", "golden"])
def test_the_bundle_itself_is_not_written_into(out: str, tmp_path: Path) -> None:
    bundle = BOTH.write(tmp_path / "home" / "b")
    before = files(bundle)
    name = "b" if out == ".." else "new"
    with pytest.raises(BundleError, match="the bundle's own folder"):
        run_assets(bundle, "jetson", bundle / out, name=name)
    assert files(bundle) == before


def test_a_place_that_cannot_be_written_is_one_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be written"):
        run_assets(bundle, "ios", tmp_path / "file" / "app")


# --- a real build --------------------------------------------------------------------------------


class Net(nn.Module):
    """One convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


def test_a_jetson_gets_what_its_script_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = from_module(Net().eval(), (pictures[:2],), name="net", calibration=pictures)
    out = tmp_path / "net"
    options = BuildOptions(
        model=loaded,
        profile="orin",
        recipe="int8",
        formats=("tensorrt",),
        latency=False,
        drift=False,
        out=out,
    )
    run_build(options)
    words = ["assets", str(out), "--platform", "jetson", "--out", str(tmp_path / "robot"), "--json"]
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    result = pydantic.TypeAdapter(AssetsResult).validate_python(data)
    folder = Path(result.path)
    assert folder == tmp_path / "robot" / "net"
    assert {
        "tensorrt.onnx",
        "tensorrt.engine.json",
        "build_engine.py",
        "golden/tensorrt.npz",
    } <= set(files(folder))
    assert isinstance(read_manifest(folder), AppManifest)
    # The script checks the model's hash and reads the golden vectors before it needs TensorRT.
    script = [sys.executable, "build_engine.py", "--trtexec", "/nowhere/trtexec"]
    ran = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "build_engine: /nowhere/trtexec: is no program\n"
    (folder / "golden" / "tensorrt.npz").unlink()
    ran = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)
    assert "tensorrt.npz" in ran.stderr


# --- the guide -----------------------------------------------------------------------------------

GUIDE = Path(__file__).resolve().parent.parent.parent / "docs" / "app_assets.md"


def test_the_guides_self_test_runs_without_numpy(bundle: Path, tmp_path: Path) -> None:
    folder = run_assets(bundle, "ios", tmp_path / "app").path
    code = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)[0]
    assert "numpy" not in code
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    assert names["self_test"](folder, "main", lambda inputs: {"y": inputs["x"]})
    assert not names["self_test"](folder, "main", lambda inputs: {"y": [0.0] * len(inputs["x"])})


def test_the_guide_lists_every_platform() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| `(.+?)` \|$", GUIDE.read_text(encoding="utf-8"), re.M
    )
    assert rows == [
        (p.name, ", ".join(f"`{f}`" for f in loaded_on(p.name)), p.folder("NAME").as_posix())
        for p in PLATFORMS.values()
    ]


def loaded_on(platform: str) -> list[str]:
    """Return the formats that a platform's runtimes load."""
    return [f for f in sorted(format_names()) if platform in exporter_for(f).platforms]


def test_every_platform_loads_some_format_and_every_format_names_platforms_that_are_known() -> None:
    assert all(loaded_on(name) for name in PLATFORMS)
    for name in format_names():
        assert set(exporter_for(name).platforms) <= set(PLATFORMS)


def test_the_notices_name_what_runs_each_format_with_its_licence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path
) -> None:
    assert all(exporter_for(name).runtimes for name in format_names())
    told = "- ExecuTorch: BSD-3-Clause\n- XNNPACK: BSD-3-Clause\n"
    rows = exporter_for("executorch").runtimes
    monkeypatch.setattr(type(exporter_for("onnx")), "runtimes", rows)
    one = run_assets(bundle, "android", tmp_path / "one")
    assert (Path(one.path) / "NOTICES.txt").read_text(encoding="utf-8").endswith(told)
    monkeypatch.setattr(type(exporter_for("onnx")), "runtimes", ())
    other = run_assets(bundle, "android", tmp_path / "other")
    assert (
        (Path(other.path) / "NOTICES.txt").read_text(encoding="utf-8").endswith("- onnx: unknown\n")
    )
