"""Write numbers in sums and products as tensors."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.fx import Node

from edgeopt.ir.edges import operator_name, require_site
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.rewriting import Left, Rewritten, rewrite_operators
from edgeopt.pipeline.state import Effect, ModelState, Stage

_BINARY = frozenset({"add", "sub", "mul", "div", "rsub"})
_ATEN = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class TensorScalarsConfig:
    """`tensor_scalars` has no options."""


class TensorScalars(Pass[TensorScalarsConfig]):
    """Write the number in `x + 2`, `x * 0.1`, `x / 8` as a stored tensor, which can have a code.

    A division becomes the product with the reciprocal, and `alpha` is multiplied into the number.
    Integer arithmetic (positions, sizes) stays as it is.

    Before: `div(x, 8.0)`. After: `mul(x, c)`, c a float32 tensor of shape [].
    """

    name = "tensor_scalars"
    config_type = TensorScalarsConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        return rewrite_operators(state, _rewrite)


def _rewrite(editor: ProgramEditor, node: Node) -> Rewritten | Left | None:
    number = _number(node)
    if number is None:
        return None
    if reason := _unsupported(node):
        return Left(reason)
    _write(editor, node, number)
    return Rewritten(f"{number:g} as a tensor")


def _number(node: Node) -> float | None:
    """Return the number that a float operator takes beside its tensor, or None."""
    if node.op != "call_function" or operator_name(node) not in _BINARY or len(node.args) < 2:
        return None
    value, number = node.meta.get("val"), node.args[1]
    plain = isinstance(number, (int, float)) and not isinstance(number, bool)
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return float(number) if plain and floats else None  # type: ignore[arg-type]


def _unsupported(node: Node) -> str:
    if node.kwargs.get("rounding_mode") is not None:
        return f"rounds to {node.kwargs['rounding_mode']}"
    if operator_name(node) == "rsub" and _alpha(node) != 1:
        return "scales the tensor by alpha"
    if operator_name(node) == "div" and node.args[1] == 0:
        return "divides by 0"
    return ""


def _alpha(node: Node) -> float:
    given = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    assert isinstance(given, (int, float))
    return float(given)


def _write(editor: ProgramEditor, node: Node, number: float) -> None:
    name, x = operator_name(node), node.args[0]
    assert isinstance(x, Node)
    if name in ("add", "sub"):
        number *= _alpha(node)
    if name == "div":
        number, name = 1.0 / number, "mul"
    value = torch.tensor(number, dtype=node.meta["val"].dtype)
    constant = editor.add_buffer(f"{require_site(node).stem}_constant", value)
    operands = (constant, x) if name == "rsub" else (x, constant)
    node.target = {
        "add": _ATEN.add.Tensor,
        "sub": _ATEN.sub.Tensor,
        "rsub": _ATEN.sub.Tensor,
        "mul": _ATEN.mul.Tensor,
    }[name]
    node.args, node.kwargs = operands, {}
    editor.infer(node)
