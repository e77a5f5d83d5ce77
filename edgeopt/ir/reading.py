"""Read a `.pt2` that a stranger may have written."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.errors import ModelError
from edgeopt.ir import program
from edgeopt.ir.archive import clean_archive


def read_program(path: Path) -> ExportedProgram:
    """Read a program of a bundle's `state/`: quantized operators and sites included.

    It is checked like a stranger's, since a bundle may come from one.

    Raises:
        ModelError: If the file is damaged, or holds what could run.
    """
    import edgeopt.ir.dialect  # noqa: F401  (registers its operators)

    return load_exported(path, dialect=True)


def load_exported(path: Path, *, dialect: bool = False) -> ExportedProgram:
    archive = clean_archive(path, dialect=dialect)
    chatter = logging.getLogger("torch.export")
    was_disabled, chatter.disabled = chatter.disabled, True
    try:
        with program.quiet_export():
            exported = torch.export.load(archive)
    except Exception as failure:  # a graph can be wrong in many unrelated ways
        text = " ".join(str(failure).split())[:200]
        raise ModelError(f"{path}: torch cannot read the program: {text}") from failure
    finally:
        chatter.disabled = was_disabled
    if _writes(exported):
        raise ModelError(
            f"{path}: the program writes into its buffers or inputs; export one that keeps its "
            "state in inputs and outputs"
        )
    return exported


def _writes(exported: ExportedProgram) -> bool:
    """Say whether the program changes a buffer or an input in place."""
    signature = exported.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return True
    return any(
        node.op == "call_function"
        and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        and isinstance(node.args[0], Node)
        and node.args[0].op == "placeholder"
        for node in exported.graph.nodes
    )
