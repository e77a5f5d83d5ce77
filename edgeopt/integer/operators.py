"""From an operator between codes to the integer kernel that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node, map_arg

from edgeopt.integer import kernels
from edgeopt.integer.call import Call, Kernel, NoKernelError
from edgeopt.integer.grid import Array, Grid
from edgeopt.integer.window import Window
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.ir.edges import operator_name

PADS = frozenset({"pad", "constant_pad_nd"})
MOVES = PADS | {"view", "reshape", "flatten", "permute", "transpose", "slice", "cat", "unsqueeze"}
"""Operators that move codes and compute nothing."""

ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})
"""What the kernel before it takes in: a clamp to codes."""

Handler = Callable[[Call], Kernel]


def bind(call: Call, activations: tuple[Node, ...]) -> Kernel:
    """Return the kernel of an operator, with the activations behind it taken in.

    Args:
        call: The operator.
        activations: Of `ACTIVATIONS`, in the order in which they run.

    Raises:
        NoKernelError: If no kernel computes it in this form.
    """
    if call.out.dtype.itemsize != 1:
        raise NoKernelError(f"the output has {call.out.dtype} codes")
    if call.out.scale.ndim:
        raise NoKernelError("the output has a scale for each channel")
    bound = HANDLERS[operator_name(call.node)](call)
    bounds = [tuple(_code(real, call.out) for real in _ends(node)) for node in activations]
    if not bounds:
        return bound

    def compute(*values: Array) -> Array:
        codes = bound.compute(*values)
        for low, high in bounds:
            codes = np.clip(codes, low, high).astype(codes.dtype)
        return codes

    return Kernel(bound.reads, compute)


def _ends(activation: Node) -> tuple[float, float]:
    """Return the smallest and largest output of an activation that a kernel takes in."""
    name = operator_name(activation)
    if name == "relu":
        return 0.0, float("inf")
    if name == "relu6":
        return 0.0, 6.0
    given: list[Any] = [*activation.args[1:], *(-1.0, 1.0)[len(activation.args) - 1 :]]
    return float(given[0]), float(given[1])


def _code(real: float, grid: Grid) -> int:
    info = np.iinfo(grid.dtype)
    if not np.isfinite(real):
        return int(info.max if real > 0 else info.min)
    code = float(np.rint(np.float32(real) / np.float32(grid.scale))) + float(grid.zero_point)
    return int(np.clip(code, info.min, info.max))


def _conv(rank: int) -> Handler:
    def handler(call: Call) -> Kernel:
        x, weight = call.operand(0), call.operand(1, channels=True)
        strides, dilations = call.sizes(3, 1, rank), call.sizes(5, 1, rank)
        pads = call.sizes(4, 0, rank) * 2
        groups = int(call.argument(6, 1))
        bias = call.bias(x.grid, weight.grid)

        def compute(inputs: Array, filters: Array) -> Array:
            return kernels.conv(
                inputs,
                x.grid,
                filters,
                weight.grid,
                call.out,
                Window.of(filters.shape[2:], strides, pads, dilations),
                groups=groups,
                bias=bias,
                arithmetic=call.arithmetic,
            )

        return Kernel((x.codes, weight.codes), compute)

    return handler


def _linear(call: Call) -> Kernel:
    x, weight = call.operand(0), call.operand(1, channels=True)
    bias = call.bias(x.grid, weight.grid)

    def compute(inputs: Array, rows: Array) -> Array:
        return kernels.gemm(
            inputs,
            x.grid,
            rows.T,
            weight.grid,
            call.out,
            bias=bias,
            arithmetic=call.arithmetic,
        )

    return Kernel((x.codes, weight.codes), compute)


def _pair(kernel: Callable[..., Array]) -> Handler:
    def handler(call: Call) -> Kernel:
        first, second = call.operand(0), call.operand(1)
        if call.node.kwargs.get("alpha", 1) != 1:
            raise NoKernelError(f"alpha {call.node.kwargs['alpha']}")

        def compute(a: Array, b: Array) -> Array:
            return kernel(a, first.grid, b, second.grid, call.out, call.arithmetic)

        return Kernel((first.codes, second.codes), compute)

    return handler


def _subtract(call: Call) -> Kernel:
    if not call.arithmetic.subtracts:
        raise NoKernelError(f"arithmetic {call.arithmetic.name} has no integer subtraction")
    return _pair(kernels.subtract)(call)


def _mean(call: Call) -> Kernel:
    x = call.operand(0)
    rank = x.codes.meta["val"].dim()
    dims = sorted(int(dim) % rank for dim in call.argument(1) or ())
    if rank != 4 or dims != [2, 3]:
        raise NoKernelError(f"a mean over {dims} of {rank} dimensions")
    keep = bool(call.argument(2, False))

    def compute(codes: Array) -> Array:
        means = kernels.global_average_pool(codes, x.grid, call.out, call.arithmetic)
        return means if keep else means[:, :, 0, 0]

    return Kernel((x.codes,), compute)


def _max_pool(call: Call) -> Kernel:
    x = call.operand(0)
    kernel = call.sizes(1, 1, 2)
    window = Window.of(
        kernel,
        call.sizes(2, 1, 2) if call.argument(2) else kernel,
        call.sizes(3, 0, 2) * 2,
        call.sizes(4, 1, 2),
        ceil=bool(call.argument(5, False)),
    )

    def compute(codes: Array) -> Array:
        largest = kernels.max_pool(codes, window)
        return kernels.requantize_codes(largest, x.grid, call.out, call.arithmetic)

    return Kernel((x.codes,), compute)


def _pad(call: Call) -> Kernel:
    x = call.operand(0)
    amounts = list(call.argument(1))
    if not all(isinstance(amount, int) for amount in amounts):
        raise NoKernelError("a border whose width is dynamic")
    named = operator_name(call.node) == "pad"
    mode = call.argument(2, "constant") if named else "constant"
    value = call.argument(3 if named else 2) or 0.0
    border = float(_code(float(value), call.out)) if mode == "constant" else None

    def compute(codes: Array) -> Array:
        there = kernels.requantize_codes(codes, x.grid, call.out, call.arithmetic)
        # in float, which holds every code: torch does not reflect integers
        wide = torch.from_numpy(there.astype(np.float32))
        padded = torch.nn.functional.pad(wide, amounts, mode, border).numpy()
        return np.asarray(padded.astype(there.dtype))

    return Kernel((x.codes,), compute)


def _move(call: Call) -> Kernel:
    """Move codes as torch moves values, each operand brought to the output's grid first."""
    operands = call.operands()
    sizes = [n for n in call.node.all_input_nodes if n not in operands]
    target: Any = call.node.target

    def compute(*values: Any) -> Array:
        known: dict[Node, Any] = dict(zip(sizes, values[len(operands) :], strict=True))
        for (node, operand), codes in zip(operands.items(), values, strict=False):
            there = kernels.requantize_codes(codes, operand.grid, call.out, call.arithmetic)
            known[node] = torch.from_numpy(np.ascontiguousarray(there))
        args, kwargs = map_arg((call.node.args, call.node.kwargs), known.__getitem__)
        return np.asarray(target(*args, **kwargs).numpy())

    return Kernel((*(o.codes for o in operands.values()), *sizes), compute)


HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(PADS, _pad),
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "linear": _linear,
    "add": _pair(kernels.add),
    "sub": _subtract,
    "mul": _pair(kernels.multiply),
    "mean": _mean,
    "max_pool2d": _max_pool,
}
"""Operator -> its handler. What is not here computes in float."""


def between_codes(node: Node) -> bool:
    """Say whether all values that an operator computes from are codes, behind dequantize nodes."""
    sources = [n for n in node.all_input_nodes if n.op == "call_function"]
    values = [n for n in sources if isinstance(n.meta.get("val"), Tensor)]  # the rest are sizes
    return bool(values) and all(n.target is DEQUANTIZE for n in values)
