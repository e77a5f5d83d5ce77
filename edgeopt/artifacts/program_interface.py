"""Give a program the inputs and outputs that its file is to have: 8-bit pixels, codes.

These are the last edits before a file is written, at the file's own shapes. What the floats were
is kept in the file's description, from which `io_forms` converts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import IOQuantization, IOSpec, Method, Pixels
from edgeopt.artifacts.pixels import with_float_pixels, with_integer_pixels
from edgeopt.errors import ExportError
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, storage_dtype
from edgeopt.ir.editor import ProgramEditor
from edgeopt.quant.reading import QuantNode, edge_of, read


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
        how = with_integer_pixels(editor, node, quantizer, pixels, channels)
    else:
        how = with_float_pixels(editor, node, readers, pixels, channels)
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
