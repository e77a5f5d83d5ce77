"""`edgeopt bench`: plain files and bundles, alone and in pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pydantic
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.api.bench import run_bench
from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.artifacts.interface import IOSpec, Method
from edgeopt.artifacts.manifest import Manifest
from edgeopt.cli import main
from edgeopt.devices.profile import Protocol
from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.files import to_json
from edgeopt.results.reports import BenchResult
from edgeopt.results.verdicts import Pace

pytest.importorskip("onnxruntime")
QUICK = Protocol(warmup=1, samples=12, block=2)


def _matmuls(path: Path, width: int, count: int, batch: int | str = "batch") -> Path:
    """Write a chain of matrix products with an integer input beside it."""
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"], name=f"m{i}")
        for i in range(count)
    ]
    nodes.append(helper.make_node("Gather", [f"x{count}", "rows"], ["y"], axis=0))
    inputs = [
        helper.make_tensor_value_info("x0", TensorProto.FLOAT, [batch, width]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)
    return path


def _bundle(folder: Path, formats: tuple[str, ...]) -> Path:
    """Write a bundle with one file of each format."""
    artifacts = []
    for name in formats:
        file = _matmuls(folder / f"{name}.onnx", 16, 1, batch=4)
        spec = IOSpec("x0", "float32", (4, 16))
        artifacts.append(
            Artifact(
                name=f"my-{name}",
                target=name,
                format=name,
                precision="float32",
                plan="",
                files=(FileEntry(file.name, "00" * 32, file.stat().st_size),),
                methods=(Method("forward", (spec,), (spec,)),),
                tensor_map={},
            )
        )
    manifest = Manifest(
        edgeopt="0.1.0",
        model="m",
        profile="host",
        recipe="float",
        build_key="0",
        hashes={},
        seed=0,
        tools={},
        artifacts=tuple(artifacts),
        files=tuple(a.model_file for a in artifacts),
    )
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    return folder


def test_times_a_plain_file_with_dynamic_and_integer_inputs(tmp_path: Path) -> None:
    result = run_bench(_matmuls(tmp_path / "a.onnx", 16, 1), None, QUICK)
    (latency,) = result.latency
    assert latency.artifact == "a"
    assert latency.batch == 1
    assert latency.kind == "measured"
    assert len(latency.samples_ms) >= 12
    assert 0 < latency.p50.low <= latency.p50.value <= latency.p50.high
    assert not result.comparisons


def test_a_bundle_stands_for_its_first_onnx_artifact(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "b", ("tensorrt", "onnx"))
    (latency,) = run_bench(bundle, None, QUICK).latency
    assert latency.artifact == "my-onnx"
    assert latency.batch == 4


def test_a_bundle_without_onnx_cannot_be_timed_here(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="on its device"):
        run_bench(_bundle(tmp_path / "b", ("tensorrt",)), None, QUICK)


def test_a_much_larger_model_is_slower(tmp_path: Path) -> None:
    large = _matmuls(tmp_path / "large.onnx", 512, 24, batch=16)
    small = _matmuls(tmp_path / "small.onnx", 16, 1, batch=16)
    result = run_bench(large, small, Protocol(warmup=1, samples=24, block=3))
    (pair,) = result.comparisons
    assert (pair.candidate, pair.baseline) == ("large", "small")
    assert pair.pace is Pace.SLOWER
    assert pair.low > 1
    assert [found.artifact for found in result.latency] == ["large", "small"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = _matmuls(tmp_path / "one" / "m.onnx", 16, 1)
    two = _matmuls(tmp_path / "two" / "m.onnx", 16, 1)
    names = [found.artifact for found in run_bench(one, two, QUICK).latency]
    assert names == [one.as_posix(), two.as_posix()]
    names = [found.artifact for found in run_bench(one, one, QUICK).latency]
    assert names == ["m (1)", "m (2)"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"bad\.onnx"):
        run_bench(path, None, QUICK)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx", "text.pte"])
def test_what_is_no_bundle_and_no_onnx_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pte").write_text("x", encoding="utf-8")
    with pytest.raises(BundleError, match=name):
        run_bench(tmp_path / name, None, QUICK)


def test_the_command_prints_json_and_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(_matmuls(tmp_path / "a.onnx", 16, 1))
    words = ["bench", path, "--samples", "10", "--warmup", "0"]
    assert main([*words, "--json"]) == 0
    read = pydantic.TypeAdapter(BenchResult).validate_python(json.loads(capsys.readouterr().out))
    assert read.latency[0].artifact == "a"
    assert main(words) == 0
    assert "p50 ms" in capsys.readouterr().out


def test_cannot_tell_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.runtime_tests.latency.judge", lambda *_: Pace.CANNOT_TELL)
    path = str(_matmuls(tmp_path / "a.onnx", 16, 1))
    assert main(["bench", path, "--against", path, "--samples", "10", "--warmup", "0"]) == 3
