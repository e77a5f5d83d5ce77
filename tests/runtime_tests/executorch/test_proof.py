"""XNNPACK's kernels against the reference executor, on this machine, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeopt.exporters.executorch.lowering import lower
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import ORT_MLAS, XNNPACK
from edgeopt.integer.executor import Executor
from edgeopt.integer.kernels import Grid
from edgeopt.runtime_tests.base import LoadOptions
from edgeopt.runtime_tests.executorch.proof import prove
from edgeopt.runtime_tests.executorch.runner import ExecuTorchRunner
from tests.exporters.executorch.models import PaddedCNN, written
from tests.small_models import Block, SmallCNN

pytest.importorskip("executorch")
import torch.ao.quantization.fx._decomposed

QD = torch.ops.quantized_decomposed


@dataclasses.dataclass(frozen=True)
class Case:
    """Grids of two inputs and an output: scale and zero point."""

    a: tuple[float, int]
    b: tuple[float, int]
    out: tuple[float, int]

    def grids(self) -> tuple[Grid, Grid, Grid]:
        first, second, third = (Grid.of(s, z, np.int8) for s, z in (self.a, self.b, self.out))
        return first, second, third


CASES = (
    Case((0.0431, -7), (0.0119, 31), (0.0523, -3)),
    Case((0.01, 0), (0.19, 11), (0.1773, 5)),
    # powers of two: ties in every product and sum, which an odd zero point tells apart
    Case((0.0625, 3), (0.03125, -5), (0.125, 7)),
    Case((0.5, -1), (0.25, 1), (1.0, -9)),
)


def real(codes: Tensor, grid: tuple[float, int]) -> Tensor:
    scale, zero = float(np.float32(grid[0])), grid[1]
    return QD.dequantize_per_tensor(codes, scale, zero, -128, 127, torch.int8)


def codes(x: Tensor, grid: tuple[float, int]) -> Tensor:
    scale, zero = float(np.float32(grid[0])), grid[1]
    return QD.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)


WEIGHT = np.random.default_rng(3).integers(-127, 128, (6, 8)).astype(np.int8)
WEIGHT_SCALES = np.array([1, 2, 0.5, 0.7, 1.3, 0.25], np.float32) * np.float32(2**-7)


class Operators(nn.Module):
    """Each kind of kernel, for each case, from codes to codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(WEIGHT))
        self.register_buffer("scales", torch.from_numpy(WEIGHT_SCALES))
        self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))

    def filters(self) -> Tensor:
        return QD.dequantize_per_channel(
            self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8
        )

    def forward(
        self,
        firsts: list[Tensor],
        seconds: list[Tensor],
        planes: list[Tensor],
        rows: list[Tensor],
        x: Tensor,
    ) -> tuple[Tensor, ...]:
        found = []
        for case, a, b, plane, c in zip(CASES, firsts, seconds, planes, rows, strict=True):
            found.append(codes(real(a, case.a) + real(b, case.b), case.out))
            found.append(codes(real(a, case.a) - real(b, case.b), case.out))
            found.append(codes(real(a, case.a) * real(b, case.b), case.out))
            found.append(codes(real(plane, case.a).mean([2, 3], True), case.out))
            found.append(codes(x, case.a))
            product = nn.functional.linear(real(c, case.a), self.filters())
            found.append(codes(product, case.out))
        return tuple(found)


def awkward_means(case: Case, taps: int) -> np.ndarray:
    """Return planes whose means lie within a rounding error of a tie: the order of factors shows.

    `(s / y) * (1 / n)`, `s / (y * n)` and `s / y / n` round differently in float32.
    """
    s, y, n = np.float32(case.a[0]), np.float32(case.out[0]), np.float32(taps)
    sums = np.arange((-100 - case.a[1]) * taps, (100 - case.a[1]) * taps)
    factors = [(s / y) * (1 / n), s / (y * n), s / y / n]
    rounded = np.stack([np.rint(sums.astype(np.float32) * f) for f in factors])
    differ = (rounded != rounded[0]).any(0)
    chosen = np.concatenate([sums[differ], sums[:: max(len(sums) // 500, 1)]])[:600]
    low = chosen // taps
    plane = np.repeat(low[:, None], taps, 1)
    plane += np.arange(taps)[None] < (chosen - low * taps)[:, None]
    return (plane + case.a[1]).astype(np.int8).reshape(1, -1, 7, taps // 7)


def test_each_kernel_is_xnnpacks_to_the_bit_also_on_ties(tmp_path: Path) -> None:
    every = np.arange(-128, 128, dtype=np.int8)
    a = np.repeat(every, 256).reshape(1, 256, 256)
    b = np.tile(every, 256).reshape(1, 256, 256)
    planes = [awkward_means(case, 49) for case in CASES]
    count = max(p.shape[1] for p in planes)
    planes = [np.resize(p, (1, count, 7, 7)) for p in planes]
    random = np.random.default_rng(0)
    halves = np.arange(-2000, 2000) * np.float32(0.0625) / 2
    rows = random.integers(-20, 20, (4096, 8)).astype(np.int8)
    x = np.concatenate([random.standard_normal(60000) * 3, halves])
    x = x.astype(np.float32).reshape(1, -1)
    arguments = (
        [torch.from_numpy(a.copy()) for _ in CASES],
        [torch.from_numpy(b.copy()) for _ in CASES],
        [torch.from_numpy(p.copy()) for p in planes],
        [torch.from_numpy(rows.copy()) for _ in CASES],
        torch.from_numpy(x),
    )
    with torch.no_grad():
        exported = torch.export.export(Operators().eval(), arguments)
    path = tmp_path / "elementwise.pte"
    lowered = lower({"forward": exported}, {}, "edgeopt")
    assert all(node.delegated for node in lowered.nodes["forward"])
    path.write_bytes(lowered.data)
    session = ExecuTorchRunner().load([path], LoadOptions())
    flat = [t.numpy() for group in arguments[:4] for t in group] + [x]
    given = dict(zip(session.input_names("forward"), flat, strict=True))
    outputs = list(session.run("forward", given).values())
    session.close()
    for index, case in enumerate(CASES):
        left, right, out = case.grids()
        added, subtracted, multiplied, averaged, quantized, product = outputs[
            6 * index : 6 * index + 6
        ]
        same = np.testing.assert_array_equal
        same(added, kernels.add(a, left, b, right, out, XNNPACK))
        same(subtracted, kernels.subtract(a, left, b, right, out, XNNPACK))
        same(multiplied, kernels.multiply(a, left, b, right, out, XNNPACK))
        same(averaged, kernels.global_average_pool(planes[index], left, out, XNNPACK))
        same(quantized, kernels.quantize(x, left, XNNPACK))
        weights = Grid.of(WEIGHT_SCALES, np.zeros(6, np.int32), np.int8)
        same(product, kernels.gemm(rows, left, WEIGHT.T, weights, out, arithmetic=XNNPACK))
    # the test can fail: another runtime's arithmetic gives other codes on the ties
    left, right, out = CASES[2].grids()
    added, _, multiplied, averaged, _, _ = outputs[12:18]
    assert (added != kernels.add(a, left, b, right, out, ORT_MLAS)).any()
    assert (multiplied != kernels.multiply(a, left, b, right, out, ORT_MLAS)).any()
    assert (averaged != kernels.global_average_pool(planes[2], left, out, ORT_MLAS)).any()


@pytest.mark.parametrize(
    ("kind", "nodes"),
    [(SmallCNN, 8), (PaddedCNN, 6), (Block, 8)],
    ids=["cnn", "padded", "block"],
)
def test_every_integer_operator_equals_the_executor(kind: type[nn.Module], nodes: int) -> None:
    made = written(kind)
    given = {"x": made.example[:1].numpy()}
    found = prove("m", made.path, given, made.state.carrier_programs["forward"])
    assert found.first_difference == ""
    assert found.exact
    assert found.unproven == {}
    assert found.nodes >= nodes
    assert found.elements == found.equal > 500
    assert found.arithmetic == "xnnpack"
    islands = set(found.float_islands)
    if kind is Block:
        assert {"layer_norm", "softmax", "gelu", "bmm"} <= islands
        assert "linear" not in islands
    else:
        assert islands == set()


def test_a_whole_run_of_the_executor_gives_the_files_outputs_to_the_bit() -> None:
    for kind in (SmallCNN, PaddedCNN):
        made = written(kind)
        x = made.example[:1].numpy()
        session = ExecuTorchRunner().load([made.path], LoadOptions())
        outputs = list(session.run("forward", {session.input_names("forward")[0]: x}).values())
        session.close()
        trace = Executor(made.programs["forward"], XNNPACK).run([x])
        for got, wanted in zip(trace.outputs, outputs, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_wrong_arithmetic_is_found_and_its_first_difference_told() -> None:
    """Truncation differs from the runtime wherever a product has a fraction over a half."""
    made = written(SmallCNN)
    given = {"x": made.example[:1].numpy()}

    class Truncating(type(XNNPACK)):  # type: ignore[misc]
        def requantize(self, accumulator, factor, zero_point, dtype):  # type: ignore[no-untyped-def]
            real = np.floor(accumulator.astype(np.float32) * factor) + zero_point
            return np.clip(real, -128, 127).astype(dtype)

    wrong = Truncating("truncating", XNNPACK.rounding, elementwise=XNNPACK.elementwise)
    found = prove("m", made.path, given, made.state.carrier_programs["forward"], arithmetic=wrong)
    assert not found.exact
    assert "stem:conv2d#0 (conv2d)" in found.first_difference
    stem = next(d for d in found.details if d.node == "stem:conv2d#0")
    assert stem.max_lsb == 1.0
    assert set(stem.histogram) == {"+1"}
