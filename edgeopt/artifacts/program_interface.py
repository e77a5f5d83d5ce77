"""Give a program the inputs and outputs that its file is to have: 8-bit pixels, codes.

These are the last edits before a file is written, at the file's own shapes. What the floats were
is kept in the file's description, from which `io_forms` converts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.artifacts.artifact import Artifact, IOQuantization, IOSpec, Method, Pixels
from edgeopt.errors import ExportError
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, dequantize, quantize, storage_dtype
from edgeopt.ir.program import ProgramEditor
from edgeopt.quant.ranges import bias_codes
from edgeopt.quant.reading import QuantNode, edge_of, read

_ATEN = torch.ops.aten
_WEIGHT_CODE = 127


@dataclasses.dataclass(frozen=True)
class Interface:
    """A program with the file's inputs and outputs.

    Attributes:
        exported: The program.
        inputs: Input position -> what the file takes there.
        outputs: Output position -> what the file gives there.
        edges: Quantized edge -> position of the input that now holds its codes.
        notes: What a user should know.
    """

    exported: ExportedProgram
    inputs: Mapping[int, Pixels | IOQuantization] = dataclasses.field(default_factory=dict)
    outputs: Mapping[int, IOQuantization] = dataclasses.field(default_factory=dict)
    edges: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def described(self, artifact: Artifact) -> Artifact:
        """Return the artifact of this program's file with its inputs and outputs described."""
        method, *others = artifact.methods
        inputs = tuple(
            _described(spec, self.inputs.get(index)) for index, spec in enumerate(method.inputs)
        )
        outputs = tuple(
            _described(spec, self.outputs.get(index)) for index, spec in enumerate(method.outputs)
        )
        names = {edge: method.inputs[index].name for edge, index in self.edges.items()}
        return dataclasses.replace(
            artifact,
            methods=(dataclasses.replace(method, inputs=inputs, outputs=outputs), *others),
            edge_map={**artifact.edge_map, **names},
            notes=(*artifact.notes, *self.notes),
        )


def _described(spec: IOSpec, form: Pixels | IOQuantization | None) -> IOSpec:
    if isinstance(form, Pixels):
        return dataclasses.replace(spec, pixels=form)
    return dataclasses.replace(spec, quantization=form)


def as_described(exported: ExportedProgram, method: Method, *, integer: bool) -> ExportedProgram:
    """Give a program the inputs and outputs that a file's description says it has.

    Args:
        exported: The program of `state/`, which takes and gives the model's own.
        method: The file's method.
        integer: As `with_pixels` takes it.
    """
    face = Interface(exported)
    for position, spec in enumerate(method.inputs):
        if spec.pixels is not None:
            face = with_pixels(face, position, spec.pixels, integer=integer)
    if any(spec.quantization is not None for spec in (*method.inputs, *method.outputs)):
        face = with_codes(face)
    return face.exported


def with_pixels(
    interface: Interface, position: int, pixels: Pixels, *, integer: bool = True
) -> Interface:
    """Let an input take uint8 [N, H, W, C] and normalize it inside the program.

    In a quantized program the normalization is a depthwise 1 x 1 convolution on integers: its
    weight `1 / (255 std)` is the largest code of a scale of its own in each channel, so it is
    exact, and its bias `-mean / std` is right to a 254th of a pixel value. Folding it into the next
    convolution would be wrong at that one's border, where a zero of the normalized picture is no
    pixel value. All 256 values of each channel are tried, and the note says how many come to other
    codes than the floats would. Where the codes are the pixels themselves, nothing is inserted.

    In a float program, or where the target has no unsigned codes, it is a product and a sum.

    Args:
        interface: The program so far.
        position: Of the input.
        pixels: Mean and standard deviation.
        integer: Whether a quantized program normalizes in integers.

    Raises:
        ExportError: If the input is not float [N, C, H, W], or no mean fits its channels.
    """
    exported = interface.exported
    name = program.tensor_input_names(exported)[position]
    editor = ProgramEditor(exported)
    (node,) = (n for n in editor.graph.nodes if n.name == name)
    value = node.meta["val"]
    shown = edges.require_site(node).fqn
    if value.dim() != 4 or not value.is_floating_point():
        raise ExportError(
            f"input {shown}: pixels take the place of float [N, C, H, W], not of "
            f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        )
    channels = int(value.shape[1])
    for key, given in (("mean", pixels.mean), ("std", pixels.std)):
        if len(given) not in (1, channels):
            raise ExportError(f"input {shown}: {len(given)} numbers of {key}, {channels} channels")
    readers = list(node.users)
    quantizer = read(readers[0], editor.table, program.tensor_names(exported)) if readers else None
    _retype(node, torch.uint8, (0, 2, 3, 1))
    quantized = len(readers) == 1 and quantizer is not None and quantizer.params.axis is None
    if integer and quantized:
        assert quantizer is not None
        how = _integer_pixels(editor, node, quantizer, pixels, channels)
    else:
        how = _float_pixels(editor, node, readers, pixels, channels)
    note = f"input {shown} takes uint8 [N, H, W, C] pixels: {how}"
    return dataclasses.replace(
        interface,
        exported=editor.finish(),
        inputs={**interface.inputs, position: pixels},
        notes=(*interface.notes, note),
    )


def with_codes(interface: Interface) -> Interface:
    """Let inputs take and outputs give the codes of the quantize and dequantize at the border.

    Before: `x -> quantize -> ... -> dequantize -> y`. After: `x codes -> ... -> y codes`. No real
    value changes. What is not quantized right at the border stays float, and the notes say so.
    """
    exported = interface.exported
    editor = ProgramEditor(exported)
    table, names = editor.table, program.tensor_names(exported)
    notes: list[str] = []
    inputs, aliases = dict(interface.inputs), dict(interface.edges)
    nodes = {n.name: n for n in editor.graph.nodes}
    for position, name in enumerate(program.tensor_input_names(exported)):
        node = nodes[name]
        shown = edges.require_site(node).fqn
        if position in inputs:
            continue  # pixels are codes already
        found = [read(user, table, names) for user in node.users]
        first = found[0] if len(found) == 1 else None
        if first is None or first.node.target is not QUANTIZE or first.params.axis is not None:
            if node.meta["val"].is_floating_point():
                notes.append(f"input {shown} stays float: it is not quantized at the border")
            continue
        edge = edge_of(first.node)
        if edge is not None:
            aliases[str(edge)] = position
        inputs[position] = _parameters(first)
        _retype(node, storage_dtype(first.codes_dtype))
        first.node.replace_all_uses_with(node)
        editor.graph.erase_node(first.node)
    outputs = _codes_out(editor, interface, notes)
    return dataclasses.replace(
        interface,
        exported=editor.finish(),
        inputs=inputs,
        outputs=outputs,
        edges=aliases,
        notes=(*interface.notes, *notes),
    )


def _codes_out(
    editor: ProgramEditor, interface: Interface, notes: list[str]
) -> dict[int, IOQuantization]:
    """Replace dequantized outputs by their codes."""
    names = program.tensor_names(interface.exported)
    (output,) = (n for n in editor.graph.nodes if n.op == "output")
    found: dict[int, IOQuantization] = dict(interface.outputs)
    results = list(output.args[0])
    for position, result in enumerate(results):
        known = read(result, editor.table, names) if isinstance(result, Node) else None
        codes = known.node.args[0] if known is not None else None
        if known is None or known.node.target is not DEQUANTIZE or known.params.axis is not None:
            notes.append(f"output {position} stays float: it is not quantized at the border")
            continue
        assert isinstance(codes, Node)
        found[position] = _parameters(known)
        results[position] = codes
    output.args = (tuple(results),)
    return found


def _parameters(found: QuantNode) -> IOQuantization:
    return IOQuantization(
        found.codes_dtype, float(found.params.scale), int(found.params.zero_point)
    )


def _retype(node: Node, dtype: torch.dtype, order: tuple[int, ...] | None = None) -> None:
    """Give an input another type, and its axes another order."""
    value = node.meta["val"]
    with value.fake_mode:
        turned = value.permute(order).contiguous() if order is not None else value
        node.meta["val"] = turned.to(dtype)
    node.meta.pop("tensor_meta", None)


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


def _float_pixels(
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


def _integer_pixels(
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
