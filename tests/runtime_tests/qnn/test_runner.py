"""The NPU's simulator: every operator of the rules, the runner's errors, the inspector's tale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.api.formats import exporter_for, inspector_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.exporters.qnn import hexagon
from edgeopt.exporters.qnn.exporter import QnnExporter
from edgeopt.ir import program
from edgeopt.numerics.snr import snr_db
from edgeopt.runtime_tests.base import LoadOptions
from edgeopt.runtime_tests.qnn.inspector import QnnInspector
from edgeopt.runtime_tests.qnn.runner import QnnRunner
from tests.exporters.qnn.models import Written, written
from tests.small_models import normal, seeded

pytestmark = pytest.mark.skipif(
    hexagon.unavailable() is not None, reason=str(hexagon.unavailable())
)
X = normal(2, 8, 16, 16)

Operators = dict[str, Callable[["Everything", Tensor, Tensor, Tensor], Tensor]]
OPERATORS: Operators = {
    "conv2d": lambda m, x, a, b: m.conv(x),
    "depthwise": lambda m, x, a, b: m.depthwise(x),
    "conv1d": lambda m, x, a, b: m.conv1d(x[:, :, 0]),
    "linear": lambda m, x, a, b: m.linear(x),
    "linear without bias": lambda m, x, a, b: m.plain(x[:, 0]),
    "conv2d, relu": lambda m, x, a, b: F.relu(m.conv(-x)),
    "conv2d, relu6": lambda m, x, a, b: F.relu6(m.conv(4 * x)),
    "add": lambda m, x, a, b: a + b,
    "sub": lambda m, x, a, b: a - b,
    "mul": lambda m, x, a, b: a * b,
    "add a constant": lambda m, x, a, b: x + m.position,
    "mul by a number": lambda m, x, a, b: x * 0.3,
    "add a number": lambda m, x, a, b: x + 1.5,
    "sub from a number": lambda m, x, a, b: 1 - x,
    "div by a number": lambda m, x, a, b: x / 8,
    "div": lambda m, x, a, b: a / (torch.sigmoid(b) + 1.5),
    "layer_norm": lambda m, x, a, b: m.norm(x),
    "matmul": lambda m, x, a, b: a @ b.transpose(-1, -2),
    "softmax": lambda m, x, a, b: x.softmax(-1),
    "softmax of channels": lambda m, x, a, b: x.softmax(1),
    "log_softmax": lambda m, x, a, b: x.log_softmax(-1),
    "gelu": lambda m, x, a, b: F.gelu(x),
    "sigmoid": lambda m, x, a, b: torch.sigmoid(x),
    "tanh": lambda m, x, a, b: torch.tanh(x),
    "hardswish": lambda m, x, a, b: F.hardswish(x),
    "hardsigmoid": lambda m, x, a, b: F.hardsigmoid(x),
    "elu": lambda m, x, a, b: F.elu(x),
    "leaky_relu": lambda m, x, a, b: F.leaky_relu(x, 0.1),
    "silu": lambda m, x, a, b: F.silu(x),
    "adaptive_avg_pool2d": lambda m, x, a, b: F.adaptive_avg_pool2d(x, 1),
    "avg_pool2d": lambda m, x, a, b: F.avg_pool2d(x, 2),
    "mean": lambda m, x, a, b: x.mean(1),
    "sum": lambda m, x, a, b: x.sum(-1),
    "amax": lambda m, x, a, b: x.amax(-1),
    "maximum": lambda m, x, a, b: torch.maximum(a, b),
    "max_pool2d": lambda m, x, a, b: F.max_pool2d(x, 2),
    "upsample_nearest2d": lambda m, x, a, b: F.interpolate(x, scale_factor=2.0),
    "upsample_bilinear2d": lambda m, x, a, b: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "sqrt": lambda m, x, a, b: x.abs().sqrt(),
    "exp": lambda m, x, a, b: (0.3 * x).exp(),
    "neg": lambda m, x, a, b: -x,
    "cat": lambda m, x, a, b: torch.cat([a, 2 * b], 1),
    "cat with a constant": lambda m, x, a, b: torch.cat(
        [m.token.expand(x.shape[0], -1, -1, -1), x], 2
    ),
    "pad": lambda m, x, a, b: F.pad(x, (1, 1, 0, 2)),
    "relu": lambda m, x, a, b: F.relu(x),
    "clamp": lambda m, x, a, b: x.clamp(-0.5, 0.7),
    "permute, reshape": lambda m, x, a, b: x.permute(0, 2, 3, 1).reshape(x.shape[0], 16, -1),
    "select, slice": lambda m, x, a, b: x[:, 2, 2:5, ::2],
    "attention": lambda m, x, a, b: F.scaled_dot_product_attention(a, b, b),
    "causal attention": lambda m, x, a, b: F.scaled_dot_product_attention(a, b, b, is_causal=True),
}
"""What the rules speak of, each as one output of one model, so that it is compiled once."""


class Everything(nn.Module):
    """Each operator on the same values, which a first sum keeps away from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2)
        self.conv1d = nn.Conv1d(8, 6, 3)
        self.linear = nn.Linear(16, 12)
        self.plain = nn.Linear(16, 16, bias=False)
        self.norm = nn.LayerNorm(16)
        self.token = nn.Parameter(normal(1, 8, 1, 16, seed=5))
        self.position = nn.Parameter(normal(1, 8, 1, 16, seed=6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x + self.position
        a, b = x.chunk(2, 2)
        return tuple(operator(self, x, a, b) for operator in OPERATORS.values())


@pytest.fixture(scope="module", params=[8, 16], ids=["8 bit", "16 bit"])
def everything(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Written]:
    folder = tmp_path_factory.mktemp("everything")
    return request.param, written(seeded(Everything), X, folder, bits=request.param)


def test_every_operator_computes_its_program(everything: tuple[int, Written]) -> None:
    bits, result = everything
    assert result.artifact.notes == ()  # one partition, nothing left to the CPU
    want = program.run(result.exported, (X[:1],), {})
    exact = seeded(Everything)(X[:1])
    session = QnnRunner().load(result.files, LoadOptions())
    try:
        got = session.run("forward", {"in0": X[:1].numpy()})
    finally:
        session.close()
    # 8 bit: at 36 dB about every second code differs by one. 16 bit: some kernels interpolate
    # between table entries. The compiler may also leave codes out and do better than the program.
    least = 35.0 if bits == 8 else 55.0
    worse = {}
    for name, wanted, float_, found in zip(OPERATORS, want, exact, got.values(), strict=True):
        assert tuple(wanted.shape) == found.shape
        value = torch.from_numpy(found)
        snr = max(snr_db([wanted], [value]), snr_db([float_.detach()], [value]))
        if snr < least:
            worse[name] = round(snr, 1)
    assert worse == {}


def test_the_rules_have_no_operator_that_is_not_run_here() -> None:
    rules = load_rules("qnn")
    known = " ".join(OPERATORS)
    elsewhere = {  # in the other models of these tests, or another spelling of one of these
        "bmm", "hardtanh", "relu6", "view", "reshape", "flatten", "transpose", "permute",
        "unsqueeze", "squeeze", "slice", "select", "contiguous", "clone", "expand", "abs",
    }  # fmt: skip
    missing = [name for name in rules.operators if name not in known and name not in elsewhere]
    assert missing == []


def test_the_inspector_tells_what_was_compiled(everything: tuple[int, Written]) -> None:
    bits, result = everything
    inspector = inspector_for("qnn")
    assert isinstance(inspector, QnnInspector)
    assert not inspector.times_here
    assert isinstance(exporter_for("qnn"), QnnExporter)
    target = load_profile("phone-npu").targets[0]
    found = inspector.structure(result.folder, result.artifact, target)
    assert [w for w in found.warnings if "16 bits" not in w] == []
    assert len(found.warnings) == int(bits == 16)
    assert found.int8_macs == 1.0
    assert found.float_gemms == 0
    assert found.compile["partitions"] == 1
    assert found.compile["delegated_share"] == 1.0
    assert found.compile["outside"] == {}
    assert found.compile["archs"]["v75"]["chip"] == "SM8650 (Snapdragon 8 Gen 3)"
    assert found.compile["archs"]["v75"]["bytes"] > 10_000
    assert "not the NPU's" in found.compile["measured"]
    assert {row.where for row in found.operators} == {"HTP v75"}
    assert sum(row.macs for row in found.operators) == found.macs > 0
    # two activations multiply with as many bits each
    assert {r.precision for r in found.operators} == ({"int8"} if bits == 8 else {"w8a16", "int16"})
    sizes = {row.site: row for row in inspector.sizes(result.folder, result.artifact)}
    assert sizes["conv.weight"].bytes == 12 * 8 * 9


def test_a_bundle_that_was_built_elsewhere_says_that_nothing_is_compiled(
    everything: tuple[int, Written],
) -> None:
    _, result = everything
    bare = dataclasses.replace(
        result.artifact,
        files=result.artifact.files[:1],
        notes=("not compiled for the NPU: no compiler there",),
    )
    target = load_profile("phone-npu").targets[0]
    found = QnnInspector().structure(result.folder, bare, target)
    assert found.warnings == ("qnn: not compiled for the NPU: no compiler there",)
    assert dict(found.compile) == {}
    with pytest.raises(RuntimeUnavailable, match="nothing is compiled for the NPU"):
        QnnInspector().load(result.folder, bare)


def test_runs_the_version_that_is_asked_for_or_says_which_there_are(
    everything: tuple[int, Written],
) -> None:
    _, result = everything
    with pytest.raises(BundleError, match=r"not compiled for v68 \(known: v75\)"):
        QnnRunner(arch="v68").load(result.files, LoadOptions())
    assert QnnRunner().version().startswith("onnxruntime-qnn 2.")
    assert "simulator" in QnnRunner().version()


def test_a_missing_package_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, everything: tuple[int, Written]
) -> None:
    monkeypatch.setattr(hexagon, "unavailable", lambda: "it is not here")
    assert QnnRunner().unavailable() == "it is not here"
    _, result = everything
    for call in (QnnRunner().version, lambda: QnnRunner().load(result.files, LoadOptions())):
        with pytest.raises(RuntimeUnavailable, match="it is not here"):
            call()


def test_what_the_cpu_runs_is_shown_as_such(tmp_path: Path) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).erf())

    result = written(seeded(Split), X, tmp_path)
    artifact: Artifact = result.artifact
    target = load_profile("phone-npu").targets[0]
    found = QnnInspector().structure(tmp_path, artifact, target)
    assert found.compile["partitions"] == 2
    assert 0 < found.compile["delegated_share"] < 1
    assert "Erf" in found.compile["outside"].values()


def test_example_inputs_fit_the_file(everything: tuple[int, Written]) -> None:
    _, result = everything
    session = QnnRunner().load(result.files, LoadOptions())
    try:
        first = session.example_inputs("forward", seed=3)
        assert first["in0"].shape == (1, 8, 16, 16)
        assert (first["in0"] == session.example_inputs("forward", seed=3)["in0"]).all()
        assert len(session.run("forward", first)) == len(OPERATORS)
    finally:
        session.close()
