"""Pixels and codes at the border of a program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.artifacts.interface import Pixels
from edgeopt.ir import edges
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, dequantize, quantize, storage_dtype
from edgeopt.ir.editor import ProgramEditor
from edgeopt.quant.ranges import bias_codes
from edgeopt.quant.reading import QuantNode

_ATEN = torch.ops.aten


_WEIGHT_CODE = 127


def _coefficients(pixels: Pixels, channels: int) -> tuple[Tensor, Tensor]:
    """Return factor and offset of each channel, float64 [C]: `float = factor * pixel + offset`."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).expand(channels) for v in (pixels.mean, pixels.std)
    )
    return 1.0 / (255.0 * std), -mean / std


def _insert(
    editor: ProgramEditor, node: Node, before: Node, suffix: str, target: Any, *args: Any
) -> Node:
    return editor.call(target, args, parent=node, suffix=suffix, before=before)


def with_float_pixels(
    editor: ProgramEditor, node: Node, readers: list[Node], pixels: Pixels, channels: int
) -> str:
    factor, offset = (v.float().reshape(1, -1, 1, 1) for v in _coefficients(pixels, channels))
    base = f"{edges.require_site(node).fqn}_pixels"
    stored = [
        editor.add_buffer(f"{base}_{n}", v) for n, v in (("factor", factor), ("offset", offset))
    ]
    first = min(readers, key=list(editor.graph.nodes).index)
    floats = _insert(editor, node, first, "floats", _ATEN._to_copy.default, node)
    floats.kwargs = {"dtype": torch.float32}
    editor.infer(floats)
    planes = _insert(editor, node, first, "permute", _ATEN.permute.default, floats, [0, 3, 1, 2])
    scaled = _insert(editor, node, first, "mul", _ATEN.mul.Tensor, planes, stored[0])
    value = _insert(editor, node, first, "add", _ATEN.add.Tensor, scaled, stored[1])
    for reader in readers:
        reader.replace_input_with(node, value)
    return "normalized in float, equal up to rounding"


def with_integer_pixels(
    editor: ProgramEditor, node: Node, quantizer: QuantNode, pixels: Pixels, channels: int
) -> str:
    wanted = _float_codes(quantizer, pixels, channels)
    identity = torch.arange(256).expand(channels, -1)
    dtype, target = quantizer.codes_dtype, quantizer.node
    base = f"{edges.require_site(node).fqn}_pixels"

    def turned(scale: Node, zero: Node, codes: str) -> Node:
        """Dequantize the input and bring it to [N, C, H, W]."""
        real = _insert(
            editor, node, target, "dq.in", DEQUANTIZE, node, scale, zero, None, None, codes,
            torch.float32,
        )  # fmt: skip
        return _insert(editor, node, target, "permute", _ATEN.permute.default, real, [0, 3, 1, 2])

    if dtype == "uint8" and torch.equal(wanted.long(), identity):
        scale, zero = target.args[1], target.args[2]
        assert isinstance(scale, Node)
        assert isinstance(zero, Node)
        target.update_arg(0, turned(scale, zero, "uint8"))
        return "its codes are the pixels themselves"
    factor, offset = _coefficients(pixels, channels)
    one = editor.add_buffer(f"{base}_scale", torch.tensor(1.0))
    zero8 = editor.add_buffer(f"{base}_zero_point", torch.tensor(0, dtype=torch.uint8))
    zero = zero8
    if dtype != "uint8":
        kind = storage_dtype(dtype)
        zero = editor.add_buffer(f"{base}_zero_point_wide", torch.tensor(0, dtype=kind))
    planes = turned(one, zero8, "uint8")
    largest = 255 if dtype == "uint8" else 65535
    codes = _insert(
        editor, node, target, "q.pixels", QUANTIZE, planes, one, zero, None, None, dtype, 0, largest
    )
    real = _insert(
        editor, node, target, "dq.pixels", DEQUANTIZE, codes, one, zero, None, None, dtype,
        torch.float32,
    )  # fmt: skip
    scale = (factor / _WEIGHT_CODE).float()
    biases = bias_codes(offset, scale)
    weight = _dequantized_constant(
        editor, node, target, f"{base}_weight",
        torch.full((channels, 1, 1, 1), _WEIGHT_CODE, dtype=torch.int8), scale, "int8",
    )  # fmt: skip
    bias = _dequantized_constant(editor, node, target, f"{base}_bias", biases, scale, "int32")
    value = _insert(
        editor, node, target, "normalize", _ATEN.conv2d.default, real, weight, bias,
        [1, 1], [0, 0], [1, 1], channels,
    )  # fmt: skip
    target.update_arg(0, value)
    return _told(wanted, _normalized_codes(quantizer, scale, biases))


def _dequantized_constant(
    editor: ProgramEditor,
    node: Node,
    before: Node,
    fqn: str,
    codes: Tensor,
    scale: Tensor,
    kind: str,
) -> Node:
    stored = editor.add_buffer(fqn, codes)
    scales = editor.add_buffer(f"{fqn}_scale", scale)
    zeros = editor.add_buffer(f"{fqn}_zero_point", torch.zeros(len(scale), dtype=codes.dtype))
    port = "in1" if kind == "int8" else "in2"
    return _insert(
        editor, node, before, f"dq.{port}", DEQUANTIZE, stored, scales, zeros, 0, None, kind,
        torch.float32,
    )  # fmt: skip


def _codes(quantizer: QuantNode, x: Tensor) -> Tensor:
    assert quantizer.qmin is not None
    assert quantizer.qmax is not None
    scale, zero = quantizer.params.scale, quantizer.params.zero_point.to(torch.int32)
    codes = quantize(
        x, scale, zero, None, None, quantizer.codes_dtype, quantizer.qmin, quantizer.qmax
    )
    return codes.to(torch.int32)


def _float_codes(quantizer: QuantNode, pixels: Pixels, channels: int) -> Tensor:
    """Return the codes that floats give, [C, 256], normalized as pictures are."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32).expand(channels)[:, None]
        for v in (pixels.mean, pixels.std)
    )
    values = torch.arange(256, dtype=torch.float32)[None] / 255.0
    return _codes(quantizer, (values - mean) / std)


def _normalized_codes(quantizer: QuantNode, scale: Tensor, biases: Tensor) -> Tensor:
    """Return the codes that the integer normalization gives, [C, 256]."""
    weight = dequantize(
        torch.full((len(scale),), _WEIGHT_CODE, dtype=torch.int8), scale,
        torch.zeros(len(scale), dtype=torch.int8), 0, None, "int8", torch.float32,
    )  # fmt: skip
    values = torch.arange(256, dtype=torch.float32)[None]
    return _codes(quantizer, values * weight[:, None] + (biases.float() * scale)[:, None])


def _told(wanted: Tensor, found: Tensor) -> str:
    away = (wanted - found).abs()
    differ = int((away > 0).sum())
    if not differ:
        return f"normalized in integers, equal to the floats' codes for all {wanted.numel()} values"
    return (
        f"normalized in integers; {differ} of {wanted.numel()} pixel values come to a code that is "
        f"{int(away.max())} off"
    )
