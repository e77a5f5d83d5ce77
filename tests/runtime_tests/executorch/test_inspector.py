"""What is read off an ExecuTorch file: what XNNPACK takes, what it leaves, and why."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path

import pytest

from edgeopt.api.formats import exporter_for, inspector_for
from edgeopt.artifacts.artifact import FileEntry
from edgeopt.errors import BundleError
from edgeopt.runtime_tests.executorch.inspector import INSIDE, OUTSIDE, ExecuTorchInspector
from tests.exporters.executorch.models import PaddedCNN, Written, target, written
from tests.small_models import Block, SmallCNN

pytest.importorskip("executorch")


def structure(made: Written) -> object:
    return ExecuTorchInspector().structure(made.folder, made.artifact, target())


def test_the_format_is_registered() -> None:
    assert exporter_for("executorch").format == "executorch"
    assert isinstance(inspector_for("executorch"), ExecuTorchInspector)


def test_a_cnns_multiplications_are_counted_and_all_integer() -> None:
    found = structure(written(SmallCNN))
    # stem 8x3x9x64, depthwise 8x9x64, expand 8x8x64, head 8x5
    assert found.macs == 8 * 3 * 9 * 64 + 8 * 9 * 64 + 8 * 8 * 64 + 8 * 5
    assert found.int8_macs == 1.0
    assert found.float_gemms == 0
    assert found.compile["partitions"] == 1
    assert found.compile["delegated_share"] == 1.0
    assert found.compile["outside"] == {}
    assert found.compile["compiler"] == f"executorch {version('executorch')} (XNNPACK)"
    assert found.compile["slowest_here"]


def test_a_float_file_has_no_integer_share() -> None:
    found = structure(written(SmallCNN, quantized=False))
    assert found.macs == structure(written(SmallCNN)).macs
    assert found.int8_macs == 0.0
    assert found.float_gemms == 4


def test_grouped_and_one_dimensional_convolutions_are_counted() -> None:
    found = structure(written(PaddedCNN))
    rows = {row.site: row.macs for row in found.operators if row.macs}
    assert rows == {
        "stem:conv2d#0": 8 * 3 * 9 * 64,
        "left:conv2d#0": 4 * 4 * 9 * 64,
        "right:conv2d#0": 4 * 8 * 64,
        "down:conv2d#0": 8 * 9 * 16,
        "line:conv1d#0": 6 * 8 * 3 * 16,
    }
    assert found.int8_macs == 1.0


def test_each_operator_has_the_models_address_and_a_place() -> None:
    made = written(Block)
    found = structure(made)
    first = [row for row in found.operators if row.macs][:6]
    assert [(r.operator, r.site, r.precision, r.where) for r in first] == [
        ("FullyConnected", "attn.qkv:linear#0", "int8", INSIDE),
        ("BatchMatrixMultiply", first[1].site, "float32", INSIDE),
        ("BatchMatrixMultiply", first[2].site, "float32", INSIDE),
        ("FullyConnected", "attn.proj:linear#0", "int8", INSIDE),
        ("FullyConnected", "fc1:linear#0", "int8", INSIDE),
        ("FullyConnected", "fc2:linear#0", "int8", INSIDE),
    ]
    assert all("scaled_dot_product_attention" in row.site for row in first[1:3])
    outside = [row for row in found.operators if row.where == OUTSIDE]
    assert {row.site for row in outside} == {"norm1:layer_norm#0", "norm2:layer_norm#0"}
    assert all("native_layer_norm" in row.reason for row in outside)
    assert set(found.compile["outside"]) == {"norm1:layer_norm#0", "norm2:layer_norm#0"}
    assert found.float_gemms == 0
    assert 0.9 < found.compile["delegated_share"] < 1.0


def test_a_dynamic_batch_counts_one_sample_and_no_bookkeeping_as_an_operator() -> None:
    found = structure(written(SmallCNN, dynamic=True))
    assert found.macs == structure(written(SmallCNN)).macs
    assert not any(row.operator.startswith("executorch_prim") for row in found.operators)
    assert found.compile["delegated_share"] == 1.0
    assert found.compile["kernels"]["outside"]  # but they are counted


def test_the_memory_plan_is_the_files() -> None:
    plan = structure(written(SmallCNN)).compile["memory_plan"]["forward"]
    (arena,) = plan["arena_bytes"]
    assert 3 * 8 * 8 * 4 + 5 * 4 <= arena < 1024  # input and output, aligned; all else is XNNPACK's
    assert plan["largest"][0] == "float32 1x3x8x8: 768"


def test_sizes_are_listed_by_the_models_names() -> None:
    made = written(SmallCNN)
    rows = {row.site: row for row in ExecuTorchInspector().sizes(made.folder, made.artifact)}
    assert rows["stem.weight"].dtype == "int8"
    assert rows["stem.weight"].bytes == 8 * 3 * 9
    assert rows["head.bias"].dtype == "int32"
    assert rows["head.bias"].bytes == 5 * 4


def test_without_the_file_beside_it_operators_keep_their_own_names() -> None:
    made = written(SmallCNN)
    bare = dataclasses.replace(made.artifact, files=made.artifact.files[:1])
    found = ExecuTorchInspector().structure(made.folder, bare, target())
    assert found.int8_macs == 1.0
    assert all("#" not in row.site for row in found.operators)


def test_a_damaged_file_beside_it_is_one_clear_line(tmp_path: Path) -> None:
    made = written(SmallCNN)
    (tmp_path / "model.pte").write_bytes(made.path.read_bytes())
    (tmp_path / "model.sites.json").write_text('{"methods": []}')
    entries = (made.artifact.files[0], FileEntry("model.sites.json", "", 0))
    broken = dataclasses.replace(made.artifact, files=entries)
    with pytest.raises(BundleError, match=r"model\.sites\.json: cannot be read"):
        ExecuTorchInspector().structure(tmp_path, broken, target())


def test_a_bundle_alone_proves_nothing() -> None:
    made = written(SmallCNN)
    given = {"x": made.example[:1].numpy()}
    assert ExecuTorchInspector().prove(made.folder, made.artifact, given) is None
