"""Store a linear's codes in the layout that its MatMul reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.exporters.onnx.rewrites.constants import array, attribute, only_reader, store


def fold_weight_transpose(model: ir.Model) -> dict[str, str]:
    """Fold `Transpose(DequantizeLinear(codes))` into the codes.

    ONNX Runtime selects an integer Gemm only if the dequantize feeds the MatMul directly. A
    per-channel axis moves with the permutation.

    Before: `codes [out, in] -> DequantizeLinear(axis=0) -> Transpose -> MatMul`.
    After: `codes [in, out] -> DequantizeLinear(axis=1) -> MatMul`.

    Returns:
        Initializer -> `transpose`, for those whose stored layout changed.
    """
    graph = model.graph
    folded: dict[str, str] = {}
    for transpose in list(graph):
        if transpose.op_type != "Transpose" or transpose.inputs[0] is None:
            continue
        dequantize = transpose.inputs[0].producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source = dequantize.inputs[0]
        codes = array(source)
        if source is None or codes is None or only_reader(dequantize.outputs[0]) is None:
            continue
        if any(use.node is not dequantize for use in source.uses()):
            continue  # another layer reads the same codes in their own layout
        order = attribute(transpose, "perm", tuple(reversed(range(codes.ndim))))
        assert source.name is not None
        store(graph, source.name, np.transpose(codes, order))
        scale = array(dequantize.inputs[1])
        if scale is not None and scale.ndim:
            axis = attribute(dequantize, "axis", 1) % codes.ndim
            dequantize.attributes["axis"] = ir.AttrInt64("axis", list(order).index(axis))
        dequantize.outputs[0].shape = ir.Shape(np.transpose(codes, order).shape)
        transpose.outputs[0].replace_all_uses_with(dequantize.outputs[0])
        graph.remove(transpose, safe=True)
        folded[source.name] = "transpose"
    return folded
