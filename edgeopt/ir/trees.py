"""Nested inputs and outputs: a name for each tensor in them, and which of its sizes are free."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

BATCH = "batch"
"""What dimension 0 is called where nobody named it."""


@dataclasses.dataclass(frozen=True)
class TreeLeaf:
    """One leaf of nested values.

    Attributes:
        keys: From the outside in: positions, keys of mappings, names of fields.
        value: A tensor, a number, None, ...
    """

    keys: tuple[str | int, ...]
    value: Any

    @property
    def label(self) -> str:
        """The keys as one word."""
        return "_".join(re.sub(r"\W+", "_", str(key)) for key in self.keys)


def flatten(tree: Any) -> list[TreeLeaf]:
    """Return the leaves of any pytree in order, None included."""
    register_dataclasses(tree)
    pairs, _ = pytree.tree_flatten_with_path(tree)
    return [TreeLeaf(tuple(map(_key, path)), value) for path, value in pairs]


def _key(entry: Any) -> str | int:
    for attribute in ("idx", "key", "name"):
        found = getattr(entry, attribute, None)
        if found is not None:
            return found if isinstance(found, int) else str(found)
    return str(entry)


def register_dataclasses(tree: Any) -> None:
    """Let torch look into the dataclasses of a value, as `torch.export` must be told to."""
    import torch

    for leaf in pytree.tree_leaves(tree):
        kind = type(leaf)
        if dataclasses.is_dataclass(kind) and kind not in pytree.SUPPORTED_NODES:
            name = f"{kind.__module__}.{kind.__qualname__}"  # without it no program is saved
            torch.export.register_dataclass(kind, serialized_type_name=name)
            register_dataclasses(leaf)


def input_names(positional: Sequence[str], args: Sequence[Any], kwargs: Any) -> tuple[str, ...]:
    """Name each tensor of a call's inputs.

    An argument that is one tensor goes by its parameter's name, the tensors of a nested one by
    name and path: `image`, `boxes_0`, `meta_scale`.

    Args:
        positional: The parameters' names; arguments beyond them are `input3`, ...
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    names: list[str] = []
    roots = [
        positional[index] if index < len(positional) else f"input{index}"
        for index in range(len(args))
    ]
    for root, value in [*zip(roots, args, strict=True), *dict(kwargs).items()]:
        inner = [leaf for leaf in flatten(value) if isinstance(leaf.value, Tensor)]
        single = len(inner) == 1 and not (inner[0].keys and isinstance(value, Mapping))
        names += [root if single else f"{root}_{leaf.label}" for leaf in inner]
    return _distinct(names)


def output_names(outputs: Any) -> tuple[str, ...]:
    """Name each tensor of a model's outputs: by key or field, else `output`, `output0`, ..."""
    found = [leaf for leaf in flatten(outputs) if isinstance(leaf.value, Tensor)]
    if len(found) == 1 and not any(isinstance(key, str) for key in found[0].keys):
        return ("output",)
    numbered = ("output" if leaf.keys and isinstance(leaf.keys[0], int) else "" for leaf in found)
    return _distinct([f"{start}{leaf.label}" for start, leaf in zip(numbered, found, strict=True)])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Number the names that paths of different shape share (`a_b` and `a: {b}`)."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.append(f"{name}_{count}" if count else name)
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A free dimension.

    Attributes:
        name: That of its `torch.export.Dim`; for a hint (`Dim.AUTO`, `Dim.DYNAMIC`) it is `batch`
            on axis 0 and `INPUT_AXIS` elsewhere.
        size: What `torch.export` was told of it.
    """

    name: str
    size: Any


def free_dimensions(
    args: Sequence[Any], kwargs: Any, names: Sequence[str], dynamic_shapes: Any
) -> list[dict[int, Dimension]]:
    """Return the free axes of each tensor of a call's inputs.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        names: The tensors' names, in order.
        dynamic_shapes: As `torch.export.export` takes them, or None: nothing is free.
    """
    keyed = [*((None, value) for value in args), *dict(kwargs).items()]
    found: list[dict[int, Any]] = []
    for position, (key, value) in enumerate(keyed):
        # a mapping's keys are parameter names, which the user may have renamed
        name = key or (names[len(found)] if len(found) < len(names) else "")
        found += _axes(value, _entry(dynamic_shapes, position, name))
    return [
        {axis: Dimension(_dimension_name(size, axis, name), size) for axis, size in axes.items()}
        for axes, name in zip(found, _padded(names, len(found)), strict=True)
    ]


def _padded(names: Sequence[str], count: int) -> list[str]:
    return [names[i] if i < len(names) else f"input{i}" for i in range(count)]


def _entry(shapes: Any, position: int, name: str) -> Any:
    if isinstance(shapes, Mapping):
        ordered = list(shapes.values())
        return shapes.get(name, ordered[position] if position < len(ordered) else None)
    if isinstance(shapes, (tuple, list)) and position < len(shapes):
        return shapes[position]
    return None


def _axes(value: Any, entry: Any) -> Iterator[dict[int, Any]]:
    """Yield the free axes of each tensor of one argument: axis -> what dynamic_shapes says."""
    if isinstance(value, Tensor):
        pairs: Any = ()
        if isinstance(entry, Mapping):
            pairs = entry.items()
        elif isinstance(entry, (tuple, list)):
            pairs = enumerate(entry)
        yield {int(axis) % value.dim(): size for axis, size in pairs if not _static(size)}
        return
    register_dataclasses(value)
    kind = pytree.SUPPORTED_NODES.get(pytree._get_node_type(value))
    if kind is None:
        return
    children, _ = kind.flatten_fn(value)
    keys = list(value) if isinstance(value, Mapping) else [""] * len(children)
    for position, child in enumerate(children):
        yield from _axes(child, _entry(entry, position, str(keys[position])))


def _static(size: Any) -> bool:
    # torch.export.Dim.STATIC is a hint of its own; an int or None fixes the size too.
    return size is None or isinstance(size, int) or "STATIC" in str(getattr(size, "type", ""))


def _dimension_name(size: Any, axis: int, name: str) -> str:
    own = getattr(getattr(size, "root", size), "__name__", None)  # of `2 * batch`, batch
    if isinstance(own, str):
        return own
    return BATCH if axis == 0 else f"{name}_{axis}"


def export_shapes(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sizes: Sequence[Mapping[int, Any]],
    forward: Any,
) -> Any:
    """Return dynamic shapes as `torch.export.export` takes them: nested, by parameter name.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        sizes: Axis -> `Dim` or hint, one mapping a tensor, in order.
        forward: What is called with them; its signature names the parameters.
    """
    given = iter(sizes)
    args, kwargs = pytree.tree_map(
        lambda leaf: dict(next(given)) or None if isinstance(leaf, Tensor) else None,
        (tuple(args), dict(kwargs)),
    )
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)


def leaves(outputs: object) -> list[Tensor]:
    """Return the tensor leaves of any pytree."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
