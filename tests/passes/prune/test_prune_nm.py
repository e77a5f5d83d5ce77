"""`prune_nm` keeps the largest weights of each group, and says why it leaves a layer dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.devices.profile import Sparsity
from edgeopt.errors import ConfigError
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig, nm_mask
from edgeopt.pipeline.state import ModelState, PassRecord
from tests.small_models import context, normal, run, seeded

KERNELS = Sparsity(
    n=2, m=4, in_multiple=16, out_multiple=8, min_in=32, min_out=16, source="made up"
)


def prune(
    module: nn.Module,
    *args: Tensor,
    n: int = 2,
    m: int = 4,
    include: tuple[str, ...] = ("*",),
    exclude: tuple[str, ...] = (),
    sparsity: Sparsity | None = None,
) -> ModelState:
    """Run the pass, fully verified; without `sparsity` the profile is ignored."""
    config = PruneNMConfig(n, m, include, exclude, ignore_profile=sparsity is None)
    return run(module.eval(), context(*args, sparsity=sparsity), PruneNM(config))


def record(state: ModelState) -> PassRecord:
    return state.history[-1]


def contracts(state: ModelState) -> set[NMSparse]:
    return {c for c in state.contracts if isinstance(c, NMSparse)}


def groups(weight: Tensor, m: int, axis: int) -> Tensor:
    """Return the weight as [groups, m], a last group filled up with zeros."""
    moved = weight.movedim(axis, -1)
    return F.pad(moved, (0, -moved.shape[-1] % m)).reshape(-1, m)


# --- the mask ------------------------------------------------------------------------------------


def test_a_2_4_mask_keeps_the_two_largest_of_four() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]])
    assert nm_mask(weight, 2, 4, 1).int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]


def test_a_1_4_mask_keeps_the_largest_of_four() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0]])
    assert nm_mask(weight, 1, 4, 1).int().tolist() == [[0, 1, 0, 0]]


def test_a_tie_keeps_the_lower_index() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    assert nm_mask(weight, 2, 4, 1).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_last_group_that_is_shorter_keeps_at_most_n() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
    assert nm_mask(weight, 2, 4, 1).int().tolist() == [[0, 0, 1, 1, 0, 1, 1]]
    assert nm_mask(weight[:, :5], 2, 4, 1).int().tolist() == [[0, 0, 1, 1, 1]]


@settings(max_examples=100, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=9),
        elements=st.floats(-8, 8, width=16),  # few values, so that ties occur
    ),
    pattern=st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (2, 8)]),
    data=st.data(),
)
def test_a_mask_keeps_at_most_n_and_the_most_magnitude_possible(
    weight: np.ndarray, pattern: tuple[int, int], data: st.DataObject
) -> None:
    n, m = pattern
    axis = data.draw(st.integers(0, weight.ndim - 1))
    values = torch.from_numpy(weight)
    mask = nm_mask(values, n, m, axis)
    assert mask.shape == values.shape
    kept = groups(mask, m, axis)
    assert int(kept.sum(1).max()) <= n
    magnitude = groups(values.abs().double(), m, axis)
    best = magnitude.sort(dim=1, descending=True).values[:, :n].sum(1)
    # the same float64 numbers, added in another order: at most 8 terms under 8
    torch.testing.assert_close((magnitude * kept).sum(1), best, rtol=0, atol=1e-12)


# --- kinds of layers -----------------------------------------------------------------------------


def test_a_linear_is_pruned_along_its_inputs() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    torch.manual_seed(0)
    nn.init.normal_(model[0].weight)
    dense = model[0].weight.detach().clone()
    state = prune(model, normal(2, 16))
    weight = state.carrier_module[0].weight.detach()
    assert torch.equal(weight, dense * nm_mask(dense, 2, 4, 1))
    assert int((weight != 0).sum()) == 64
    kept = 100 * float((weight.double() ** 2).sum() / (dense.double() ** 2).sum())
    assert record(state).changes == {
        "0": f"2:4 along axis 1, {kept:.1f} % of the squared weight kept"
    }
    assert contracts(state) == {NMSparse("0.weight", 2, 4, 1)}
    assert record(state).drift_db is not None
    assert torch.equal(model[0].weight, dense)  # the caller's


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_is_pruned_along_input_channels_at_each_kernel_position(dims: int) -> None:
    kind = getattr(nn, f"Conv{dims}d")
    state = prune(nn.Sequential(kind(8, 4, 3)), normal(2, 8, *([5] * dims)))
    weight = state.carrier_module[0].weight.detach()
    assert contracts(state) == {NMSparse("0.weight", 2, 4, 1)}
    assert int((groups(weight, 4, 1) != 0).sum(1).max()) == 2
    # not along the kernel: all nine positions of some channel are left
    assert int((weight != 0).flatten(2).sum(2).max()) > 2


class Conv1D(nn.Module):
    """Transformers' linear with the weight stored [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)


def test_a_linear_that_is_stored_transposed_is_pruned_along_its_first_axis() -> None:
    state = prune(nn.Sequential(Conv1D(12, 8)), normal(2, 8))
    weight = state.carrier_module[0].weight.detach()
    assert contracts(state) == {NMSparse("0.weight", 2, 4, 0)}
    assert (groups(weight, 4, 0) != 0).sum(1).tolist() == [2] * 24


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


def test_the_packed_projection_of_multihead_attention_is_pruned_along_its_columns() -> None:
    state = prune(seeded(SelfAttention), normal(2, 3, 8))
    module = state.carrier_module.attn
    assert contracts(state) == {
        NMSparse("attn.in_proj_weight", 2, 4, 1),
        NMSparse("attn.out_proj.weight", 2, 4, 1),
    }
    assert (groups(module.in_proj_weight, 4, 1) != 0).sum(1).tolist() == [2] * 48
    assert set(record(state).changes) == {"attn", "attn.out_proj"}


def test_a_depthwise_convolution_is_skipped() -> None:
    state = prune(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), normal(2, 8, 4, 4))
    assert record(state).changes == {}
    assert record(state).skipped == {"0": "1 input channels, fewer than a group of 4"}


def test_a_transposed_convolution_is_skipped() -> None:
    state = prune(nn.Sequential(nn.ConvTranspose2d(8, 8, 3)), normal(2, 8, 4, 4))
    assert record(state).skipped == {"0": "a transposed convolution has no sparse kernel"}


def test_a_parametrized_layer_is_skipped() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    state = prune(nn.Sequential(layer), normal(2, 8))
    assert record(state).changes == {}
    assert record(state).skipped == {"0": "is parametrized"}


def test_a_weight_that_is_no_parameter_is_skipped() -> None:
    layer = nn.Linear(8, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    state = prune(nn.Sequential(layer), normal(2, 8))
    assert record(state).changes == {}
    assert record(state).skipped == {"0": "its weight is no parameter"}


def test_the_model_itself_may_be_pruned() -> None:
    state = prune(nn.Linear(8, 8), normal(2, 8))
    assert set(record(state).changes) == {"the model"}
    assert contracts(state) == {NMSparse("weight", 2, 4, 1)}


# --- tied and shared -----------------------------------------------------------------------------


class Language(nn.Module):
    """Two layers with one weight, which is an embedding's too where `tied`."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 8)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        if tied:
            self.first.weight = self.second.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(self.embedding(tokens))))


TOKENS = torch.arange(6).reshape(2, 3)


def test_two_linears_with_one_weight_are_pruned_as_one() -> None:
    module = prune(seeded(Language, False), TOKENS).carrier_module
    assert module.first.weight.data_ptr() == module.second.weight.data_ptr()
    assert (groups(module.first.weight, 4, 1) != 0).sum(1).tolist() == [2] * 16


@pytest.mark.parametrize("include", [("*",), ("second",)], ids=["both", "one"])
def test_a_weight_that_is_also_an_embedding_stays_dense(include: tuple[str, ...]) -> None:
    state = prune(seeded(Language, True), TOKENS, include=include)
    assert record(state).changes == {}
    assert record(state).skipped == {
        name: f"{name}.weight is tied to embedding.weight of a Embedding"
        for name in (("first", "second") if include == ("*",) else include)
    }
    assert int((state.carrier_module.embedding.weight == 0).sum()) == 0


@pytest.mark.parametrize(
    ("include", "exclude"), [(("*",), ("second",)), (("first",), ())], ids=["excluded", "left out"]
)
def test_a_weight_that_is_to_stay_dense_elsewhere_stays_dense(
    include: tuple[str, ...], exclude: tuple[str, ...]
) -> None:
    state = prune(seeded(Language, False), TOKENS, include=include, exclude=exclude)
    assert record(state).changes == {}
    reason = "its weight is also that of second, which is to stay dense"
    assert record(state).skipped["first"] == reason
    assert int((state.carrier_module.first.weight == 0).sum()) == 0


class Pair(nn.Module):
    """Two layers with one weight."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), second
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_a_weight_that_another_layer_stores_turned_stays_dense() -> None:
    state = prune(Pair(Conv1D(8, 8)), normal(2, 8))
    assert record(state).skipped == {
        "first": "first.weight is tied to second.weight of a Conv1D",
        "second": "second.weight is tied to first.weight of a Linear",
    }


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_weight_of_a_layer_that_cannot_be_pruned_stays_dense() -> None:
    second = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(second, "bias", Doubled())
    state = prune(Pair(second), normal(2, 8))
    assert record(state).skipped == {
        "first": "its weight is also that of second, which is to stay dense",
        "second": "is parametrized",
    }


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_module_that_is_called_twice_is_pruned_once() -> None:
    state = prune(seeded(Shared), normal(2, 8))
    assert set(record(state).changes) == {"layer"}
    assert contracts(state) == {NMSparse("layer.weight", 2, 4, 1)}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.relu(self.one(x)))


def test_a_module_under_two_names_is_pruned_once_and_goes_by_both() -> None:
    state = prune(seeded(Named), normal(2, 8), include=("other",))
    assert set(record(state).changes) == {"one"}
    assert contracts(state) == {NMSparse("one.weight", 2, 4, 1)}
    left = prune(seeded(Named), normal(2, 8), exclude=("other",))
    assert record(left).skipped == {"one": "named in exclude"}


# --- what the device can use ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (40, 16, "40 input channels, no multiple of 16"),
        (32, 20, "20 output channels, no multiple of 8"),
        (16, 16, "16 input channels, below 32 sparse kernels do not pay"),
        (32, 8, "8 output channels, below 16 sparse kernels do not pay"),
        (32, 16, ""),
    ],
)
def test_a_layer_that_the_sparse_kernels_cannot_use_stays_dense(
    inputs: int, outputs: int, reason: str
) -> None:
    state = prune(nn.Sequential(nn.Linear(inputs, outputs)), normal(2, inputs), sparsity=KERNELS)
    assert record(state).skipped == ({"0": reason} if reason else {})
    assert bool(record(state).changes) == (not reason)


def test_another_pattern_than_the_kernels_run_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(32, 16))
    state = prune(model, normal(2, 32), n=1, sparsity=KERNELS)
    assert record(state).skipped == {"0": "the kernels of made-up run 2:4"}


def test_a_device_without_sparse_kernels_keeps_everything_dense() -> None:
    model = nn.Sequential(nn.Linear(32, 16)).eval()
    state = run(model, context(normal(2, 32)), "prune_nm")
    assert record(state).changes == {}
    assert record(state).skipped == {"0": "profile made-up has no sparse kernels"}


# --- options -------------------------------------------------------------------------------------


def test_globs_choose_and_leave_out() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model.forward = lambda x: model["a"](x) + model["b"](x) + model["c"](x)  # type: ignore[method-assign]
    state = prune(model, normal(2, 8), include=("a", "b"), exclude=("b",))
    assert set(record(state).changes) == {"a"}
    assert record(state).skipped == {"b": "named in exclude"}


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error(option: str) -> None:
    options = {"include": ("*",), option: ("attn.*",)}
    with pytest.raises(
        ConfigError, match=r"prune_nm: pattern 'attn\.\*' matches no Linear or convolution"
    ):
        prune(nn.Sequential(nn.Linear(8, 8)), normal(2, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4)])
def test_a_pattern_that_prunes_nothing_or_all_is_an_error(n: int, m: int) -> None:
    with pytest.raises(ConfigError, match=f"needs 0 < n < m, not {n}:{m}"):
        PruneNMConfig(n, m)


def test_is_idempotent() -> None:
    x = normal(2, 8)
    once = prune(nn.Sequential(nn.Linear(8, 8)), x)
    twice = prune(once.carrier_module, x)
    assert torch.equal(twice.carrier_module[0].weight, once.carrier_module[0].weight)
    assert record(twice).drift_db == float("inf")
