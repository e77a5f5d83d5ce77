"""From a captured program to an ONNX model."""

from __future__ import annotations

import logging
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from edgeopt.errors import ExportError
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE

if TYPE_CHECKING:
    import onnx_ir as ir


OPSETS = range(18, 26)
"""torch 2.13 writes invalid models in silence above opset 25."""


_TRANSLATED: weakref.WeakKeyDictionary[
    ExportedProgram, dict[int, tuple[bytes, ExportedProgram]]
] = weakref.WeakKeyDictionary()
"""Program -> opset -> what torch.onnx made of it, which takes seconds: a float program is
written once for each precision and target."""


def translated(exported: ExportedProgram, opset: int) -> tuple[ir.Model, ExportedProgram]:
    """Return a model of its own, and the program that torch.onnx made it from."""
    import onnx
    import onnx_ir as ir

    known = _TRANSLATED.setdefault(exported, {})
    if opset not in known:
        model, decomposed = _to_onnx(exported, opset)
        # bytes: the tensors of a model made from a proto are the proto's own, names included
        known[opset] = ir.to_proto(model).SerializeToString(), decomposed
    data, decomposed = known[opset]
    return ir.from_proto(onnx.ModelProto.FromString(data)), decomposed


def _to_onnx(exported: ExportedProgram, opset: int) -> tuple[ir.Model, ExportedProgram]:
    """Return the model, and the program that torch.onnx made it from: it decomposes first."""
    import onnxscript

    # The functions below are traced by onnxscript, which wants the opset as a plain name.
    op = getattr(onnxscript, f"opset{opset}")

    def quantize(
        x: Any,
        scale: Any,
        zero_point: Any,
        axis: int | None = None,
        block_shape: Any = None,
        codes_dtype: str = "int8",
        qmin: int = 0,
        qmax: int = 0,
    ) -> Any:
        if axis is None:
            return op.QuantizeLinear(x, scale, zero_point)
        return op.QuantizeLinear(x, scale, zero_point, axis=axis)

    def dequantize(
        codes: Any,
        scale: Any,
        zero_point: Any,
        axis: int | None = None,
        block_shape: Any = None,
        codes_dtype: str = "int8",
        out_dtype: int = 1,
    ) -> Any:
        if axis is None:
            return op.DequantizeLinear(codes, scale, zero_point)
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    # torch.onnx optimizes with onnxscript, which tells of every constant that it cannot fold
    chatter = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in chatter]
    for logger in chatter:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            result = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                custom_translation_table={QUANTIZE: quantize, DEQUANTIZE: dequantize},
            )
    except Exception as failure:  # torch.onnx raises many unrelated types
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        raise ExportError(
            f"onnx: torch.onnx cannot write the program: {lines[0] if lines else 'no message'}"
        ) from failure
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)
    assert result is not None
    assert result.exported_program is not None
    return result.model, result.exported_program
