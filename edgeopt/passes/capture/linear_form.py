"""Write products with a stored weight as `linear`, whichever way the module spells them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.ir.editor import ProgramEditor

_LINEAR = torch.ops.aten.linear.default


def as_linears(exported: ExportedProgram) -> tuple[ExportedProgram, frozenset[str]]:
    """Rewrite products by a weight [in, out] to `linear` with the weight [out, in].

    A transposed `Conv1D` (`addmm`) and a bare `x @ w` then take every road that a Linear takes.
    A weight that something else reads too stays as it is.

    Before: `addmm(b, x, w)`, `mm(x, w)`, `matmul(x, w)`. After: `linear(x, w^T, b)`.

    Returns:
        The program, and the FQNs of the weights that are stored transposed now.
    """
    names = program.tensor_names(exported)
    found = {n.name: parts for n in exported.graph.nodes if (parts := _operands(n, names))}
    if not found:
        return exported, frozenset()
    editor = ProgramEditor(exported)
    transposed: set[str] = set()
    for node in editor.graph.nodes:
        if node.name not in found:
            continue
        x, weight, bias = _split(node)
        fqn = names[weight.name]
        editor.replace(fqn, editor.table[fqn].detach().t().contiguous())
        transposed.add(fqn)
        node.target = _LINEAR
        node.args = (x, weight) if bias is None else (x, weight, bias)
        node.kwargs = {}
    return editor.finish(), frozenset(transposed)


def _split(node: Node) -> tuple[Node, Node, Node | None]:
    """Return input, weight and bias of a product."""
    operands = [a for a in node.args if isinstance(a, Node)]
    if operator_name(node) == "addmm":
        bias, x, weight = operands
        return x, weight, bias
    x, weight = operands
    return x, weight, None


def _operands(node: Node, names: dict[str, str]) -> bool:
    """Say whether a node is a product with a weight of its own."""
    if node.op != "call_function" or operator_name(node) not in ("addmm", "mm", "matmul"):
        return False
    wanted = 3 if operator_name(node) == "addmm" else 2
    if len(node.args) != wanted or len(node.all_input_nodes) != wanted or node.kwargs:
        return False
    x, weight, bias = _split(node)
    value = weight.meta.get("val")
    if weight.name not in names or x.name in names or not isinstance(value, Tensor):
        return False
    own_bias = bias is None or (bias.name in names and bias.meta["val"].dim() == 1)
    return value.dim() == 2 and len(weight.users) == 1 and own_bias
