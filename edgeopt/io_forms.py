"""Inputs and outputs in the form that an app has them: pixels as bytes, codes instead of floats.

A program takes normalized floats and gives floats. Where an app wants something else, the last step
before the exporter changes the program's ends, and `IOSpec` says how: so whoever runs the file
converts by the spec alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt import program
from edgeopt.artifact import IOQuantization, IOSpec, Pixels, Preprocessing
from edgeopt.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.errors import ExportError
from edgeopt.program import ProgramEditor
from edgeopt.quant.reading import edge_of, read
from edgeopt.target import RuleSet

Array = np.ndarray[Any, Any]
_ATEN = torch.ops.aten

UINT8_NHWC = "uint8-nhwc"


@dataclasses.dataclass(frozen=True)
class Ends:
    """What became of a program's ends.

    Attributes:
        program: The program with other ends.
        pixels: Input index -> how its pixels become what the model takes.
        inputs: Input index -> parameters of the codes that it takes.
        outputs: Output index -> parameters of the codes that it gives.
        edges: Quantized edge id -> index of the input that now holds its codes.
        notes: What a user should know.
    """

    program: ExportedProgram
    pixels: dict[int, Pixels] = dataclasses.field(default_factory=dict)
    inputs: dict[int, IOQuantization] = dataclasses.field(default_factory=dict)
    outputs: dict[int, IOQuantization] = dataclasses.field(default_factory=dict)
    edges: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def take_pixels(
    exported: ExportedProgram,
    roles: Sequence[str],
    preprocessing: Preprocessing | None,
    rules: RuleSet,
) -> Ends:
    """Let every image input take uint8 pixels `[B, H, W, C]`; normalization moves into the program.

    The program computes `(x / 255 - mean) / std` itself, in float before its first quantize. Rules
    for a whole graph of codes have no float there: the pixels are taken as the codes that they are,
    with scale `1 / (255 std)` and zero point `255 mean`, rounded.

    Before: `quantize(x)`, x float `[B, C, H, W]`.
    After: `quantize(permute(x / (255 std) - mean / std))`, x uint8 `[B, H, W, C]`.

    Raises:
        ExportError: If there is no image input, nothing tells how pixels are normalized, or they
            cannot be codes.
    """
    images = [i for i, role in enumerate(roles) if role == "image"]
    if not images:
        raise ExportError(f"--input-form {UINT8_NHWC}: the model has no image input")
    if preprocessing is None:
        raise ExportError(
            f"--input-form {UINT8_NHWC}: nothing says how pixels become inputs; give preprocessing "
            "with the model or the data (?mean=...&std=...)"
        )
    editor = ProgramEditor(exported)
    names = program.tensor_input_names(exported)
    nodes = {n.name: n for n in editor.graph.nodes}
    found: dict[int, Pixels] = {}
    notes: list[str] = []
    for index in images:
        node = nodes[names[index]]
        pixels = _pixels(preprocessing, node)
        codes = rules.whole_graph and any(reader.target is QUANTIZE for reader in node.users)
        if codes:
            notes += _as_codes(editor, node, pixels)
        else:
            _as_floats(editor, node, pixels)
        found[index] = pixels
    return Ends(editor.finish(), pixels=found, notes=tuple(notes))


def _pixels(preprocessing: Preprocessing, node: Node) -> Pixels:
    shape = node.meta["val"].shape
    if len(shape) != 4:
        raise ExportError(f"{node.name}: an image input has 4 dimensions, not {len(shape)}")
    channels = int(shape[1])
    wide = [
        tuple(values) * (channels if len(values) == 1 else 1)
        for values in (preprocessing.mean, preprocessing.std)
    ]
    if any(len(values) != channels for values in wide):
        raise ExportError(
            f"{node.name}: has {channels} channels, the preprocessing has means and deviations "
            f"for {len(preprocessing.mean)} and {len(preprocessing.std)}"
        )
    return Pixels(*wide)


def _retyped(node: Node) -> list[Node]:
    """Make the placeholder take pixels; return who reads it."""
    readers = list(node.users)
    value: Tensor = node.meta["val"]
    with torch.no_grad():
        node.meta["val"] = value.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
    node.meta.pop("tensor_meta", None)
    return readers


def _as_floats(editor: ProgramEditor, node: Node, pixels: Pixels) -> None:
    first = next(n for n in editor.graph.nodes if n.op != "placeholder")
    std = torch.tensor(pixels.std, dtype=torch.float64)
    mean = torch.tensor(pixels.mean, dtype=torch.float64)
    gain = editor.add_buffer(f"{node.name}_gain", (1 / (255 * std)).float())
    shift = editor.add_buffer(f"{node.name}_shift", (-mean / std).float())
    readers = _retyped(node)

    def call(target: Any, args: tuple[Any, ...], suffix: str) -> Node:
        return editor.call(target, args, parent=node, suffix=suffix, before=first)

    floats = call(_ATEN._to_copy.default, (node,), "floats")
    floats.kwargs = {"dtype": torch.float32}
    editor.infer(floats)
    scaled = call(_ATEN.mul.Tensor, (floats, gain), "gain")
    shifted = call(_ATEN.add.Tensor, (scaled, shift), "shift")
    turned = call(_ATEN.permute.default, (shifted, [0, 3, 1, 2]), "nchw")
    for reader in readers:
        reader.replace_input_with(node, turned)


def _as_codes(editor: ProgramEditor, node: Node, pixels: Pixels) -> list[str]:
    if len(set(pixels.mean)) > 1 or len(set(pixels.std)) > 1:
        raise ExportError(
            f"--input-form {UINT8_NHWC}: {node.name}: channels are normalized differently, and "
            "this target takes one scale for an input; normalize alike or use another target"
        )
    zero = 255 * pixels.mean[0]
    rounded = round(zero)
    if not 0 <= rounded <= 255:
        raise ExportError(f"{node.name}: the mean {pixels.mean[0]:g} is no pixel value")
    first = next(n for n in editor.graph.nodes if n.op != "placeholder")
    scale = editor.add_buffer(f"{node.name}_scale", torch.tensor(1 / (255 * pixels.std[0])))
    point = editor.add_buffer(f"{node.name}_zero_point", torch.tensor(rounded, dtype=torch.uint8))
    readers = _retyped(node)
    quantize = (scale, point, None, None, "uint8", 0, 255)
    dequantize = (scale, point, None, None, "uint8", torch.float32)

    def call(target: Any, args: tuple[Any, ...], suffix: str) -> Node:
        return editor.call(target, args, parent=node, suffix=suffix, before=first)

    read_ = call(DEQUANTIZE, (node, *dequantize), "pixels")
    turned = call(_ATEN.permute.default, (read_, [0, 3, 1, 2]), "nchw")
    codes = call(QUANTIZE, (turned, *quantize), "turned")
    floats = call(DEQUANTIZE, (codes, *dequantize), "floats")
    for reader in readers:
        reader.replace_input_with(node, floats)
    if zero == rounded:
        return []
    moved = abs(zero - rounded)
    return [f"{node.name}: pixels are codes of zero point {rounded}: off by {moved:.2g} of a level"]


def take_codes(exported: ExportedProgram) -> Ends:
    """Drop the quantize behind each input and the dequantize before each output.

    Before: `dequantize(f(quantize(x)))`. After: `f(codes)`. An end that the program carries in
    float stays float, and a note says which.
    """
    editor = ProgramEditor(exported)
    table, fqns = program.tensors(exported), program.tensor_names(exported)
    names = program.tensor_input_names(exported)
    nodes = {n.name: n for n in editor.graph.nodes}
    given: dict[int, IOQuantization] = {}
    taken: dict[int, IOQuantization] = {}
    edges: dict[str, int] = {}
    notes: list[str] = []
    for index, name in enumerate(names):
        node = nodes[name]
        readers = list(node.users)
        if not node.meta["val"].is_floating_point():
            continue
        quantized = [r for r in readers if r.target is QUANTIZE]
        if not readers or len(quantized) != len(readers) or len(quantized) != 1:
            notes.append(f"{name} stays {node.meta['val'].dtype}: the program reads it in float")
            continue
        (reader,) = quantized
        found = read(reader, table, fqns)
        assert found is not None
        given[index] = _parameters(found)
        edge = edge_of(reader)
        if edge is not None:
            edges[str(edge)] = index
        node.meta["val"] = reader.meta["val"]
        node.meta.pop("tensor_meta", None)
        reader.replace_all_uses_with(node)
        editor.graph.erase_node(reader)
    output = next(n for n in editor.graph.nodes if n.op == "output")
    results = list(output.args[0])  # type: ignore[arg-type]
    for index, result in enumerate(results):
        found = read(result, table, fqns) if isinstance(result, Node) else None
        if found is None or result.target is not DEQUANTIZE:
            if isinstance(result, Node) and result.meta["val"].is_floating_point():
                notes.append(f"output {index} stays float: the program computes it in float")
            continue
        taken[index] = _parameters(found)
        results[index] = result.args[0]
    output.args = (tuple(results),)
    return Ends(editor.finish(), inputs=given, outputs=taken, edges=edges, notes=tuple(notes))


def _parameters(found: Any) -> IOQuantization:
    scale, zero = found.params.scale, found.params.zero_point
    return IOQuantization(found.codes_dtype, float(scale), int(zero))


def described(specs: Sequence[IOSpec], ends: Ends, *, inputs: bool) -> tuple[IOSpec, ...]:
    """Return the specs of a file's inputs or outputs with what became of them."""
    codes = ends.inputs if inputs else ends.outputs
    return tuple(
        dataclasses.replace(
            spec,
            quantization=codes.get(index, spec.quantization),
            pixels=ends.pixels.get(index, spec.pixels) if inputs else spec.pixels,
        )
        for index, spec in enumerate(specs)
    )


def to_file(spec: IOSpec, value: Array) -> Array:
    """Turn what the model takes into what the file takes.

    Args:
        spec: The file's input.
        value: Normalized floats `[B, C, H, W]` where it takes pixels, floats where it takes codes.
    """
    if spec.pixels is not None:
        mean, std = (np.array(v, np.float64)[:, None, None] for v in _of(spec.pixels))
        levels = np.rint((value * std + mean) * 255)
        return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
    if spec.quantization is None:
        return value
    q = spec.quantization
    limits = np.iinfo(np.dtype(q.dtype))
    codes = np.rint(value.astype(np.float32) / np.float32(q.scale)) + q.zero_point
    return np.clip(codes, limits.min, limits.max).astype(q.dtype)


def from_file(spec: IOSpec, value: Array) -> Array:
    """Turn what the file takes or gives into what the model does; undoes `to_file`."""
    if spec.pixels is not None:
        mean, std = (np.array(v, np.float64)[:, None, None] for v in _of(spec.pixels))
        return ((value.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32)
    if spec.quantization is None:
        return value
    q = spec.quantization
    return (value.astype(np.int32) - q.zero_point).astype(np.float32) * np.float32(q.scale)


def _of(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return pixels.mean, pixels.std
