"""The integer kernels of the reference executor, in numpy, from the files that define them.

Each kernel computes its output with the steps, in their order, that the runtime's kernel of that
name takes (`Arithmetic`); ONNX Runtime's and XNNPACK's were found by comparing every element on
random and tied inputs.
"""

from __future__ import annotations

from edgeopt.integer.elementwise import add, multiply, subtract
from edgeopt.integer.grid import Grid, concat, dequantize, quantize, requantize_codes
from edgeopt.integer.pools import average_pool, global_average_pool, max_pool
from edgeopt.integer.products import (
    accumulator_bound,
    conv,
    conv_accumulator,
    fits_accumulator,
    gemm,
    gemm_float,
    matmul_accumulator,
)
from edgeopt.integer.window import Window

__all__ = [
    "Grid",
    "Window",
    "accumulator_bound",
    "add",
    "average_pool",
    "concat",
    "conv",
    "conv_accumulator",
    "dequantize",
    "fits_accumulator",
    "gemm",
    "gemm_float",
    "global_average_pool",
    "matmul_accumulator",
    "max_pool",
    "multiply",
    "quantize",
    "requantize_codes",
    "subtract",
]
