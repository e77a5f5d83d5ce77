"""Inputs and outputs in an app's form: pixels as bytes, codes instead of floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgeopt
from edgeopt.api.options import BuildOptions
from edgeopt.artifact import IOQuantization, IOSpec, Pixels, Preprocessing
from edgeopt.bundle import Bundle, read_golden
from edgeopt.errors import ConfigError, ExportError
from edgeopt.io_forms import from_file, take_codes, take_pixels, to_file
from edgeopt.models import from_module
from edgeopt.passes.capture.capture import Capture
from edgeopt.pipeline import Pipeline
from edgeopt.program import run
from edgeopt.state import ModelState, PassContext
from edgeopt.target import load_profile, load_rules

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 3, 12, 12), dtype=np.uint8)


def normalized(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    return torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def captured(x: torch.Tensor) -> Any:
    profile = load_profile("host")
    context = PassContext(profile=profile, target=profile.targets[0], example_args=(x,))
    state = Pipeline((Capture(),)).run(ModelState(module=model()), context)
    return state.carrier_programs["forward"]


def built(out: Path, **options: Any) -> Bundle:
    images = normalized(PIXELS)
    loaded = from_module(
        model(), (images[:2],), name="tiny", input_roles=("image",),
        preprocessing=Preprocessing(mean=MEAN, std=STD),
        calibration=images[:32], evaluation=(images, torch.arange(48) % 5),
    )  # fmt: skip
    given: dict[str, Any] = {"profile": "host", "recipe": "int8", **options}
    return edgeopt.build(loaded, latency=False, drift=False, out=out, **given).bundle


def test_pixels_give_what_their_normalized_floats_give_padding_included() -> None:
    x = normalized(PIXELS)
    before = captured(x[:2])
    ends = take_pixels(
        before, ("image",), Preprocessing(mean=MEAN, std=STD), load_rules("onnxruntime-x86")
    )
    assert ends.pixels == {0: Pixels(MEAN, STD)}
    pixels = torch.from_numpy(PIXELS.transpose(0, 2, 3, 1).copy())
    out, want = run(ends.program, (pixels,), {}), run(before, (x,), {})
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


def test_a_file_takes_bytes_and_is_judged_by_them(tmp_path: Path) -> None:
    bundle = built(tmp_path / "out", input_form="uint8-nhwc")
    for artifact in bundle.manifest.artifacts:
        (spec,) = artifact.methods[0].inputs
        assert (spec.dtype, spec.shape) == ("uint8", (1, 12, 12, 3))
        assert spec.pixels == Pixels(MEAN, STD)
        inputs, _ = read_golden(bundle.file(bundle.manifest.golden[artifact.name]))
        # the very pixels come back, through normalization and its inverse
        assert np.array_equal(inputs[spec.name][0], PIXELS[0].transpose(1, 2, 0))


def test_codes_at_the_ends_are_those_of_the_program(tmp_path: Path) -> None:
    plain = built(tmp_path / "plain")
    coded = built(tmp_path / "coded", quantized_io=True)
    artifact = coded.manifest.artifact("onnxruntime")
    (spec,) = artifact.methods[0].inputs
    assert spec.dtype == "uint8"
    assert spec.quantization is not None
    assert spec.quantization.dtype == "uint8"
    assert "output 0 stays float: the program computes it in float" in artifact.notes
    floats, want = read_golden(plain.file("golden/onnxruntime.npz"))
    codes, got = read_golden(coded.file("golden/onnxruntime.npz"))
    assert np.array_equal(codes[spec.name], to_file(spec, floats[spec.name]))
    assert all(np.array_equal(want[name], got[name]) for name in want)
    # the yardstick has no codes to take
    assert coded.manifest.artifact("onnxruntime-float32").methods[0].inputs[0].dtype == "float32"


def test_a_float_program_keeps_its_ends_and_says_so() -> None:
    ends = take_codes(captured(normalized(PIXELS[:2])))
    assert not ends.inputs
    assert not ends.outputs
    assert len(ends.notes) == 2


@given(st.floats(1e-3, 10.0), st.integers(0, 255), st.lists(st.integers(0, 255), min_size=1))
def test_codes_survive_floats_and_back(scale: float, zero: int, codes: list[int]) -> None:
    spec = IOSpec("x", "uint8", (1,), quantization=IOQuantization("uint8", scale, zero))
    array = np.array(codes, np.uint8)
    assert np.array_equal(to_file(spec, from_file(spec, array)), array)


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_pixels_survive_normalization_and_back(levels: list[int]) -> None:
    spec = IOSpec("x", "uint8", (1, 1, 1, 3), pixels=Pixels(MEAN, STD))
    array = np.array(levels, np.uint8).reshape(1, 1, 1, 3)
    assert np.array_equal(to_file(spec, from_file(spec, array)), array)


def test_channels_of_their_own_have_no_code_in_a_graph_of_codes() -> None:
    from edgeopt.dialect import QUANTIZE
    from edgeopt.program import ProgramEditor

    exported = captured(normalized(PIXELS[:2]))
    editor = ProgramEditor(exported)
    first = next(n for n in editor.graph.nodes if n.op == "call_function")
    x = first.args[0]
    scale = editor.add_buffer("s", torch.tensor(0.02))
    zero = editor.add_buffer("z", torch.tensor(3, dtype=torch.uint8))
    codes = editor.call(
        QUANTIZE, (x, scale, zero, None, None, "uint8", 0, 255),
        parent=first, suffix="q.in0", before=first,
    )  # fmt: skip
    from edgeopt.dialect import DEQUANTIZE

    floats = editor.call(
        DEQUANTIZE, (codes, scale, zero, None, None, "uint8", torch.float32),
        parent=first, suffix="dq.in0", before=first,
    )  # fmt: skip
    first.update_arg(0, floats)
    quantized, rules = editor.finish(), load_rules("qnn")
    with pytest.raises(ExportError, match="channels are normalized differently"):
        take_pixels(quantized, ("image",), Preprocessing(mean=MEAN, std=STD), rules)
    ends = take_pixels(quantized, ("image",), Preprocessing(mean=(0.5,), std=(0.5,)), rules)
    assert ends.notes == ("input: pixels are codes of zero point 128: off by 0.5 of a level",)
    pixels = torch.from_numpy(PIXELS[:2].transpose(0, 2, 3, 1).copy())
    x = (torch.from_numpy(PIXELS[:2]).float() - 128) / 127.5
    torch.testing.assert_close(
        run(ends.program, (pixels,), {}), run(quantized, (x,), {}), rtol=1e-4, atol=1e-5
    )


def test_bad_input_is_named() -> None:
    exported = captured(normalized(PIXELS[:2]))
    rules = load_rules("onnxruntime-x86")
    with pytest.raises(ExportError, match="the model has no image input"):
        take_pixels(exported, ("tensor",), Preprocessing(), rules)
    with pytest.raises(ExportError, match="nothing says how pixels become inputs"):
        take_pixels(exported, ("image",), None, rules)
    with pytest.raises(ExportError, match="has 3 channels, the preprocessing has means"):
        take_pixels(exported, ("image",), Preprocessing(mean=(0.1, 0.2), std=(1.0,)), rules)
    with pytest.raises(ConfigError, match="did you mean 'uint8-nhwc'"):
        BuildOptions(input_form="uint8-nhcw")
    with pytest.raises(ConfigError, match="pixels are codes already"):
        BuildOptions(input_form="uint8-nhwc", quantized_io=True)
