"""Give a border of zeros to the convolution that reads it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from edgeopt.exporters.onnx.rewrites.constants import array, attribute, only_reader


@dataclasses.dataclass(frozen=True)
class _Match:
    """A Pad with its convolution, and the quantize/dequantize pair between them, if any."""

    pad: ir.Node
    source: ir.Value
    convolution: ir.Node
    border: list[int]
    quantize: ir.Node | None = None
    dequantize: ir.Node | None = None


def fold_pad(model: ir.Model) -> dict[ir.Node, ir.Value | None]:
    """Fold a constant Pad of zeros into the pads of the convolution behind it.

    ONNX convolutions take uneven pads, torch's do not, so `SAME` padding arrives as a Pad. A zero
    border is the zero point's code, so folding through a quantize/dequantize pair changes nothing:
    a pair behind a float border moves in front of it, and a pair that repeats the one before it
    goes.

    Before: `DequantizeLinear -> Pad -> QuantizeLinear -> DequantizeLinear -> Conv`.
    After: `DequantizeLinear -> Conv(pads)`.

    Returns:
        The node that is gone (the quantize behind the Pad, or the Pad itself) -> the codes that
        stand for its own now, or None where there are none.
    """
    folded: dict[ir.Node, ir.Value | None] = {}
    for node in list(model.graph):
        match = _match(node) if node.op_type == "Pad" else None
        if match is not None:
            folded |= _fold(model.graph, match)
    return folded


def _match(pad: ir.Node) -> _Match | None:
    border, source = _spatial_border(pad), pad.inputs[0]
    reader = only_reader(pad.outputs[0])
    if border is None or source is None or reader is None:
        return None
    quantize = reader if reader.op_type == "QuantizeLinear" else None
    dequantize = only_reader(quantize.outputs[0]) if quantize is not None else None
    if quantize is not None:
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        reader = only_reader(dequantize.outputs[0])
    last = dequantize if dequantize is not None else pad
    if reader is None or reader.op_type != "Conv" or reader.inputs[0] is not last.outputs[0]:
        return None
    own = attribute(reader, "pads", [0] * len(border))
    if attribute(reader, "auto_pad", "NOTSET") != "NOTSET" or len(own) != len(border):
        return None
    return _Match(pad, source, reader, border, quantize, dequantize)


def _fold(graph: ir.Graph, match: _Match) -> dict[ir.Node, ir.Value | None]:
    quantize, dequantize = match.quantize, match.dequantize
    gone = [match.pad]
    codes: ir.Value | None = None
    if quantize is None or dequantize is None:
        match.convolution.replace_input_with(0, match.source)
    else:
        producer = match.source.producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            quantize.replace_input_with(0, match.source)
            dequantize.outputs[0].shape = quantize.outputs[0].shape = match.source.shape
        elif _same_parameters(producer, quantize) and _same_parameters(producer, dequantize):
            match.convolution.replace_input_with(0, match.source)
            codes = producer.inputs[0]
            gone += [quantize, dequantize]
        else:
            return {}
    own = attribute(match.convolution, "pads", [0] * len(match.border))
    match.convolution.attributes["pads"] = ir.AttrInt64s(
        "pads", [a + b for a, b in zip(own, match.border, strict=True)]
    )
    for node in reversed(gone):
        graph.remove(node, safe=True)
    return {quantize if codes is not None and quantize is not None else match.pad: codes}


def _spatial_border(pad: ir.Node) -> list[int] | None:
    """Return begin and end pads of the spatial axes, or None where the Pad is of another kind."""
    has_axes = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if attribute(pad, "mode", "constant") != "constant" or has_axes:
        return None
    amounts = array(pad.inputs[1])
    filling = pad.inputs[2] if len(pad.inputs) > 2 else None
    value = array(filling)
    zero = filling is None or (value is not None and float(value.reshape(-1)[0]) == 0.0)
    if amounts is None or not zero:
        return None
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    if rank < 3 or begin[:2].any() or end[:2].any() or (amounts < 0).any():
        return None
    return [int(x) for x in (*begin[2:], *end[2:])]


def _same_parameters(a: ir.Node, b: ir.Node) -> bool:
    """Say whether two quantize or dequantize nodes have one scale and zero point."""
    return all(_equal(a.inputs[i], b.inputs[i]) for i in (1, 2))


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    first, second = array(a), array(b)
    return first is not None and second is not None and bool((first == second).all())
