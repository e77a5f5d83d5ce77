"""Qualcomm's compiler and simulator in child processes: what they take, and how they fail."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeopt.errors import (
    BundleError,
    CheckFailed,
    ConfigError,
    DataError,
    ExportError,
    RuntimeUnavailable,
)
from edgeopt.exporters.qnn import hexagon
from edgeopt.exporters.qnn.hexagon import (
    CHIPS,
    Simulator,
    compile_context,
    parse_chips,
    read_context,
)
from edgeopt.files import sha256
from tests.exporters.qnn.models import Written, written
from tests.small_models import SmallCNN, normal, seeded

pytestmark = pytest.mark.skipif(
    hexagon.unavailable() is not None, reason=str(hexagon.unavailable())
)
(V75,) = parse_chips("v75")
X = normal(4, 3, 8, 8)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a small network, compiled for two versions."""
    return written(seeded(SmallCNN), X, tmp_path_factory.mktemp("cnn"), hexagon="v75 v68")


# --- chips ---------------------------------------------------------------------------------------


def test_versions_and_part_numbers_in_their_order() -> None:
    assert [c.name for c in parse_chips("v79, v73 QCM6490")] == ["SM8750", "SM8550", "QCM6490"]
    assert len({c.soc_model for c in CHIPS}) == len({c.name for c in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v74", r"hexagon 'v74' is not known \(did you mean 'v7"),
        ("v73 SM8550", "v73 is named twice"),
        (" , ", "names no chip"),
    ],
)
def test_refuses_what_the_compiler_would_replace_in_silence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_chips(text)


# --- availability --------------------------------------------------------------------------------


def test_says_how_to_install_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxruntime_qnn" else find(n)
    )
    reason = "onnxruntime-qnn is not installed: pip install 'edgeopt[qnn]'"
    assert hexagon.unavailable() == reason
    with pytest.raises(RuntimeUnavailable, match="onnxruntime-qnn is not installed"):
        compile_context(Path("model.onnx"), "model.ctx.onnx", V75)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (("glibc", "2.31"), "needs glibc 2.35 or newer, and this system has 2.31"),
        (("glibc", "2.35"), None),
        (("", ""), None),  # no glibc: the loader itself will tell
    ],
)
def test_an_old_c_library_is_named(
    version: tuple[str, str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: version)
    found = hexagon.unavailable()
    assert found is None if reason is None else reason in str(found)


def test_another_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "this machine is aarch64" in str(hexagon.unavailable())


# --- compile -------------------------------------------------------------------------------------


def test_one_partition_for_the_chip_that_was_asked_for(cnn: Written) -> None:
    for version, soc in (("v75", 57), ("v68", 30)):
        compiled = read_context(cnn.folder / f"qnn.{version}.ctx.onnx")
        assert compiled.partitions == 1
        assert compiled.left == {}
        assert (compiled.chip.version, compiled.chip.soc_model) == (version, soc)
        assert compiled.sdk.startswith("v2.")
        (binary,) = compiled.binaries
        assert binary.stat().st_size > 10_000


def test_the_same_file_gives_the_same_bytes_in_any_folder(cnn: Written, tmp_path: Path) -> None:
    shutil.copyfile(cnn.folder / "qnn.onnx", tmp_path / "qnn.onnx")
    again = compile_context(tmp_path / "qnn.onnx", "qnn.v75.ctx.onnx", V75)
    for path in (again.context, *again.binaries):
        assert sha256(path) == sha256(cnn.folder / path.name)


def test_what_the_npu_lacks_is_named_and_splits_the_graph(tmp_path: Path) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).erf()).flatten(1)

    result = written(seeded(Split), X, tmp_path)
    compiled = read_context(tmp_path / "qnn.v75.ctx.onnx")
    assert compiled.partitions == 2
    assert "Erf" in compiled.left.values()
    assert any(
        "2 partitions" in note and "run on the CPU" in note for note in result.artifact.notes
    )
    with Simulator(compiled) as simulator:
        (got,) = simulator.run({"in0": X[:1].numpy()}).values()
    want = np.asarray(_run(result, X[:1]))
    assert _snr(want, got) > 30  # a step of 8 bits here and there


def test_a_compiler_that_aborts_is_one_line(cnn: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "echo loading >&2; echo 'free(): invalid pointer' >&2; kill -ABRT $$"
    monkeypatch.setattr(hexagon, "_command", lambda order: ["sh", "-c", crash])
    with pytest.raises(ExportError) as failure:
        compile_context(cnn.folder / "qnn.onnx", "other.ctx.onnx", V75)
    assert str(failure.value) == (
        "qnn.onnx: the Hexagon compiler ended with signal 6 for v75: free(): invalid pointer"
    )


def test_a_form_that_the_npu_lacks_does_not_pass_as_compiled(tmp_path: Path) -> None:
    _save_layer_norm(tmp_path / "norm.onnx")
    with pytest.raises(ExportError, match=r"norm.ctx.onnx: was not written; the graph fell back"):
        compile_context(tmp_path / "norm.onnx", "norm.ctx.onnx", V75)


def test_a_graph_that_is_wholly_the_cpus_is_an_error(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "strings.onnx",
    )
    with pytest.raises(ExportError, match=r"strings\.(ctx\.)?onnx: "):
        compile_context(tmp_path / "strings.onnx", "strings.ctx.onnx", V75)


def test_a_compiler_that_takes_too_long_is_stopped(cnn: Written, tmp_path: Path) -> None:
    shutil.copyfile(cnn.folder / "qnn.onnx", tmp_path / "qnn.onnx")
    with pytest.raises(ExportError, match=r"did not finish in 0.01 s"):
        compile_context(tmp_path / "qnn.onnx", "a.ctx.onnx", V75, timeout_s=0.01)


@pytest.mark.parametrize("harm", ["no binary", "no node", "other chip", "not onnx", "gone"])
def test_reads_back_only_what_is_whole(harm: str, cnn: Written, tmp_path: Path) -> None:
    for name in ("qnn.v75.ctx.onnx", "qnn.v75.ctx_qnn.bin"):
        shutil.copyfile(cnn.folder / name, tmp_path / name)
    path = tmp_path / "qnn.v75.ctx.onnx"
    model = onnx.load(path)
    if harm == "no binary":
        (tmp_path / "qnn.v75.ctx_qnn.bin").unlink()
    elif harm == "no node":
        model.graph.node[0].op_type = "Identity"
        path.write_bytes(model.SerializeToString())
    elif harm == "other chip":
        for entry in model.metadata_props:
            entry.value = entry.value.replace(":75:57:", ":0:0:")
        path.write_bytes(model.SerializeToString())
    elif harm == "not onnx":
        path.write_bytes(b"\xff" * 100)
    else:
        path.unlink()
    message = {
        "no binary": "qnn.v75.ctx_qnn.bin is missing",
        "no node": "no part of the graph runs on the NPU",
        "other chip": "was compiled for no chip that is known",
        "not onnx": "is no ONNX file",
        "gone": "was not written",
    }[harm]
    with pytest.raises(ExportError, match=message):
        read_context(path)


def test_a_binary_outside_the_folder_is_not_followed(cnn: Written, tmp_path: Path) -> None:
    model = onnx.load(cnn.folder / "qnn.v75.ctx.onnx")
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = b"../../etc/passwd"
    path = tmp_path / "qnn.v75.ctx.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"qnn.v75.ctx.onnx: .*passwd"):
        read_context(path)


# --- simulate ------------------------------------------------------------------------------------


def test_runs_again_and_again_and_says_what_is_wrong_with_inputs(cnn: Written) -> None:
    x = X[:1].numpy()
    with Simulator(read_context(cnn.folder / "qnn.v75.ctx.onnx")) as simulator:
        assert simulator.inputs == {"in0": "tensor(float)"}
        first = simulator.run({"in0": x})
        with pytest.raises(DataError, match="Got: 4 Expected: 8"):
            simulator.run({"in0": x[:, :, :4]})
        with pytest.raises((DataError, BundleError), match="in0"):
            simulator.run({})
        second = simulator.run({"in0": x})
    np.testing.assert_array_equal(first["out0"], second["out0"])
    assert _snr(np.asarray(_run(cnn, X[:1])), first["out0"]) > 30


def test_a_simulator_that_dies_is_one_line(cnn: Written) -> None:
    simulator = Simulator(read_context(cnn.folder / "qnn.v75.ctx.onnx"))
    simulator._process.kill()
    with pytest.raises(BundleError, match="simulator ended with signal 9"):
        simulator.run({"in0": X[:1].numpy()})
    simulator.close()


def test_a_simulator_that_hangs_is_stopped(cnn: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hexagon, "_command", lambda order: ["sleep", "60"])
    with pytest.raises(BundleError, match=r"did not answer in 0.1 s"):
        Simulator(read_context(cnn.folder / "qnn.v75.ctx.onnx"), timeout_s=0.1)


def test_a_damaged_binary_is_one_line(cnn: Written, tmp_path: Path) -> None:
    shutil.copyfile(cnn.folder / "qnn.v75.ctx.onnx", tmp_path / "qnn.v75.ctx.onnx")
    data = (cnn.folder / "qnn.v75.ctx_qnn.bin").read_bytes()
    (tmp_path / "qnn.v75.ctx_qnn.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"qnn.v75.ctx.onnx: ") as failure:
        Simulator(read_context(tmp_path / "qnn.v75.ctx.onnx"))
    assert "\n" not in str(failure.value)


def test_a_fall_back_to_the_cpu_is_a_failed_check(
    cnn: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain ONNX file in place of a compiled one: ONNX Runtime would run it on the CPU."""
    path = tmp_path / "plain.onnx"
    x = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    compiled = hexagon.Compiled(path, (), V75, "", 1, {})
    with pytest.raises(CheckFailed, match=r"plain.onnx: "):
        Simulator(compiled)


def _run(result: Written, x: Tensor) -> Any:
    from edgeopt.ir import program

    return program.run(result.exported, (x,), {})


def _snr(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    noise = float(((want - got).astype(np.float64) ** 2).sum())
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def _save_layer_norm(path: Path) -> None:
    """Write a normalization with an int8 weight, which the HTP compiler leaves to the CPU."""
    constants: dict[str, Any] = {
        "s": np.float32(0.02), "z": np.uint8(128), "w": np.full(16, 100, np.int8),
        "ws": np.float32(0.01), "wz": np.int8(0), "b": np.zeros(16, np.int32),
        "bs": np.float32(0.0002), "bz": np.int32(0),
    }  # fmt: skip
    dq = "DequantizeLinear"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node(dq, ["xq", "s", "z"], ["xd"]),
        helper.make_node(dq, ["w", "ws", "wz"], ["wd"]),
        helper.make_node(dq, ["b", "bs", "bz"], ["bd"]),
        helper.make_node("LayerNormalization", ["xd", "wd", "bd"], ["n"], axis=-1),
        helper.make_node("QuantizeLinear", ["n", "s", "z"], ["nq"]),
        helper.make_node(dq, ["nq", "s", "z"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 5, 16]) for n in "xy")
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
