"""What a plain ONNX file tells of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.artifacts.interface import IOSpec
from edgeopt.errors import BundleError
from edgeopt.exporters.onnx.signature import read_signature


def write(path: Path, *, external: bool = False, kind: int = TensorProto.FLOAT16) -> Path:
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float16), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", kind, ["n", None, 64]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT16, [64, 64]),  # as old files do
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3, 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    return path


def test_inputs_and_outputs_are_read_without_the_weights(tmp_path: Path) -> None:
    found = read_signature(write(tmp_path / "a.onnx"), "decode")
    assert found.method.name == "decode"
    assert found.method.inputs == (IOSpec("x", "float16", ("n", "x.1", 64)),)
    assert found.method.outputs == (IOSpec("y", "float16", ("n", 3, 64)),)
    assert found.external == ()


def test_files_beside_it_are_named_and_need_not_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", external=True)
    (tmp_path / "w.bin").unlink()
    assert read_signature(path).external == ("w.bin",)


@pytest.mark.parametrize("content", [b"no model", b"\x08\x0a\xff"])
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"a\.onnx"):
        read_signature(path)


def test_an_input_of_no_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="x is no tensor"):
        read_signature(write(tmp_path / "a.onnx", kind=TensorProto.UNDEFINED))
