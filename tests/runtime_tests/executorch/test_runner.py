"""ExecuTorch files run in processes of their own: numbers, times, memory, and bad ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.devices.profile import Protocol
from edgeopt.errors import BundleError, DataError
from edgeopt.ir import program
from edgeopt.results.verdicts import Pace
from edgeopt.runtime_tests.base import LoadOptions, RemoteSession
from edgeopt.runtime_tests.executorch.profile import profile
from edgeopt.runtime_tests.executorch.runner import (
    ExecuTorchRunner,
    ExecuTorchSession,
    RuntimeProcess,
    peak_memory,
    shared_process,
)
from edgeopt.runtime_tests.latency import compare, subject
from tests.exporters.executorch.models import Written, written
from tests.small_models import Block, SmallCNN, normal

pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def made() -> Written:
    return written(SmallCNN)


@pytest.fixture
def session(made: Written) -> Iterator[ExecuTorchSession]:
    loaded = ExecuTorchRunner().load([made.path], LoadOptions())
    yield loaded
    loaded.close()


def inputs(made: Written, batch: int = 1) -> dict[str, np.ndarray]:
    return {"x": made.example[:batch].numpy()}


def wanted(made: Written, batch: int = 1) -> np.ndarray:
    exported = made.state.carrier_programs["forward"]
    return program.run(exported, (made.example[:batch],), {}).numpy()


def test_an_integer_file_gives_its_programs_numbers_to_the_bit(
    made: Written, session: ExecuTorchSession
) -> None:
    outputs = session.run("forward", inputs(made))
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], wanted(made))


def test_a_float_file_gives_the_models_numbers() -> None:
    plain = written(SmallCNN, quantized=False)
    loaded = ExecuTorchRunner().load([plain.path], LoadOptions())
    got = loaded.run("forward", inputs(plain))["y"]
    loaded.close()
    # sums of at most 72 products in another order, float32
    np.testing.assert_allclose(got, wanted(plain), rtol=0, atol=1e-5)


def test_each_method_and_each_dynamic_batch_runs() -> None:
    block, dynamic = written(Block), written(SmallCNN, dynamic=True)
    loaded = ExecuTorchRunner().load([block.path], LoadOptions())
    for method, batch in (("forward", 1), ("batch2", 2)):
        got = loaded.run(method, inputs(block, batch))["y"]
        # float islands may round differently, which moves a code by one step
        np.testing.assert_allclose(got, wanted(block, batch), rtol=0, atol=0.05)
    loaded.close()
    loaded = ExecuTorchRunner().load([dynamic.path], LoadOptions())
    for batch in (1, 3, 2):
        got = loaded.run("forward", inputs(dynamic, batch))["y"]
        np.testing.assert_array_equal(got, wanted(dynamic, batch))
    with pytest.raises(DataError, match=r"not float32 of at most \(15, 3, 8, 8\)"):
        loaded.run("forward", {"x": normal(16, 3, 8, 8).numpy()})
    loaded.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32), "z": np.zeros(1)}, "no input 'z'"),
        ({"x": np.zeros((1, 3, 8, 8))}, "float64"),
        ({"x": np.zeros((2, 3, 8, 8), np.float32)}, r"\(2, 3, 8, 8\), not float32 of \(1, 3, 8"),
    ],
    ids=["missing", "unknown", "type", "shape"],
)
def test_wrong_inputs_are_named(session: ExecuTorchSession, given: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        session.run("forward", given)


def test_an_unknown_method_is_named_with_the_nearest(session: ExecuTorchSession) -> None:
    with pytest.raises(DataError, match=r"no method 'forwards'.*'forward'"):
        session.run("forwards", {})


def test_a_file_that_another_tool_wrote_gets_numbered_names(tmp_path: Path) -> None:
    from edgeopt.exporters.executorch.lowering import lower

    class Twice(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a * b

    exported = torch.export.export(Twice(), (torch.ones(2, 3), torch.ones(2, 3)))
    path = tmp_path / "plain.pte"
    path.write_bytes(lower({"forward": exported}, {}, "edgeopt").data)
    loaded = ExecuTorchRunner().load([path], LoadOptions())
    given = loaded.example_inputs()
    assert list(given) == ["input_0", "input_1"]
    got = loaded.run("forward", given)
    loaded.close()
    np.testing.assert_array_equal(got["output_0"], given["input_0"] + given["input_1"])
    np.testing.assert_array_equal(got["output_1"], given["input_0"] * given["input_1"])


@pytest.mark.parametrize("size", [0, 50, 3000], ids=["empty", "header", "half"])
def test_a_cut_file_is_one_clear_line(made: Written, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.pte"
    path.write_bytes(made.path.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"cut\.pte"):
        ExecuTorchRunner().load([path], LoadOptions())


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.pte: cannot be read"):
        ExecuTorchRunner().load([tmp_path / "none.pte"], LoadOptions())


def test_a_file_that_the_runtime_refuses_says_why(made: Written, tmp_path: Path) -> None:
    """A weight's scale of NaN passes every check on structure, and XNNPACK refuses it."""
    from edgeopt.exporters.executorch.file import read_file

    data = bytearray(made.path.read_bytes())
    scales = next(v for k, v in read_file(made.path).named.items() if k.startswith("scale_"))
    at = bytes(data).index(bytes(scales))
    data[at : at + len(scales)] = np.full(len(scales) // 4, np.nan, np.float32).tobytes()
    path = tmp_path / "refused.pte"
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"refused\.pte: .*XNN|refused\.pte: .*xnn"):
        ExecuTorchRunner().load([path], LoadOptions())


def test_a_runtime_that_dies_is_one_clear_line_and_the_next_file_runs(made: Written) -> None:
    loaded = ExecuTorchRunner().load([made.path], LoadOptions())
    process = shared_process(1)
    process._child.kill()
    process._child.wait()
    with pytest.raises(BundleError, match=r"aborted|ended earlier"):
        loaded.run("forward", inputs(made))
    loaded.close()
    again = ExecuTorchRunner().load([made.path], LoadOptions())
    np.testing.assert_array_equal(again.run("forward", inputs(made))["y"], wanted(made))
    again.close()


def test_times_are_taken_where_the_session_is_and_leave_the_numbers(
    made: Written, session: ExecuTorchSession
) -> None:
    assert isinstance(session, RemoteSession)
    other = ExecuTorchRunner().load([made.path], LoadOptions())
    for one in (session, other):
        one.prepare("forward", inputs(made))
    taken = session.timed([session, other, session])
    assert len(taken) == 3
    assert all(0 < ms < 1000 for ms in taken)
    np.testing.assert_array_equal(session.run("forward", inputs(made))["y"], wanted(made))
    other.close()


def test_sessions_of_two_processes_are_not_timed_together(made: Written) -> None:
    own = RuntimeProcess()
    try:
        from edgeopt.exporters.executorch.file import read_file

        file = read_file(made.path)
        first = ExecuTorchSession(own, made.path, file, threads=1)
        second = ExecuTorchRunner().load([made.path], LoadOptions())
        assert not first.holds([first, second])
        with pytest.raises(BundleError, match="another process"):
            first.timed([first, second])
        second.close()
    finally:
        own.stop()


def test_a_file_against_itself_is_compared_through_the_runtimes_own_clock(made: Written) -> None:
    protocol = Protocol(warmup=2, samples=30, block=6)
    subjects = [
        subject(name, ExecuTorchRunner(), [made.path], inputs(made), protocol)
        for name in ("a", "b")
    ]
    pair = compare(subjects[0], subjects[1], protocol)
    assert pair.candidate.runtime.startswith("executorch 1.")
    assert len(pair.candidate.samples_ms) == len(pair.baseline.samples_ms) == 30
    assert pair.comparison.pace in set(Pace)
    assert 0.2 < pair.comparison.ratio < 5  # the same file


def test_memory_is_a_process_of_its_own(made: Written) -> None:
    found = peak_memory("m", made.path)
    assert 50 < found.base_rss_mb < found.peak_rss_mb < found.base_rss_mb + 200


def test_the_profile_names_integer_kernels_and_their_calls(made: Written) -> None:
    convolutions = [k.kernel for k in profile(made.path, runs=3) if "Convolution" in k.kernel]
    assert convolutions
    assert all("QC8" in kernel for kernel in convolutions)
    found = profile(written(Block).path, runs=3)
    calls = {k.kernel.partition(" (")[0]: k.calls for k in found}
    assert calls["Fully Connected"] == 4
    assert calls["native_layer_norm.out"] == 2  # outside the delegates, timed in nanoseconds
    assert sum(k.share for k in found) == pytest.approx(1.0)
    assert list(found) == sorted(found, key=lambda k: (-k.microseconds, k.kernel))


def test_a_copy_elsewhere_runs_without_the_file_beside_it(made: Written, tmp_path: Path) -> None:
    path = tmp_path / "alone.pte"
    shutil.copy(made.path, path)
    loaded = ExecuTorchRunner().load([path], LoadOptions(threads=2))
    assert list(loaded.run("forward", inputs(made))) == ["y"]
    loaded.close()
    shared_process(2).stop()
