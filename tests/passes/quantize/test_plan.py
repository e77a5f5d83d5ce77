"""`plan` decides by the target's rules what is quantized, and the plan can be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeopt.errors import ConfigError, PreconditionError
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
from edgeopt.passes.quantize.plan import PlanConfig, PlanQuantization
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.plan import Own, Plan, Shared
from edgeopt.quant.spec import Role
from tests.small_models import (
    TENSORRT,
    X86,
    Block,
    SmallCNN,
    TiedHead,
    context,
    float_operators,
    normal,
    run,
    seeded,
)

CNN_EXAMPLE = normal(4, 3, 8, 8)
BLOCK_EXAMPLE = normal(2, 4, 16)


def planned(
    module: nn.Module,
    *args: Tensor,
    rules: str = X86,
    config: PlanConfig | None = None,
    **changes: Any,
) -> ModelState:
    return run(module, context(*args, rules=rules, **changes), "capture", PlanQuantization(config))


def plan_of(state: ModelState) -> Plan:
    assert state.plan is not None
    return state.plan


def short(plan: Plan) -> list[str]:
    """Return the plan's lines in few words: `address role [= address that it shares with]`."""
    names = {str(row.edge): row.address for row in plan}
    lines = []
    for row in plan:
        shared = f" = {names[str(row.source.edge)]}" if isinstance(row.source, Shared) else ""
        kind = "float" if row.spec is None else row.role.value
        lines.append(f"{row.address} {kind}{shared}")
    return lines


# --- whole plans ---------------------------------------------------------------------------------


def test_the_plan_of_a_small_network_for_onnxruntime() -> None:
    plan = plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE))
    assert short(plan) == [
        "x:input#0.out output",
        "stem:conv2d#0.in0 input = x:input#0.out",
        "stem:conv2d#0.in1 weight",
        "stem:conv2d#0.in2 bias",
        "relu:relu#0.out output",  # ReLU absorbed: the codes stand behind it
        "depthwise:conv2d#0.in0 input = relu:relu#0.out",
        "depthwise:conv2d#0.in1 weight",
        "relu:relu#1.out output",
        "expand:conv2d#0.in0 input = relu:relu#1.out",
        "expand:conv2d#0.in1 weight",
        "expand:conv2d#0.in2 bias",
        "expand:conv2d#0.out output",
        ":add#0.in0 input = relu:relu#0.out",
        ":add#0.in1 input = expand:conv2d#0.out",
        ":add#0.out output",
        "pool:max_pool2d#0.in0 input = :add#0.out",
        "pool:max_pool2d#0.out output = :add#0.out",  # moves codes
        "gap:adaptive_avg_pool2d#0.in0 input = pool:max_pool2d#0.out",
        "gap:adaptive_avg_pool2d#0.out output",
        ":flatten#0.in0 input = gap:adaptive_avg_pool2d#0.out",
        ":flatten#0.out output = gap:adaptive_avg_pool2d#0.out",
        "head:linear#0.in0 input = :flatten#0.out",
        "head:linear#0.in1 weight",
        "head:linear#0.in2 bias",
    ]


def test_the_plan_of_a_small_network_for_tensorrt() -> None:
    plan = plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE, rules=TENSORRT))
    assert short(plan) == [
        "x:input#0.out output",
        "stem:conv2d#0.in0 input = x:input#0.out",
        "stem:conv2d#0.in1 weight",
        "stem:conv2d#0.in2 bias",
        "relu:relu#0.out output",
        "depthwise:conv2d#0.in0 input = relu:relu#0.out",
        "depthwise:conv2d#0.in1 weight",
        "relu:relu#1.out output",
        "expand:conv2d#0.in0 input = relu:relu#1.out",
        "expand:conv2d#0.in1 weight",
        "expand:conv2d#0.in2 bias",
        # sum, pools: float16 in one kernel with what is around them
        ":flatten#0.out output",
        "head:linear#0.in0 input = :flatten#0.out",
        "head:linear#0.in1 weight",
        "head:linear#0.in2 bias",
    ]


@pytest.mark.parametrize("rules", [X86, TENSORRT])
def test_the_plan_of_a_transformer_block_quantizes_what_the_linears_read(rules: str) -> None:
    plan = plan_of(planned(seeded(Block), BLOCK_EXAMPLE, rules=rules))
    expected = []
    for linear, source in (
        ("attn.qkv", "norm1:layer_norm#0.out"),
        ("attn.proj", "attn:reshape#1.out"),
        ("fc1", "norm2:layer_norm#0.out"),
        ("fc2", "act:gelu#0.out"),
    ):
        expected += [
            f"{source} output",
            f"{linear}:linear#0.in0 input = {source}",
            f"{linear}:linear#0.in1 weight",
            f"{linear}:linear#0.in2 bias",
        ]
    assert short(plan) == expected


def test_a_plan_is_printed_with_spec_and_source() -> None:
    lines = plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE)).lines()
    assert lines[:4] == [
        "x:input#0.out  output  int8 affine per tensor",
        "stem:conv2d#0.in0  input  int8 affine per tensor, shared with n0.out",
        "stem:conv2d#0.in1  weight  int8 symmetric per channel (axis 0)",
        "stem:conv2d#0.in2  bias  int32 symmetric per channel (axis 0), "
        "derived from n1.in0, n1.in1",
    ]


def test_tensorrt_plans_are_symmetric_and_onnxruntimes_affine() -> None:
    for rules, symmetric in ((X86, False), (TENSORRT, True)):
        plan = plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE, rules=rules))
        outs = [row.spec for row in plan if row.role is Role.OUTPUT]
        assert outs
        assert {spec.symmetric for spec in outs if spec is not None} == {symmetric}


def test_only_the_producers_kernel_decides_whether_codes_are_all_there_is() -> None:
    plan = plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE))
    only = {row.address for row in plan if row.codes_only}
    # the input exists as floats, and so may be read as such; what kernels write does not
    assert "x:input#0.out" not in only
    assert {"relu:relu#0.out", "expand:conv2d#0.out", ":add#0.out", ":flatten#0.out"} <= only


def test_a_sparse_linear_writes_codes_for_tensorrt_and_a_dense_one_floats() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()))
    prune = PruneNM(PruneNMConfig(include=("0",), ignore_profile=True))
    x = normal(2, 8)
    state = run(module, context(x, rules=TENSORRT), prune, "capture", "plan")
    outs = [row.address for row in plan_of(state) if row.role is Role.OUTPUT]
    assert outs == ["input:input#0.out", "0:linear#0.out", "1:tanh#0.out"]


def test_the_graph_is_not_touched() -> None:
    ctx = context(CNN_EXAMPLE)
    state = run(seeded(SmallCNN), ctx, "capture", "plan")
    record = state.history[-1]
    assert record.drift_db == float("inf")
    assert set(record.changes) == {
        "stem:conv2d#0",
        "depthwise:conv2d#0",
        "expand:conv2d#0",
        "head:linear#0",
    }
    assert record.skipped == {}


# --- what stays float ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("globs", "kept"),
    [
        (("head",), {"head:linear#0"}),
        (("*:conv2d",), {"stem:conv2d#0", "depthwise:conv2d#0", "expand:conv2d#0"}),
        (("stem", "expand:.out"), {"stem:conv2d#0", "expand:conv2d#0"}),
    ],
)
def test_what_is_kept_float_is_a_line_with_the_reason(
    globs: tuple[str, ...], kept: set[str]
) -> None:
    state = planned(seeded(SmallCNN), CNN_EXAMPLE, keep_float=globs)
    reason = "kept float: the recipe or command line says so"
    assert float_operators(plan_of(state)) == dict.fromkeys(kept, reason)
    assert state.history[-1].skipped == dict.fromkeys(kept, reason)
    for row in plan_of(state):
        operator = row.address.rpartition(".")[0]
        assert row.spec is None or row.role is Role.OUTPUT or operator not in kept


def test_the_plans_own_option_keeps_float_too() -> None:
    config = PlanConfig(keep_float=(":add",))
    rows = short(plan_of(planned(seeded(SmallCNN), CNN_EXAMPLE, config=config)))
    assert not [row for row in rows if row.startswith(":add#0")]
    assert "expand:conv2d#0.in1 weight" in rows


@pytest.mark.parametrize("glob", ["body", "head:conv2d", "head:linear#1"])
def test_a_float_glob_that_matches_nothing_is_an_error(glob: str) -> None:
    with pytest.raises(ConfigError, match="matches no operator"):
        planned(seeded(SmallCNN), CNN_EXAMPLE, keep_float=("head", glob))


def test_a_model_with_nothing_to_quantize_is_an_error_with_a_reason() -> None:
    with pytest.raises(PreconditionError, match="no operator of the model can be quantized"):
        planned(nn.Tanh().eval(), normal(2, 4))
    with pytest.raises(PreconditionError, match=r"first: 0:linear#0: kept float"):
        planned(nn.Sequential(nn.Linear(4, 4)).eval(), normal(2, 4), keep_float=("*",))


TOKENS = torch.arange(6).reshape(2, 3)


def test_an_embedding_picks_rows_of_the_codes_of_the_head_that_it_is_tied_to() -> None:
    state = planned(seeded(TiedHead), TOKENS)
    rows = short(plan_of(state))
    assert rows[0] == "embedding:embedding#0.in0 weight = head:linear#0.in1"
    assert "head:linear#0.in1 weight" in rows
    assert float_operators(plan_of(state)) == {}
    changes = state.history[-1].changes
    assert changes["embedding:embedding#0"] == "rows of the codes of head:linear#0"


@pytest.mark.parametrize(
    ("rules", "keep_float"), [(TENSORRT, ()), (X86, ("embedding",))], ids=["rules", "kept float"]
)
def test_a_weight_that_a_float_embedding_reads_too_stays_float_with_the_reason(
    rules: str, keep_float: tuple[str, ...]
) -> None:
    plan = plan_of(planned(seeded(TiedHead), TOKENS, rules=rules, keep_float=keep_float))
    assert float_operators(plan) == {
        "head:linear#0": "its weight is also read by embedding, which stays float"
    }
    assert "mix:linear#0.in1 weight" in short(plan)


def test_a_table_that_no_integer_operator_reads_stays_float() -> None:
    plan = plan_of(planned(seeded(TiedHead), TOKENS, keep_float=("head",)))
    assert not [line for line in short(plan) if line.startswith("embedding:embedding#0.in0")]
    assert list(float_operators(plan)) == ["head:linear#0"]


def test_a_layer_of_which_one_call_stays_float_keeps_its_embedding_float() -> None:
    class TwoHeads(TiedHead):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            return self.head(self.mix(x)) + self.head(x)

    plan = plan_of(planned(seeded(TwoHeads), TOKENS, keep_float=("head:linear#1",)))
    assert set(float_operators(plan)) == {"head:linear#0", "head:linear#1"}
    assert not [line for line in short(plan) if line.startswith("embedding:embedding#0.in0")]


def test_a_product_with_a_weight_that_has_no_integer_kernel_is_named() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 1)).eval()
    plan = plan_of(planned(module, normal(2, 4, 3, 3)))
    assert float_operators(plan) == {"0:conv_transpose2d#0": "no integer kernel"}
    rows = short(plan)
    assert "0:conv_transpose2d#0.out output" in rows  # what the convolution behind it reads
    assert "1:conv2d#0.in1 weight" in rows


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return nn.functional.linear(y, self.second.weight.abs(), self.second.bias)


def test_a_weight_that_is_computed_stays_float_with_the_reason() -> None:
    plan = plan_of(planned(seeded(Computed), normal(2, 4)))
    assert float_operators(plan) == {":linear#0": "its weight is computed at run time"}


# --- sharing -------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer called twice, on values of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)) * 50)


def test_calls_of_one_module_share_the_parameters_of_input_and_weight() -> None:
    plan = plan_of(planned(seeded(Twice), normal(2, 4, 3, 3)))
    rows = {row.address: row for row in plan}
    assert isinstance(rows["x:input#0.out"].source, Own)
    assert rows[":mul#0.out"].source == Shared(rows["x:input#0.out"].edge)
    assert isinstance(rows["layer:conv2d#0.in1"].source, Own)
    assert rows["layer:conv2d#1.in1"].source == Shared(rows["layer:conv2d#0.in1"].edge)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], dim=1))


def test_a_concat_has_a_scale_of_its_own_for_onnxruntime() -> None:
    rows = short(plan_of(planned(seeded(Concat), normal(2, 4, 3, 3))))
    assert ":cat#0.in0 input = a:conv2d#0.out" in rows
    assert ":cat#0.in1 input = b:conv2d#0.out" in rows
    assert ":cat#0.out output" in rows


@pytest.mark.parametrize(
    ("activation", "codes_at"),
    [(nn.ReLU(), "relu:relu#0.out"), (nn.ReLU6(), ":add#0.out")],
    ids=["fused", "not fused"],
)
def test_codes_stand_before_an_activation_that_a_kernel_does_not_fuse(
    activation: nn.Module, codes_at: str
) -> None:
    """XNNPACK's sum takes in a ReLU, and no ReLU6; its convolution takes in both."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)
            self.b = nn.Conv2d(4, 4, 1)
            self.c = nn.Conv2d(4, 4, 1)
            self.relu = activation
            self.act = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.a(x))
            return self.c(self.relu(y + self.act(self.b(y))))

    rows = short(plan_of(planned(seeded(Residual), normal(2, 4, 3, 3), rules="xnnpack")))
    written = [row.removesuffix(" output") for row in rows if row.endswith(" output")]
    assert codes_at in written
    assert (":add#0.out" in written) == (codes_at == ":add#0.out")
    assert "a:conv2d#0.out" not in written  # its codes stand behind the ReLU6


def test_operators_of_two_tensors_stay_float_where_one_is_a_number() -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)
            self.b = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + 1.0)

    rows = short(plan_of(planned(seeded(Plus), normal(2, 4, 3, 3))))
    assert ":add#0.in0 input = a:conv2d#0.out" not in rows
    assert ":add#0.out output" in rows  # what the convolution behind it reads


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y + y)


def test_a_sum_of_a_value_with_itself_reads_its_codes_twice() -> None:
    rows = short(plan_of(planned(seeded(Doubled), normal(2, 4, 3, 3))))
    assert [row for row in rows if row.startswith(":add#0.in")] == [
        ":add#0.in0 input = a:conv2d#0.out",
        ":add#0.in1 input = a:conv2d#0.out",
    ]


# --- widths --------------------------------------------------------------------------------------


def test_narrower_weights_can_be_asked_for() -> None:
    state = planned(seeded(SmallCNN), CNN_EXAMPLE, config=PlanConfig(weight_bits=7))
    specs = [row.spec for row in plan_of(state) if row.role is Role.WEIGHT]
    assert {(spec.bits, spec.qmin, spec.qmax) for spec in specs if spec is not None} == {
        (7, -63, 63)
    }


@pytest.mark.parametrize("bits", [9, 1, -1])
def test_a_width_that_the_kernels_do_not_take_is_an_error(bits: int) -> None:
    with pytest.raises(ConfigError):
        planned(seeded(SmallCNN), CNN_EXAMPLE, config=PlanConfig(weight_bits=bits))
