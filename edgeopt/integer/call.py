"""An operator between codes, and what its kernel needs of the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.integer.arithmetic import Arithmetic
from edgeopt.integer.grid import Array, Grid
from edgeopt.ir import program
from edgeopt.ir.dialect import DEQUANTIZE, storage_dtype
from edgeopt.quant.reading import read


class NoKernelError(Exception):
    """Why no kernel computes this form of an operator."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that has everything but the values that flow.

    Attributes:
        reads: The nodes whose values it takes, in order: codes, as arrays.
        compute: From those values to the output's codes.
    """

    reads: tuple[Node, ...]
    compute: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Operand:
    """Codes that an operator reads: the node that carries them, and their grid."""

    codes: Node
    grid: Grid


class Parameters:
    """The stored tensors of a program, and the grids of its quantize and dequantize nodes."""

    def __init__(self, exported: ExportedProgram) -> None:
        self._table = program.tensors(exported)
        self._names = program.tensor_names(exported)

    def stored(self, node: Node) -> Tensor | None:
        """Return a parameter, buffer or constant by its placeholder, or None for other nodes."""
        if node.op != "placeholder" or node.name not in self._names:
            return None
        return self._table[self._names[node.name]].detach()

    def grid(self, node: Node) -> tuple[Grid, int | None]:
        """Return the grid of a quantize or dequantize node, and the axis of its scales.

        Raises:
            NoKernelError: If it is no grid that numpy codes lie on.
        """
        found = read(node, self._table, self._names)
        assert found is not None, "a grid belongs to quantize and dequantize"
        if node.args[4] is not None:
            raise NoKernelError("blocks of scales")
        scale, zero_point = found.params.scale.detach(), found.params.zero_point.detach()
        dtype = torch.empty(0, dtype=storage_dtype(found.codes_dtype)).numpy().dtype
        return Grid.of(scale.numpy(), zero_point.numpy(), dtype), found.params.axis


@dataclasses.dataclass(frozen=True)
class Call:
    """An operator between codes.

    Attributes:
        node: The operator.
        out: The grid of what it writes.
        parameters: The program's.
        arithmetic: In which its kernel computes.
    """

    node: Node
    out: Grid
    parameters: Parameters
    arithmetic: Arithmetic

    def argument(self, index: int, default: Any = None) -> Any:
        """Return a positional argument."""
        return self.node.args[index] if len(self.node.args) > index else default

    def sizes(self, index: int, default: int, rank: int) -> list[int]:
        """Return an argument that is one number for all dimensions or one for each."""
        value = self.argument(index, default)
        sizes = list(value) if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(size, int) for size in sizes):
            raise NoKernelError(f"argument {index} is {value!r}")
        return sizes * rank if len(sizes) == 1 else sizes

    def operand(self, index: int, *, channels: bool = False) -> Operand:
        """Return the codes behind an argument.

        Args:
            index: Of the argument.
            channels: Take one scale a channel along axis 0 as well.

        Raises:
            NoKernelError: If the kernels have no such operand.
        """
        return self._operand(self.argument(index), f"operand {index}", channels=channels)

    def operands(self) -> dict[Node, Operand]:
        """Return every operand by its dequantize node."""
        nodes = [n for n in self.node.all_input_nodes if n.target is DEQUANTIZE]
        return {node: self._operand(node, node.name) for node in nodes}

    def _operand(self, node: Any, what: str, *, channels: bool = False) -> Operand:
        if not isinstance(node, Node) or node.target is not DEQUANTIZE:
            raise NoKernelError(f"{what} is no codes")
        grid, axis = self.parameters.grid(node)
        if grid.dtype.itemsize != 1:
            raise NoKernelError(f"{what} has {grid.dtype} codes")
        if grid.scale.ndim and not (channels and axis == 0):
            raise NoKernelError(f"{what} has a scale for each channel of axis {axis}")
        codes = node.args[0]
        assert isinstance(codes, Node)
        return Operand(codes, grid)

    def bias(self, x: Grid, weight: Grid) -> Array | None:
        """Return the bias as int32 codes on the grid `s_x * s_w`, or None where there is none.

        Raises:
            NoKernelError: If it is no stored tensor.
        """
        given = self.argument(2)
        if given is None:
            return None
        is_codes = given.target is DEQUANTIZE
        stored = self.parameters.stored(given.args[0] if is_codes else given)
        if stored is None:
            raise NoKernelError("the bias is not stored")
        if is_codes:
            return np.asarray(stored.numpy().astype(np.int32))
        grid = np.float64(np.float32(x.scale) * weight.scale)
        return np.asarray(np.rint(stored.double().numpy() / grid).astype(np.int32))
