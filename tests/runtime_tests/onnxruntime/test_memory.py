"""Peak memory of a process that runs a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.runtime_tests.onnxruntime import memory

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_model(path: Path, weight: np.ndarray[Any, Any]) -> Path:
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [make("x", onnx.TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [make("y", onnx.TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads /proc")
def test_a_larger_file_takes_more_memory(tmp_path: Path) -> None:
    small = write_model(tmp_path / "small.onnx", np.ones((8, 8), np.float32))
    large = write_model(tmp_path / "large.onnx", np.ones((2048, 2048), np.float32))  # 16.8 MB
    ballast = np.ones(50_000_000, np.uint8)  # the parent's own memory must not count
    results = [memory.peak_memory(path.stem, path) for path in (small, large)]
    del ballast
    for result in results:
        assert 0 < result.base_rss_mb < result.peak_rss_mb
        # Python, numpy and the runtime; torch alone would take more than this.
        assert result.base_rss_mb < 110
        assert result.runtime.startswith("onnxruntime ")
    assert results[1].artifact == "large"
    assert results[1].peak_rss_mb - results[0].peak_rss_mb > 16


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads /proc")
def test_given_inputs_set_the_dynamic_sizes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx", np.ones((64, 64), np.float32))
    one = memory.peak_memory("net", path)
    many = memory.peak_memory("net", path, {"x": np.ones((65536, 64), np.float32)})
    # The output alone is 65536 * 64 * 4 bytes = 16.8 MB.
    assert many.peak_rss_mb - many.base_rss_mb > one.peak_rss_mb - one.base_rss_mb + 16


def test_wrong_files_and_inputs_are_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"damaged\.onnx"):
        memory.peak_memory("net", damaged)
    path = write_model(tmp_path / "net.onnx", np.ones((8, 8), np.float32))
    with pytest.raises(BundleError, match="of its own") as caught:
        memory.peak_memory("net", path, {"x": np.ones((1, 9), np.float32)})
    assert "\n" not in str(caught.value)


def test_says_where_it_cannot_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    with pytest.raises(RuntimeUnavailable, match="/proc"):
        memory.peak_memory("net", tmp_path / "net.onnx")
