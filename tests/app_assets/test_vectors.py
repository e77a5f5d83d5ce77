"""Golden vectors without numpy: what is written is what a C, Kotlin or Swift program would read."""

from __future__ import annotations

import array
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.app_assets.vectors import read_vectors, write_vectors
from edgeopt.errors import BundleError

TYPES = ["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.dtype(name) for name in TYPES]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_every_array_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, value: np.ndarray[Any, Any]
) -> None:
    folder = tmp_path_factory.mktemp("v")
    turned = np.array(value, order="F")
    write_vectors(folder, "m", "forward", {"x": turned}, {"y": value}, 0.1)
    index, inputs, outputs = read_vectors(folder)
    for got, row in ((inputs["x"], index.inputs[0]), (outputs["y"], index.outputs[0])):
        assert got.dtype == value.dtype == np.dtype(row.dtype)
        assert got.shape == value.shape == row.shape
        assert got.tobytes() == value.tobytes()


def test_a_program_without_numpy_reads_them(tmp_path: Path) -> None:
    x = np.array([[1.5, -2.0, 3.25]], np.float32)
    y = np.array([300, -1], np.int64)
    big = y.astype(">i8")  # a big-endian array is written as the others
    write_vectors(tmp_path, "model.onnx", "decode", {"x/odd name": x}, {"y": y, "b": big}, 0.05)
    index = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert (index["model"], index["method"], index["tolerance"]) == ("model.onnx", "decode", 0.05)
    assert index["byte_order"] == "little"
    (row,) = index["inputs"]
    assert (row["name"], row["dtype"], row["shape"]) == ("x/odd name", "float32", [1, 3])
    assert "/" not in row["file"]
    data = (tmp_path / row["file"]).read_bytes()
    assert list(struct.unpack("<3f", data)) == [1.5, -2.0, 3.25]
    for row in index["outputs"]:
        numbers = array.array("q", (tmp_path / row["file"]).read_bytes())
        assert list(numbers) == [300, -1]
        assert row["size_bytes"] == 16


def test_the_same_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name in ("a", "b"):
        write_vectors(tmp_path / name, "m", "forward", {"x": x}, {"y": x}, 0.1)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["index.json", "input0.bin", "output0.bin"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": [2, 2]}, "is not float32"),
        ({"size_bytes": 7}, "is not float32"),
        ({"dtype": "object"}, "is not object"),
        ({"dtype": "floot"}, "cannot be read"),
        ({"file": "../index.json"}, "leaves the folder"),
        ({"file": "absent.bin"}, "cannot be read"),
    ],
)
def test_a_damaged_index_is_one_error(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_vectors(tmp_path, "m", "forward", {"x": np.ones(3, np.float32)}, {"y": np.ones(1)}, 0.1)
    path = tmp_path / "index.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["inputs"][0].update(change)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleError, match=told):
        read_vectors(tmp_path)


def test_a_big_endian_index_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path, "m", "forward", {"x": np.ones(3, np.float32)}, {"y": np.ones(1)}, 0.1)
    path = tmp_path / "index.json"
    path.write_text(path.read_text(encoding="utf-8").replace("little", "big"), encoding="utf-8")
    with pytest.raises(BundleError, match="byte order"):
        read_vectors(tmp_path)
