"""The shapes at which a captured program is exported."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeopt.api.building.job import Job
from edgeopt.errors import ConfigError, nearest
from edgeopt.ir import program
from edgeopt.ir.trees import BATCH, Dimension, export_shapes

_SHAPED: weakref.WeakKeyDictionary[
    ExportedProgram, dict[tuple[int, tuple[str, ...]], ExportedProgram]
] = weakref.WeakKeyDictionary()


def shaped_once(job: Job, exported: ExportedProgram) -> ExportedProgram:
    """Return `at_shapes`, once a program and shape: several files are written from one trunk."""
    known = _SHAPED.setdefault(exported, {})
    key = (job.batch, job.dynamic)
    if key not in known:
        shaped = at_shapes(job, exported)
        if shaped is exported:
            return exported  # a value that is its own weak key would never be freed
        known[key] = shaped
    return known[key]


def at_shapes(job: Job, exported: ExportedProgram) -> ExportedProgram:
    """Return the program at the shapes that the files are to have.

    It is captured again: dimensions that `job.dynamic` names stay dynamic, the batch is
    `job.batch`, and every other size is the example's.

    Raises:
        ConfigError: If the model cannot take the batch, or has no such dynamic dimension.
    """
    free = dimensions(job, exported)
    names = {dimension.name for leaf in free for dimension in leaf.values()}
    unknown = next((name for name in job.dynamic if name not in names), None)
    if unknown is not None:
        if unknown == BATCH:
            raise ConfigError("--dynamic batch: the model fixes its batch")
        raise ConfigError(f"--dynamic {unknown}: no such dimension{nearest(unknown, names)}")
    args, kwargs = job.loaded.example_args, dict(job.loaded.example_kwargs)
    leading = {leaf[0].name for leaf in free if 0 in leaf}
    if not leading:
        fixed = leading_size(args, kwargs)
        if fixed != job.batch and fixed is not None:
            raise ConfigError(
                f"--batch {job.batch}: the model fixes its batch; pass --batch {fixed} (`len(x)` "
                "in a forward fixes it, `x.shape[0]` does not)"
            )
    elif not leading & set(job.dynamic):
        args, kwargs = resized(args, kwargs, job.batch)
    if not names:
        return exported
    kept = [
        {axis: found.size for axis, found in leaf.items() if found.name in job.dynamic}
        for leaf in free
    ]
    forward = program.runnable(exported).forward
    shapes = export_shapes(args, kwargs, kept, forward) if any(kept) else None
    return program.retrace(exported, args, kwargs, shapes)


def dimensions(job: Job, exported: ExportedProgram) -> list[dict[int, Dimension]]:
    """Return the dimensions of each input that the captured program really leaves free."""
    declared = job.loaded.dimensions
    found = []
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    for position, name in enumerate(program.tensor_input_names(exported)):
        shape = getattr(values[name], "shape", ())
        named = declared[position] if position < len(declared) else {}
        if job.loaded.dynamic_shapes is None:  # then capture left the batch open where it could
            named = {0: Dimension(BATCH, torch.export.Dim.DYNAMIC)}
        found.append(
            {
                axis: dimension
                for axis, dimension in named.items()
                if axis < len(shape) and not isinstance(shape[axis], int)
            }
        )
    return found


def has_dynamic_batch(exported: ExportedProgram) -> bool:
    """Say whether the first dimension of an input of the program is dynamic."""
    names = set(program.tensor_input_names(exported))
    return any(
        not isinstance(size, int)
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in names
        for size in node.meta["val"].shape[:1]
    )


def leading_size(args: Any, kwargs: Any) -> int | None:
    leaves = [x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
    return leaves[0].shape[0] if leaves and leaves[0].dim() else None


def resized(args: Any, kwargs: Mapping[str, Any], batch: int) -> tuple[Any, dict[str, Any]]:
    """Return the example inputs with the first dimension set to `batch`, by repetition."""
    size = leading_size(args, kwargs)

    def leaf(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != size:
            return x
        return x[torch.arange(batch) % x.shape[0]]

    return pytree.tree_map(leaf, args), pytree.tree_map(leaf, dict(kwargs))
