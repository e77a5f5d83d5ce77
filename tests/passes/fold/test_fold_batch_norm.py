"""`fold_batch_norm` folds what it can prove, and says why it leaves the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.errors import ConfigError
from edgeopt.passes.fold.fold_batch_norm import FoldBatchNorm, FoldBatchNormConfig
from edgeopt.pipeline.state import ModelState, PassRecord
from tests.small_models import context, normal, run


def ready(module: nn.Module) -> nn.Module:
    """Give weights and running statistics values from a fixed seed, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if child.running_mean is not None:
                child.running_mean.normal_(generator=generator)
                child.running_var.uniform_(0.5, 2.0, generator=generator)
            if child.affine:
                nn.init.uniform_(child.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(child.bias, generator=generator)
    return module.eval()


def fold(module: nn.Module, *args: Tensor, skip: tuple[str, ...] = ()) -> ModelState:
    """Run the pass, fully verified: EQUIVALENT means at least 80 dB."""
    return run(ready(module), context(*args), FoldBatchNorm(FoldBatchNormConfig(skip)))


def record(state: ModelState) -> PassRecord:
    return state.history[-1]


def norms(module: nn.Module) -> list[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [name for name, child in module.named_modules() if isinstance(child, kinds)]


class Pair(nn.Module):
    """A layer and a batch norm, then whatever `between` and `after` do."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(x)))


# --- what folds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_folds_into_a_convolution_and_keeps_outputs(
    bias: bool, groups: int, dims: int, transposed: bool
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    norm = getattr(nn, f"BatchNorm{dims}d")
    model = Pair(kind(6, 9, 3, groups=groups, bias=bias), norm(9))
    x = normal(2, 6, *([5] * dims))
    want = ready(copy.deepcopy(model))(x)
    state = fold(model, x)
    assert record(state).changes == {"norm": "folded into layer"}
    assert record(state).skipped == {}
    after = state.carrier_module
    assert isinstance(after.norm, nn.Identity)
    assert after.layer.bias is not None
    # folded in float64, then at most 54 float32 products of values near 1
    torch.testing.assert_close(after(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_folds_into_a_linear(bias: bool) -> None:
    model = Pair(nn.Linear(6, 9, bias=bias), nn.BatchNorm1d(9))
    x = normal(4, 6)
    want = ready(copy.deepcopy(model))(x)
    state = fold(model, x)
    assert record(state).changes == {"norm": "folded into layer"}
    torch.testing.assert_close(state.carrier_module(x), want, rtol=1e-5, atol=1e-5)


def test_folds_a_norm_without_scale_and_shift() -> None:
    model = Pair(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    assert record(fold(model, normal(2, 3, 4, 4))).changes == {"norm": "folded into layer"}


def test_a_folded_parameter_keeps_its_type_and_its_gradient_flag() -> None:
    model = Pair(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).double()
    model.layer.weight.requires_grad_(False)
    layer = fold(model, normal(2, 3, 4, 4).double()).carrier_module.layer
    assert layer.weight.dtype == layer.bias.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_is_idempotent() -> None:
    model = Pair(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = normal(2, 3, 4, 4)
    once = fold(model, x)
    twice = run(once.carrier_module, context(x), "fold_batch_norm")
    assert record(twice).changes == {}
    assert record(twice).skipped == {}
    assert torch.equal(twice.carrier_module(x), once.carrier_module(x))


# --- batch norms that do more --------------------------------------------------------------------


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation inside, as timm's `BatchNormAct2d` is."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return self.act(self.drop(x))


class NormTwice(NormAct):
    """Does more than its children in order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class NormSquared(nn.BatchNorm2d):
    """Does more, and has no children."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_activation_inside_the_norm_stays_behind(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4)).to(dtype)
    x = normal(2, 3, 4, 4).to(dtype)
    want = ready(copy.deepcopy(model))(x)
    after = fold(model, x).carrier_module
    assert norms(after) == []
    assert [type(m).__name__ for m in after[1]] == ["SiLU"]
    torch.testing.assert_close(after(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [NormTwice, NormSquared])
def test_a_norm_that_does_more_than_its_children_is_left_alone(kind: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4))
    state = fold(model, normal(2, 3, 4, 4))
    assert record(state).changes == {}
    assert record(state).skipped == {"1": f"a {kind.__name__} does more than its children in order"}


# --- what is left alone, and why -----------------------------------------------------------------


class TwoReaders(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y) + y


class LayerTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.layer(x)))


class NormTwiceCalled(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.norm(x)))


class Between(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.layer(x)))


class Computed(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.layer.weight * 2))


class Unused(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TiedPair(Pair):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.other = nn.Conv2d(4, 4, 1)
        self.other.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.norm(self.layer(x)))


class Standardized(nn.Conv2d):
    """Computes the weight that it uses."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


CONV, NORM = lambda: nn.Conv2d(4, 4, 1), lambda: nn.BatchNorm2d(4)
REFUSED: dict[str, tuple[nn.Module, str]] = {
    "two readers": (TwoReaders(CONV(), NORM()), "layer has 2 readers"),
    "layer called twice": (LayerTwice(CONV(), NORM()), "layer is called 2 times"),
    "nothing to fold into": (Between(CONV(), NORM()), "no convolution or linear feeds it"),
    "computed weight": (
        Computed(CONV(), NORM()),
        "the weight before it is computed at run time",
    ),
    "computed in a subclass": (
        Pair(Standardized(4, 4, 1), NORM()),
        "the weight before it is computed at run time",
    ),
    # the graph reads both under one name
    "tied weight": (TiedPair(CONV(), NORM()), "other.weight is tied to layer.weight"),
    "not called": (Unused(CONV(), NORM()), "is not called, or normalizes by the batch"),
    "no running statistics": (
        Pair(CONV(), nn.BatchNorm2d(4, track_running_stats=False)),
        "has no running statistics",
    ),
    "parametrized": (
        Pair(nn.utils.parametrizations.weight_norm(CONV()), NORM()),
        "the weight before it is computed at run time",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_skips_with_the_reason(case: str) -> None:
    model, reason = REFUSED[case]
    x = normal(2, 4, 4, 4)
    want = ready(copy.deepcopy(model))(x)
    state = fold(model, x)
    assert record(state).changes == {}
    assert record(state).skipped == {"norm": reason}
    assert torch.equal(state.carrier_module(x), want)


def test_skips_a_norm_that_is_called_twice() -> None:
    state = fold(NormTwiceCalled(CONV(), NORM()), normal(2, 4, 4, 4))
    assert record(state).changes == {}
    # its first call has no convolution before it, its second has; one of them is enough
    assert record(state).skipped == {"norm": "is called 2 times"}


def test_skips_a_norm_over_another_axis_than_the_linears_features() -> None:
    # [2, 8 tokens, 8 features]: batch norm works on the tokens, and the counts agree by chance
    state = fold(Pair(nn.Linear(6, 8), nn.BatchNorm1d(8)), normal(2, 8, 6))
    assert record(state).changes == {}
    assert record(state).skipped == {"norm": "works along axis 1, not along the features of layer"}


class Branching(Pair):
    """Cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.norm(self.layer(x))


def test_every_site_is_skipped_with_the_reason_where_the_capture_fails() -> None:
    model = nn.Sequential(Branching(CONV(), NORM()), NORM())
    state = fold(model, normal(2, 4, 4, 4))
    assert record(state).changes == {}
    assert set(record(state).skipped) == {"0.norm", "1"}
    for reason in record(state).skipped.values():
        assert reason.startswith("the model cannot be captured to see what feeds it: ")
        assert len(reason.splitlines()) == 1


# --- the skip option -----------------------------------------------------------------------------


def two_pairs() -> nn.Module:
    return nn.ModuleDict(
        {"a": nn.Sequential(CONV(), NORM()), "b": nn.Sequential(CONV(), NORM())}
    ).eval()


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = two_pairs()

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["b"](self.parts["a"](x))


@pytest.mark.parametrize("glob", ["parts.a.1", "parts.a", "*.a.*", "parts.?.1"])
def test_a_skip_glob_leaves_its_norms_alone(glob: str) -> None:
    state = fold(Both(), normal(2, 4, 4, 4), skip=(glob,))
    left = ["parts.a.1", "parts.b.1"] if "?" in glob else ["parts.a.1"]
    assert norms(state.carrier_module) == left
    assert record(state).skipped == dict.fromkeys(left, "named in skip")
    assert set(record(state).changes) == {"parts.a.1", "parts.b.1"} - set(left)


def test_a_skip_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"pattern 'parts\.c' matches no batch norm; the nearest is 'parts\.b\.1'"
    ):
        fold(Both(), normal(2, 4, 4, 4), skip=("parts.a", "parts.c"))
