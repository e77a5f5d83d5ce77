"""ONNX Runtime as a runner: good files, bad files, bad inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import BundleError, DataError, RuntimeUnavailable
from edgeopt.runtime_tests.base import LoadOptions, Runner
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner, save_optimized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_model(path: Path) -> Path:
    """Write `y = relu(x), z = x + x` with a dynamic batch."""
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Relu", ["x"], ["y"]),
            onnx.helper.make_node("Identity", ["x"], ["same"]),
            onnx.helper.make_node("Add", ["same", "x"], ["z"]),
        ],
        "net",
        [make("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [make(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in ("z", "y")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_runs_a_file_with_outputs_in_its_order(tmp_path: Path) -> None:
    runner: Runner = OnnxRuntimeRunner()
    assert runner.unavailable() is None
    assert runner.version().startswith("onnxruntime 1.")
    for optimize in (True, False):
        path = write_model(tmp_path / "net.onnx")
        session = runner.load([path], LoadOptions(threads=1, optimize=optimize))
        x = np.array([[1, -2, 3]], np.float32)
        outputs = session.run("forward", {"x": x})
        assert list(outputs) == ["z", "y"]
        assert outputs["z"].tolist() == [[2, -4, 6]]
        assert outputs["y"].tolist() == [[1, 0, 3]]
        session.close()


def test_saves_the_graph_that_it_really_runs(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx")
    save_optimized(path, tmp_path / "optimized.onnx")
    operators = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert sorted(operators) == ["Add", "Relu"]


def _damage(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "zeros": b"\0" * 64,
        "text": b"hello, this is no model",
        "cut": good[: len(good) // 2],
        "cut at the end": good[:-1],
        "without its head": good[1:],
        "no graph": b"\x08\x0a",
        "unknown operator": good.replace(b"Relu", b"Rely"),
        "dangling input": good.replace(b"\x0a\x01x", b"\x0a\x01q", 1),
    }


@pytest.mark.parametrize("kind", sorted(_damage(b"x")))
def test_a_bad_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx")
    path.write_bytes(_damage(path.read_bytes())[kind])
    with pytest.raises(BundleError, match=r"net\.onnx: ") as caught:
        OnnxRuntimeRunner().load([path], LoadOptions())
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BundleError, match="cannot be"):
            OnnxRuntimeRunner().load([path], LoadOptions())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "'x' is missing"),
        ({"xx": np.ones((1, 3), np.float32)}, "no input 'xx'"),
        ({"x": np.ones((1, 4), np.float32)}, "dimensions"),
        ({"x": np.ones(3, np.float32)}, "rank"),
        ({"x": np.ones((1, 3), np.float64)}, "data type"),
    ],
    ids=["missing", "unknown", "shape", "rank", "type"],
)
def test_bad_inputs_are_one_line(inputs: dict[str, Any], words: str, tmp_path: Path) -> None:
    session = OnnxRuntimeRunner().load([write_model(tmp_path / "net.onnx")], LoadOptions())
    with pytest.raises(DataError, match=words) as caught:
        session.run("forward", inputs)
    assert "\n" not in str(caught.value)


def test_makes_inputs_that_fit(tmp_path: Path) -> None:
    session = OnnxRuntimeRunner().load([write_model(tmp_path / "net.onnx")], LoadOptions())
    inputs = session.example_inputs(seed=1)
    assert inputs["x"].shape == (1, 3)
    assert np.array_equal(inputs["x"], session.example_inputs(seed=1)["x"])
    session.run("forward", inputs)


def test_says_how_to_install_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    runner = OnnxRuntimeRunner()
    assert "pip install 'edgeopt[onnxruntime]'" in str(runner.unavailable())
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        runner.version()
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        runner.load([write_model(tmp_path / "net.onnx")], LoadOptions())
