"""Names and free sizes of nested inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from edgeopt.ir import trees

T = torch.zeros(2, 3)


@dataclasses.dataclass
class Found:
    boxes: Tensor
    scores: Tensor
    masks: Tensor | None = None


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (T, ("output",)),
        ((T,), ("output",)),
        ((T, None, T), ("output0", "output2")),
        ((T, (T, T)), ("output0", "output1_0", "output1_1")),
        ({"logits": T}, ("logits",)),
        ({"a": T, "b": [T, {"c": T}]}, ("a", "b_0", "b_1_c")),
        (Found(T, T), ("boxes", "scores")),
        (Pair(T, T), ("left", "right")),
        ({"a": {"b": T}, "a_b": T}, ("a_b", "a_b_1")),
        ({"top-1 score": T}, ("top_1_score",)),
    ],
)
def test_outputs_are_named_by_their_path(outputs: Any, names: tuple[str, ...]) -> None:
    assert trees.output_names(outputs) == names


def test_inputs_are_named_by_parameter_and_path() -> None:
    args = (T, {"x": T, "pair": (T, None)}, [T, T])
    found = trees.input_names(("image", "batch"), args, {"mask": T, "more": {"one": T}})
    assert found == (
        "image", "batch_x", "batch_pair_0", "input2_0", "input2_1", "mask", "more_one",
    )  # fmt: skip


def test_free_dimensions_go_by_their_dims_or_by_axis() -> None:
    batch, length = Dim("n"), Dim("length", max=9)
    args = ({"ids": torch.zeros(2, 4), "scale": torch.zeros(2)}, torch.zeros(2, 8))
    shapes = {"batch": {"ids": {0: batch, 1: length}, "scale": None}, "mask": (batch, 2 * length)}
    free = trees.free_dimensions(args, {}, ("batch_ids", "batch_scale", "mask"), shapes)
    assert [{a: d.name for a, d in leaf.items()} for leaf in free] == [
        {0: "n", 1: "length"}, {}, {0: "n", 1: "length"},
    ]  # fmt: skip
    hints = ({"ids": {0: Dim.AUTO, 1: Dim.DYNAMIC}, "scale": {0: Dim.STATIC}}, {1: 8})
    free = trees.free_dimensions(args, {}, ("ids", "scale", "mask"), hints)
    assert [{a: d.name for a, d in leaf.items()} for leaf in free] == [
        {0: "batch", 1: "ids_1"}, {}, {},
    ]  # fmt: skip
    assert trees.free_dimensions(args, {}, ("ids", "scale", "mask"), None) == [{}, {}, {}]


def test_export_shapes_are_taken_by_torch_export() -> None:
    class Net(nn.Module):
        def forward(self, batch: dict[str, Tensor], extra: Any = None, *, mask: Tensor) -> Tensor:
            return batch["x"] * mask

    args, kwargs = ({"x": torch.zeros(3, 4)}, None), {"mask": torch.zeros(3, 4)}
    size = Dim("size")
    shapes = trees.export_shapes(args, kwargs, [{0: size}, {0: size}], Net().forward)
    exported = torch.export.export(Net(), args, kwargs, dynamic_shapes=shapes)
    sizes = [n.meta["val"].shape for n in exported.graph.nodes if n.name in ("batch_x", "mask")]
    assert len(sizes) == 2
    assert all(not isinstance(s[0], int) and s[1] == 4 for s in sizes)


def test_a_dataclass_is_looked_into_and_can_be_saved() -> None:
    @dataclasses.dataclass
    class Local:
        value: Tensor

    assert [leaf.keys for leaf in trees.flatten((Local(T), 3))] == [(0, "value"), (1,)]
    assert Local in pytree.SUPPORTED_NODES
    assert "Local" in pytree.treespec_dumps(pytree.tree_flatten(Local(T))[1])
