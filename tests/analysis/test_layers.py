"""Layers with a weight are found by kind and by glob, and read as matrices."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edgeopt.analysis.layers import Kind, Layer, choose_layers, find_layers
from edgeopt.errors import ConfigError
from tests.small_models import normal


def only(module: nn.Module) -> Layer:
    (layer,) = find_layers(module, frozenset(Kind))
    return layer


# --- kinds ---------------------------------------------------------------------------------------

# the layer, an input, the axis of its channels, and: kind, axis, inputs, outputs, groups
KINDS = {
    "Linear": (lambda: nn.Linear(6, 4), (2, 6), 1, (Kind.LINEAR, 1, 6, 4, 1)),
    "Conv1D": (lambda: Conv1D(4, 6), (2, 6), 1, (Kind.CONV1D, 0, 6, 4, 1)),
    "Conv1d": (lambda: nn.Conv1d(6, 4, 3), (2, 6, 5), 1, (Kind.CONVOLUTION, 1, 6, 4, 1)),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 5), 1, (Kind.CONVOLUTION, 1, 6, 4, 1)),
    "Conv3d": (lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3), 1, (Kind.CONVOLUTION, 1, 6, 4, 1)),
    "groups": (
        lambda: nn.Conv2d(6, 4, 3, groups=2),
        (2, 6, 5, 5),
        1,
        (Kind.CONVOLUTION, 1, 3, 4, 2),
    ),
    "depthwise": (
        lambda: nn.Conv2d(6, 6, 3, groups=6),
        (2, 6, 5, 5),
        1,
        (Kind.CONVOLUTION, 1, 1, 6, 6),
    ),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(6, 4, 3),
        (2, 6, 5),
        1,
        (Kind.TRANSPOSED_CONVOLUTION, 0, 6, 4, 1),
    ),
    "ConvTranspose2d in groups": (
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
        (2, 6, 5, 5),
        1,
        (Kind.TRANSPOSED_CONVOLUTION, 0, 3, 4, 2),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_is_a_matrix_of_a_row_an_output(name: str) -> None:
    make, shape, axis, expected = KINDS[name]
    module = make()
    x = normal(*shape)
    layer = only(module)
    assert (layer.kind, layer.in_axis, layer.inputs, layer.outputs, layer.groups) == expected
    assert layer.out_axis == 1 - layer.in_axis
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    matrix = layer.matrix().clone()
    assert matrix.shape == (layer.outputs, layer.weight.numel() // layer.outputs)
    with torch.no_grad():
        before = module(x)
        for row in range(layer.outputs):
            changed = matrix.clone()
            changed[row] *= 2
            layer.set_matrix(changed)
            moved = (module(x) != before).transpose(0, axis).flatten(1).any(1)
            assert moved.nonzero().flatten().tolist() == [row]
        layer.set_matrix(matrix)
        assert torch.equal(module(x), before)


@pytest.mark.parametrize("name", KINDS)
def test_the_columns_of_a_matrix_run_over_the_inputs_of_a_group_and_then_the_kernel(
    name: str,
) -> None:
    make, shape, _, _ = KINDS[name]
    module = make()
    layer = only(module)
    kernel = layer.weight.shape[2:]
    columns = layer.matrix().reshape(layer.outputs, layer.inputs, *kernel)
    nn.init.zeros_(module.bias)
    per_group = layer.outputs // layer.groups
    with torch.no_grad():
        for channel in range(shape[1]):
            # one channel that is 1 at one place shows the kernel of each output
            x = torch.zeros(1, *shape[1:])
            middle = [size // 2 for size in shape[2:]]
            x[(0, channel, *middle)] = 1
            seen = module(x)[0].flatten(1).abs().sum(1) if kernel else module(x)[0].abs()
            group, place = divmod(channel, layer.inputs)
            want = torch.zeros(layer.outputs)
            rows = slice(group * per_group, (group + 1) * per_group)
            want[rows] = columns[rows, place].flatten(1).abs().sum(1) if kernel else (
                columns[rows, place].abs()
            )  # fmt: skip
            torch.testing.assert_close(seen, want, rtol=1e-5, atol=1e-6)  # float32 sums of 9


def test_an_embedding_multiplies_one_hot_rows_and_is_found_where_it_is_asked_for() -> None:
    table = nn.Embedding(9, 6)
    assert find_layers(table) == ()
    (layer,) = find_layers(table, (Kind.EMBEDDING,))
    assert (layer.inputs, layer.outputs, layer.in_axis, layer.bias) == (9, 6, 0, None)
    ids = torch.tensor([3, 0, 8])
    one_hot = nn.functional.one_hot(ids, 9).float()
    assert torch.equal(one_hot @ layer.matrix().T, table(ids))
    layer.set_matrix(layer.matrix() * 2)
    assert torch.equal(one_hot @ layer.matrix().T, table(ids))


def test_packed_attention_is_one_layer_and_its_output_another() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    packed, output = find_layers(model)
    assert (packed.fqn, packed.weight_fqn) == ("attn", "attn.in_proj_weight")
    assert (packed.kind, packed.inputs, packed.outputs) == (Kind.PACKED_ATTENTION, 8, 24)
    assert packed.weight is model["attn"].in_proj_weight
    assert packed.bias is model["attn"].in_proj_bias
    assert torch.equal(packed.matrix(), packed.weight)
    assert (output.fqn, output.kind) == ("attn.out_proj", Kind.LINEAR)


def test_attention_with_keys_and_values_of_their_own_width_is_three_layers() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    *split, _ = find_layers(nn.ModuleDict({"attn": attention}))
    assert [(layer.weight_fqn, layer.inputs, layer.outputs) for layer in split] == [
        ("attn.q_proj_weight", 8, 8),
        ("attn.k_proj_weight", 6, 8),
        ("attn.v_proj_weight", 4, 8),
    ]
    assert {layer.kind for layer in split} == {Kind.SPLIT_ATTENTION}
    assert all(layer.matrix().shape == (layer.outputs, layer.inputs) for layer in split)
    assert {layer.bias for layer in split} == {None}  # one, packed, is of all three


def test_other_modules_are_no_layers() -> None:
    class Conv1D(nn.Module):  # shadows Transformers' by name alone
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(2, 3, 4))

    others = [nn.LayerNorm(4), nn.BatchNorm2d(4), nn.PReLU(), nn.Bilinear(2, 2, 2), Conv1D()]
    assert find_layers(nn.Sequential(*others), frozenset(Kind)) == ()


def test_a_matrix_is_written_in_the_weights_own_type() -> None:
    linear = nn.Linear(3, 2).to(torch.bfloat16)
    weight = linear.weight
    only(linear).set_matrix(torch.full((2, 3), 1.0078125 + 2**-12, dtype=torch.float64))
    assert linear.weight is weight
    assert weight.dtype is torch.bfloat16
    assert torch.equal(weight, torch.full((2, 3), 1.0078125, dtype=torch.bfloat16))


# --- names ---------------------------------------------------------------------------------------


class Names(nn.Module):
    """A tie, a layer under two names, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.twice = nn.Linear(8, 8)
        self.one = nn.Linear(8, 8)
        self.other = self.one
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.table.weight
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.twice(self.twice(self.table(tokens)))
        return self.again(self.head(self.other(self.one(x))))


def test_layers_come_once_each_in_the_order_of_the_model() -> None:
    layers = find_layers(Names(), frozenset(Kind))
    assert [layer.fqn for layer in layers] == ["table", "twice", "one", "head", "again"]
    assert {layer.fqn: layer.aliases for layer in layers if layer.aliases} == {"one": ("other",)}


def test_a_layer_knows_what_else_its_weight_is() -> None:
    layers = {layer.fqn: layer for layer in find_layers(Names(), frozenset(Kind))}
    assert {name: layer.tied for name, layer in layers.items()} == {
        "table": ("again.weight", "head.weight"),
        "twice": (),
        "one": (),  # its second name is no other layer
        "head": ("again.weight", "table.weight"),
        "again": ("head.weight", "table.weight"),
    }
    assert layers["one"].weight_fqns == ("one.weight", "other.weight")


def test_the_model_itself_may_be_a_layer() -> None:
    layer = only(nn.Linear(3, 2))
    assert (layer.fqn, layer.name, layer.weight_fqn) == ("", "the model", "weight")
    chosen, _ = choose_layers((layer,), ("*",), who="here")
    assert chosen == (layer,)


# --- globs ---------------------------------------------------------------------------------------


def blocks() -> nn.Module:
    """Layers whose order is not that of their names."""
    return nn.ModuleDict(
        {"b": nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1)), "a": nn.Linear(4, 4)}
    )


def chosen(module: nn.Module, *include: str, exclude: tuple[str, ...] = ()) -> list[str]:
    layers, _ = choose_layers(find_layers(module), include, exclude, who="here")
    return [layer.fqn for layer in layers]


def test_globs_choose_in_the_order_of_the_model() -> None:
    assert chosen(blocks(), "*") == ["b.0", "b.1", "a"]
    assert chosen(blocks(), "a", "b.1") == ["b.1", "a"]
    assert chosen(blocks(), "b") == ["b.0", "b.1"]
    assert chosen(blocks()) == []


def test_what_is_named_in_exclude_is_left_and_told() -> None:
    layers, skipped = choose_layers(find_layers(blocks()), ("b", "a"), ("*.0",), who="here")
    assert [layer.fqn for layer in layers] == ["b.1", "a"]
    assert skipped == {"b.0": "named in exclude"}
    # only what would have been chosen
    assert choose_layers(find_layers(blocks()), ("a",), ("b",), who="here")[1] == {}


def test_a_layer_goes_by_each_of_its_names() -> None:
    assert chosen(Names(), "other") == ["one"]
    assert chosen(Names(), "one", "twice", exclude=("other",)) == ["twice"]


@pytest.mark.parametrize("exclude", [False, True])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name(exclude: bool) -> None:
    include, left = (("*",), ("b.2",)) if exclude else (("a", "b.2"), ())
    message = "here: pattern 'b.2' matches no Linear or convolution; the nearest is 'b.1'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        chosen(blocks(), *include, exclude=left)
    with pytest.raises(ConfigError, match=r"pattern 'zzz' matches no Linear or convolution$"):
        chosen(blocks(), "zzz")


def test_a_model_without_a_layer_is_told_and_a_name_in_it_is_an_error() -> None:
    layers = find_layers(nn.Sequential(nn.ReLU()))
    assert choose_layers(layers, ("*",), ("*",), who="here") == (
        (),
        {"the model": "holds no Linear or convolution"},
    )
    with pytest.raises(ConfigError, match="pattern 'fc' matches no Linear or convolution"):
        choose_layers(layers, ("fc",), who="here")
