"""Give a border of zeros to the convolution that reads it."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.exporters.onnx_rewrites.constants import array, attribute, only_reader


def fold_pad(model: ir.Model) -> dict[ir.Node, ir.Value | None]:
    """Fold a constant Pad of zeros into the pads of the convolution behind it.

    ONNX convolutions take uneven pads, torch's do not, so `SAME` padding arrives as a Pad. A zero
    border is the zero point's code, so folding through a quantize/dequantize pair changes nothing.

    Before: `DequantizeLinear -> Pad -> QuantizeLinear -> DequantizeLinear -> Conv`.
    After: `DequantizeLinear -> Conv(pads)`.

    Returns:
        The node that is gone (the quantize behind the Pad, or the Pad itself) -> the codes that
        stand for its own now, or None where there are none.
    """
    folded: dict[ir.Node, ir.Value | None] = {}
    for pad in list(model.graph):
        if pad.op_type == "Pad":
            folded |= _fold(model.graph, pad)
    return folded


def _fold(graph: ir.Graph, pad: ir.Node) -> dict[ir.Node, ir.Value | None]:
    border = _spatial_border(pad)
    source = pad.inputs[0]
    if border is None or source is None:
        return {}
    chain = [pad]
    codes: ir.Value | None = None
    reader = only_reader(pad.outputs[0])
    quantize = reader if reader is not None and reader.op_type == "QuantizeLinear" else None
    moved = False
    if quantize is not None:
        producer = source.producer()
        dequantize = only_reader(quantize.outputs[0])
        if dequantize is None:
            return {}
        moved = producer is None or producer.op_type != "DequantizeLinear"
    if quantize is not None and moved:
        # a float border: the quantize moves in front of it
        reader = only_reader(dequantize.outputs[0])
        chain = [pad]
    elif quantize is not None:
        # codes may pass only if they keep their scale and zero point
        same = producer.op_type == dequantize.op_type == "DequantizeLinear" and all(
            _equal(producer.inputs[i], quantize.inputs[i])
            and _equal(producer.inputs[i], dequantize.inputs[i])
            for i in (1, 2)
        )
        if not same:
            return {}
        codes = producer.inputs[0]
        chain += [quantize, dequantize]
        reader = only_reader(dequantize.outputs[0])
    if (
        reader is None
        or reader.op_type != "Conv"
        or attribute(reader, "auto_pad", "NOTSET") != "NOTSET"
    ):
        return {}
    last = dequantize if moved else chain[-1]
    if reader.inputs[0] is not last.outputs[0]:
        return {}
    half = len(border) // 2
    own = list(attribute(reader, "pads", [0] * (2 * half)))
    if len(own) != len(border):
        return {}
    reader.attributes["pads"] = ir.AttrInt64s(
        "pads", [a + b for a, b in zip(own, border, strict=True)]
    )
    if moved:
        assert quantize is not None
        quantize.replace_input_with(0, source)
        dequantize.outputs[0].shape = quantize.outputs[0].shape = source.shape
    else:
        reader.replace_input_with(0, source)
    for node in reversed(chain):
        graph.remove(node, safe=True)
    return {chain[1] if codes is not None else pad: codes}


def _spatial_border(pad: ir.Node) -> list[int] | None:
    """Return begin and end pads of the spatial axes, or None where the Pad is of another kind."""
    if attribute(pad, "mode", "constant") != "constant" or (len(pad.inputs) > 3 and pad.inputs[3]):
        return None
    amounts = array(pad.inputs[1])
    value = array(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else None
    has_value = len(pad.inputs) > 2 and pad.inputs[2] is not None
    if amounts is None or (has_value and (value is None or float(value.reshape(-1)[0]) != 0.0)):
        return None
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    if rank < 3 or begin[:2].any() or end[:2].any() or (amounts < 0).any():
        return None
    return [int(x) for x in (*begin[2:], *end[2:])]


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    first, second = array(a), array(b)
    return first is not None and second is not None and bool((first == second).all())
