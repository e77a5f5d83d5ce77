"""Captured programs: what they take and hold, and how to run and retrace them.

`torch.export.ExportedProgram` is the IR. Nothing here changes a program: `edgeopt.ir.editor` does.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import GraphModule

from edgeopt.ir.edges import LastingSites


def tensor_names(program: ExportedProgram) -> dict[str, str]:
    """Map placeholder names of parameters, buffers and constants to their FQN."""
    names: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            names[spec.arg.name] = str(spec.target)
    return names


def user_input_names(program: ExportedProgram) -> tuple[str, ...]:
    """Return the placeholder names of the user's inputs, in order."""
    return tuple(
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    )


def tensor_input_names(program: ExportedProgram) -> tuple[str, ...]:
    """Return the placeholder names of those of the user's inputs that are tensors, in order."""
    return tuple(
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    )


def tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """Map FQN to parameter, buffer or constant."""
    table: dict[str, Tensor] = {}
    for fqn in tensor_names(program).values():
        table[fqn] = (
            program.state_dict[fqn] if fqn in program.state_dict else program.constants[fqn]
        )
    return table


def runnable(program: ExportedProgram) -> GraphModule:
    """Return the program as a module for running only; it shares storage with the program."""
    return program.module(check_guards=False)


def run(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run the program without gradients."""
    with torch.no_grad():
        return runnable(program)(*args, **kwargs)


def unflattened(
    program: ExportedProgram, tensors: Sequence[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the program's arguments from its tensor inputs in order; constants are filled in."""
    from torch.utils import _pytree as pytree

    given = iter(tensors)
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    flat = [next(given) if isinstance(s.arg, TensorArgument) else s.arg.value for s in specs]
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return args, kwargs


def copied_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs with every tensor copied, as torch.export must be given them.

    It takes a tensor that stands in two places for one input, so that the graph reads the other
    input nowhere; and a failed call leaves the tensors marked as dynamic.
    """
    from torch.utils import _pytree as pytree

    copies: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf,
        (tuple(args), dict(kwargs)),
    )
    return copies


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch.export from printing whole graphs and deprecations of its own.

    What went wrong is in the exception.
    """
    chatter = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled, chatter.disabled = chatter.disabled, True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        chatter.disabled = was_disabled


def retrace(
    program: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Capture the program again at the shapes of these inputs, static unless said otherwise.

    Sites survive: re-export keeps `meta["custom"]` of operators, and the rest is given back.
    """
    args, kwargs = copied_inputs(args, kwargs)
    with torch.no_grad(), quiet_export():
        again = torch.export.export(runnable(program), args, kwargs, dynamic_shapes=dynamic_shapes)
    LastingSites.of(program.graph).restore(again.graph)
    return again


def flat_inputs(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the flat list of user inputs that the program's graph module takes."""
    from torch.utils import _pytree as pytree

    return pytree.tree_leaves((args, dict(kwargs)))
