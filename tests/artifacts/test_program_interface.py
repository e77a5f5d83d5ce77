"""Pixels and codes at a program's border: the same answers, also at a padded border."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import IOQuantization, IOSpec, Method, Pixels
from edgeopt.artifacts.io_forms import model_inputs
from edgeopt.artifacts.program_interface import Interface, with_codes, with_pixels
from edgeopt.devices.rules import load_rules
from edgeopt.errors import ExportError
from edgeopt.exporters.onnx.tensors import OnnxTensors
from edgeopt.exporters.qnn import hexagon
from edgeopt.exporters.qnn.exporter import QnnExporter
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.numerics.snr import snr_db
from edgeopt.passes.quantize.plan import PlanConfig, PlanQuantization
from edgeopt.pipeline.state import ModelState
from tests.exporters.qnn.models import request
from tests.small_models import X86, context, run

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WHOLE = Pixels((124 / 255, 116 / 255, 104 / 255), (0.229, 0.224, 0.225))
"""Means that are pixel values: their biases lie on the grid."""
PLAIN = Pixels((0.0,), (1.0,))


class Padded(nn.Module):
    """A convolution whose border reads zeros of the normalized picture."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu())


def pictures(channels: int = 3, seed: int = 0) -> Tensor:
    """Return two random pictures of 8-bit pixels, [2, 12, 10, C]; every value occurs."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 256, (2, 12, 10, channels), generator=generator)
    found[0, 0, 0], found[0, 0, 1] = 0, 255  # so that the calibrated range is the whole range
    return found.to(torch.uint8)


def normalized(pixels: Pixels, values: Tensor) -> Tensor:
    spec = IOSpec("x", "uint8", tuple(values.shape), pixels=pixels)
    found = model_inputs(Method("forward", (spec,), ()), {"x": values.numpy()})
    return torch.from_numpy(found["x"])


def quantized(
    pixels: Pixels, rules: str = "qnn", bits: int = 0, channels: int = 3
) -> tuple[ModelState, ExportedProgram]:
    torch.manual_seed(0)
    x = normalized(pixels, pictures(channels))
    ctx = context(x, rules=rules)
    plan = PlanQuantization(PlanConfig(activation_bits=bits))
    names = ("capture", plan, "calibrate", "quantize", *load_rules(rules).legalize)
    state = run(Padded(channels).eval(), ctx, *names)
    return state, program.retrace(state.carrier_programs["forward"], (x,), {})


def operators(exported: ExportedProgram) -> list[str]:
    return [edges.operator_name(n) for n in exported.graph.nodes if n.op == "call_function"]


def plain(exported: ExportedProgram) -> list[str]:
    nodes = [n for n in exported.graph.nodes if n.target not in (QUANTIZE, DEQUANTIZE)]
    return [edges.operator_name(n) for n in nodes if n.op == "call_function"]


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules", "bits"), [("qnn", 8), (X86, 8), ("qnn", 16)])
def test_normalized_in_integers_with_every_border_right(rules: str, bits: int) -> None:
    _, exported = quantized(WHOLE, rules, bits)
    face = with_pixels(Interface(exported), 0, WHOLE)
    assert face.inputs == {0: WHOLE}
    assert plain(face.exported)[:2] == ["permute", "conv2d"]
    (note,) = face.notes
    how = "normalized in integers, equal to the floats' codes for all 768 values"
    if bits == 8:
        assert note == f"input x takes uint8 [N, H, W, C] pixels: {how}"
    for seed in range(3):
        values = pictures(seed=seed)
        want = program.run(exported, (normalized(WHOLE, values),), {})
        got = program.run(face.exported, (values,), {})
        if bits == 8:  # bit by bit, so also where the next convolution reads its padding
            assert torch.equal(want, got)
        else:
            assert snr_db([want], [got]) > 75


def test_a_mean_between_two_pixel_values_moves_a_few_codes_by_one() -> None:
    _, exported = quantized(IMAGENET)
    face = with_pixels(Interface(exported), 0, IMAGENET)
    found = re.search(r"; (\d+) of 768 pixel values come to a code that is 1 off$", face.notes[0])
    assert found is not None
    assert 0 < int(found[1]) < 8  # a bias is off by at most a 254th of a pixel value
    values = pictures()
    want = program.run(exported, (normalized(IMAGENET, values),), {})
    assert snr_db([want], [program.run(face.exported, (values,), {})]) > 40


def test_the_normalization_is_an_integer_convolution_with_exact_weights() -> None:
    _, exported = quantized(IMAGENET)
    face = with_pixels(Interface(exported), 0, IMAGENET)
    table = program.tensors(face.exported)
    assert table["x_pixels_weight"].unique().tolist() == [127]
    real = 127 * table["x_pixels_weight_scale"].double()
    std = torch.tensor(IMAGENET.std, dtype=torch.float64)
    torch.testing.assert_close(real, 1 / (255 * std), rtol=2.0**-23, atol=0)
    bias = table["x_pixels_bias"].double() * table["x_pixels_bias_scale"].double()
    offset = -torch.tensor(IMAGENET.mean, dtype=torch.float64) / std
    step = float(table["x_pixels_bias_scale"].max())
    torch.testing.assert_close(bias, offset, rtol=0, atol=step / 2 * (1 + 1e-6))


def test_codes_that_are_the_pixels_need_no_arithmetic() -> None:
    _, exported = quantized(PLAIN, channels=1)
    face = with_pixels(Interface(exported), 0, PLAIN)
    assert plain(face.exported) == ["permute", *plain(exported)]
    assert "its codes are the pixels themselves" in face.notes[0]
    values = pictures(1)
    want = program.run(exported, (normalized(PLAIN, values),), {})
    assert torch.equal(want, program.run(face.exported, (values,), {}))


def test_half_way_cases_are_counted() -> None:
    half = Pixels((0.5,), (0.5,))  # 127.5 is no code, so every pixel lies between two
    _, exported = quantized(half, channels=1)
    face = with_pixels(Interface(exported), 0, half)
    assert "of 256 pixel values come to a code that is 1 off" in face.notes[0]
    values = pictures(1)
    want = program.run(exported, (normalized(half, values),), {})
    got = program.run(face.exported, (values,), {})
    assert not torch.equal(want, got)
    assert snr_db([want], [got]) > 35  # half a code of 256, in some pixels


def test_a_float_program_normalizes_in_float() -> None:
    torch.manual_seed(0)
    module, values = Padded().eval(), pictures()
    x = normalized(IMAGENET, values)
    state = run(module, context(x), "capture")
    exported = program.retrace(state.carrier_programs["forward"], (x,), {})
    face = with_pixels(Interface(exported), 0, IMAGENET)
    assert operators(face.exported)[:4] == ["_to_copy", "permute", "mul", "add"]
    got = program.run(face.exported, (values,), {})
    # One rounding each in the product and the sum.
    torch.testing.assert_close(got, module(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "pixels", "message"),
    [
        (
            (2, 8),
            PLAIN,
            r"input input: pixels take the place of float \[N, C, H, W\], not of float32",
        ),
        ((2, 4, 8, 8), IMAGENET, "input input: 3 numbers of mean, 4 channels"),
    ],
)
def test_refuses_what_is_no_picture(shape: tuple[int, ...], pixels: Pixels, message: str) -> None:
    x = torch.zeros(shape)
    state = run(nn.ReLU().eval(), context(x), "capture")
    with pytest.raises(ExportError, match=message):
        with_pixels(Interface(state.carrier_programs["forward"]), 0, pixels)


# --- codes ---------------------------------------------------------------------------------------


def test_codes_in_and_out_are_the_same_integers() -> None:
    _, exported = quantized(IMAGENET)
    face = with_codes(Interface(exported))
    assert face.notes == ()
    taken, given = face.inputs[0], face.outputs[0]
    assert isinstance(taken, IOQuantization)
    assert (taken.dtype, given.dtype) == ("uint8", "uint8")
    x = normalized(IMAGENET, pictures())
    codes = torch.clamp(torch.round(x / taken.scale) + taken.zero_point, 0, 255).to(torch.uint8)
    got = program.run(face.exported, (codes,), {})
    assert got.dtype == torch.uint8
    real = (got.int() - given.zero_point).float() * given.scale
    assert torch.equal(real, program.run(exported, (x,), {}))
    assert operators(face.exported).count("quantize") == operators(exported).count("quantize") - 1
    assert len(face.edges) == 1


def test_pixels_in_and_codes_out() -> None:
    _, exported = quantized(WHOLE)
    face = with_codes(with_pixels(Interface(exported), 0, WHOLE))
    values = pictures()
    got = program.run(face.exported, (values,), {})
    given = face.outputs[0]
    real = (got.int() - given.zero_point).float() * given.scale
    assert torch.equal(real, program.run(exported, (normalized(WHOLE, values),), {}))
    assert face.inputs == {0: WHOLE}


def test_what_is_float_at_the_border_is_named() -> None:
    class Floats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x.erf()), tokens + 1

    inputs = (torch.randn(2, 8), torch.arange(2))
    ctx = context(*inputs)
    state = run(Floats().eval(), ctx, "capture", "plan", "calibrate", "quantize")
    face = with_codes(Interface(state.carrier_programs["forward"]))
    assert face.inputs == {}
    assert face.outputs == {}
    assert face.notes == (
        "input x stays float: it is not quantized at the border",
        "output 0 stays float: it is not quantized at the border",
        "output 1 stays float: it is not quantized at the border",
    )


def test_a_format_that_takes_floats_only_says_so() -> None:
    from types import SimpleNamespace

    from edgeopt.api.building.exporting import _interfaces
    from edgeopt.exporters.tensorrt.exporter import TensorRTExporter

    _, exported = quantized(IMAGENET)
    job = SimpleNamespace(pixels=IMAGENET, quantized_io=True)
    found = _interfaces(job, {"forward": exported}, TensorRTExporter(), "int8")["forward"]
    assert found.exported is exported
    assert found.notes == ("inputs and outputs are floats: tensorrt files take no other form here",)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.skipif(hexagon.unavailable() is not None, reason=str(hexagon.unavailable()))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_file_for_the_npu_takes_pixels_and_gives_codes_in_one_partition(
    bits: int, tmp_path: Path
) -> None:
    state, _ = quantized(IMAGENET, bits=bits)
    values = pictures()[:1]
    order = request(state, normalized(IMAGENET, values))
    exported = order.programs["forward"]
    face = with_codes(with_pixels(Interface(exported), 0, IMAGENET))
    order = dataclasses.replace(order, programs={"forward": face.exported})
    artifact: Artifact = face.described(QnnExporter().export(order, tmp_path))
    ((taken,), (given,)) = artifact.methods[0].inputs, artifact.methods[0].outputs
    assert (taken.name, taken.dtype, taken.shape) == ("in0", "uint8", (1, 12, 10, 3))
    assert taken.pixels == IMAGENET
    assert (given.name, given.dtype) == ("out0", f"uint{bits}")
    assert given.quantization is not None
    tensors = OnnxTensors(tmp_path / "qnn.onnx", artifact)
    assert {c.check_file(tensors) for c in state.contracts} == {None}
    compiled = hexagon.read_context(tmp_path / "qnn.v75.ctx.onnx")
    assert (compiled.partitions, compiled.left) == (1, {})
    with hexagon.Simulator(compiled) as simulator:
        got = simulator.run({"in0": values.numpy()})["out0"]
    want = program.run(exported, (normalized(IMAGENET, values),), {}).numpy()
    quantization = given.quantization
    real = (got.astype(np.int32) - quantization.zero_point) * quantization.scale
    assert np.abs(real - want).max() <= (3 if bits == 8 else 64) * quantization.scale
