"""The loop that passes share which rewrite operators one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir.edges import require_site
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import PassResult
from edgeopt.pipeline.state import ModelState


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """An operator was rewritten; `words` say how."""

    words: str


@dataclasses.dataclass(frozen=True)
class Left:
    """An operator was left alone; `reason` says why."""

    reason: str


Rewrite = Callable[[ProgramEditor, Node], Rewritten | Left | None]
"""Rewrites one operator in place, leaves it with a reason, or returns None: it is not concerned."""


def rewrite_operators(state: ModelState, rewrite: Rewrite) -> PassResult:
    """Offer every operator of every method to `rewrite`, in graph order.

    A program in which nothing was rewritten is handed on as it is, to the bit.
    """
    programs: dict[str, ExportedProgram] = {}
    changes: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for method, exported in state.carrier_programs.items():
        editor = ProgramEditor(exported)
        touched = False
        for node in list(editor.graph.nodes):
            if node.op != "call_function":
                continue
            outcome = rewrite(editor, node)
            if outcome is None:
                continue
            address = require_site(node).address
            if isinstance(outcome, Left):
                skipped[address] = outcome.reason
            else:
                changes[address] = outcome.words
                touched = True
        programs[method] = editor.finish() if touched else exported
    return PassResult(state.with_programs(programs), changes, skipped)
