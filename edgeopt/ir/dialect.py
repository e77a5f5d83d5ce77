"""The operators of a quantized graph: `quantize` and `dequantize` of `edgeopt`.

torch's own `quantized_decomposed` has no 4-bit storage and no blocks of scales, so graphs carry
these; legalizations lower them to what a target knows. Importing this module registers them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "int4": torch.int8,  # one a byte
}

_LIBRARY = torch.library.Library("edgeopt", "DEF")
_LIBRARY.define(
    "quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int[]? block_shape, "
    "str codes_dtype, int qmin, int qmax) -> Tensor"
)
_LIBRARY.define(
    "dequantize(Tensor codes, Tensor scale, Tensor zero_point, int? axis, int[]? block_shape, "
    "str codes_dtype, ScalarType out_dtype) -> Tensor"
)


def storage_dtype(codes_dtype: str) -> torch.dtype:
    """Return the torch type that holds codes of the named type."""
    return _DTYPES[codes_dtype]


def _spread(
    parameter: Tensor, x: Tensor, axis: int | None, block_shape: Sequence[int] | None
) -> Tensor:
    """Bring a scale or zero point to a shape that broadcasts against `x`."""
    if block_shape is not None:
        for dim, size in enumerate(block_shape):
            if size > 1:
                parameter = parameter.repeat_interleave(size, dim=dim)
        return parameter
    if axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    block_shape: Sequence[int] | None,
    codes_dtype: str,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Return `clamp(rne(x / scale) + zero_point, qmin, qmax)` (ONNX QuantizeLinear).

    The division is a true float32 division: multiplying by the reciprocal gives other codes on
    exact half-way inputs.
    """
    scale = _spread(scale, x, axis, block_shape)
    zero = _spread(zero_point, x, axis, block_shape)
    codes = torch.round(x.float() / scale) + zero
    return torch.clamp(codes, qmin, qmax).to(_DTYPES[codes_dtype])


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    block_shape: Sequence[int] | None,
    codes_dtype: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return `(codes - zero_point) * scale` in `out_dtype`."""
    scale = _spread(scale, codes, axis, block_shape)
    zero = _spread(zero_point, codes, axis, block_shape)
    return ((codes.to(torch.int32) - zero.to(torch.int32)).to(scale.dtype) * scale).to(out_dtype)


_LIBRARY.impl("quantize", quantize, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", dequantize, "CompositeExplicitAutograd")


@torch.library.register_fake("edgeopt::quantize")
def _fake_quantize(x, scale, zero_point, axis, block_shape, codes_dtype, qmin, qmax):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, dtype=_DTYPES[codes_dtype])


@torch.library.register_fake("edgeopt::dequantize")
def _fake_dequantize(codes, scale, zero_point, axis, block_shape, codes_dtype, out_dtype):  # type: ignore[no-untyped-def]
    return torch.empty_like(codes, dtype=out_dtype)


QUANTIZE = torch.ops.edgeopt.quantize.default
DEQUANTIZE = torch.ops.edgeopt.dequantize.default
