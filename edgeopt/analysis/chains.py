"""Read-only analysis of a module through a throw-away capture: who feeds whom, by FQN."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.pipeline.context import PassContext

PRODUCERS = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "linear",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    }
)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A throw-away capture, or why there is none."""

    exported: ExportedProgram | None
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Chain:
    """A consumer and the producer before it.

    Attributes:
        producer: FQN of the producing module, or empty where there is none.
        consumer: FQN of the consuming module.
        reason: Why the two may not be joined, or empty.
    """

    producer: str
    consumer: str
    reason: str = ""


def trace(module: nn.Module, ctx: PassContext) -> Trace:
    """Capture a module for reading only."""
    try:
        with torch.no_grad():
            args, kwargs = program.copied_inputs(ctx.example_args, ctx.example_kwargs)
            with program.quiet_export():
                return Trace(torch.export.export(module, args, kwargs))
    except Exception as failure:  # torch.export raises many unrelated types
        lines = str(failure).strip().splitlines()
        return Trace(None, f"{type(failure).__name__}: {lines[0] if lines else 'no message'}")


def chains(exported: ExportedProgram, consumer_op: str) -> list[Chain]:
    """Return each call of `consumer_op` with the weighted operator that feeds it.

    A chain has a reason if the producer is no weighted operator, has other readers, or if either
    module is called more than once.
    """
    names = program.tensor_names(exported)
    return [
        _chain(node, names)
        for node in exported.graph.nodes
        if node.op == "call_function" and operator_name(node) == consumer_op
    ]


def _chain(node: Node, names: dict[str, str]) -> Chain:
    own = [a for a in node.all_input_nodes if a.op == "placeholder" and a.name in names]
    if not own:
        return Chain("", "", "has no parameters")
    consumer = names[own[0].name].rpartition(".")[0]
    source = node.args[0]
    assert isinstance(source, Node)
    if source.op != "call_function" or operator_name(source) not in PRODUCERS:
        return Chain("", consumer, "no convolution or linear feeds it")
    weight = source.args[1]
    if not isinstance(weight, Node) or weight.name not in names:
        return Chain("", consumer, "the weight before it is computed at run time")
    producer = names[weight.name].rpartition(".")[0]
    value = source.meta.get("val")
    if operator_name(source) == "linear" and isinstance(value, Tensor) and value.dim() != 2:
        return Chain(
            producer, consumer, f"works along axis 1, not along the features of {producer}"
        )
    if len(source.users) > 1:
        return Chain(producer, consumer, f"{producer} has {len(source.users)} readers")
    if len(weight.users) > 1:
        return Chain(producer, consumer, f"{producer} is called {len(weight.users)} times")
    if len(own[0].users) > 1:
        return Chain(producer, consumer, f"is called {len(own[0].users)} times")
    return Chain(producer, consumer)
