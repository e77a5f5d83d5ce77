"""The pipeline: order, copies, records, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgeopt.errors import ConfigError, PassError, PipelineError, PreconditionError
from edgeopt.ir.digests import digest
from edgeopt.passes import by_name, shipped
from edgeopt.passes.prune.prune_nm import PruneNM, PruneNMConfig
from edgeopt.passes.quantize.plan import PlanConfig
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from tests.small_models import QUANTIZE, SmallCNN, context, normal, passes, run, seeded

X = normal(4, 3, 8, 8)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the throw-away pass.

    Attributes:
        number: Part of what seeds its draws.
    """

    number: int = 0


def module_pass(
    do: Callable[[ModelState, PassContext], PassResult], called: str = "throw_away"
) -> type[Pass[Options]]:
    class ThrowAway(Pass[Options]):
        name: ClassVar[str] = called
        config_type = Options
        stage = Stage.MODULE
        effect = Effect.APPROXIMATE

        def run(self, state: ModelState, ctx: PassContext) -> PassResult:
            return do(state, ctx)

    return ThrowAway


def nothing(state: ModelState, _ctx: PassContext) -> PassResult:
    return PassResult(state, {})


# --- order ---------------------------------------------------------------------------------------

BAD_ORDERS = {
    "a graph pass before the capture": (
        ("plan",),
        "plan runs at GRAPH, but stands where the model is at MODULE; put capture before it",
    ),
    "a module pass after the capture": (
        ("capture", "prune_nm"),
        "prune_nm runs at MODULE, but stands where the model is at GRAPH; it changes modules, so "
        "put it before capture",
    ),
    "two captures": (
        ("capture", "capture"),
        "capture runs at MODULE, but stands where the model is at GRAPH; it changes modules, so "
        "put it before capture",
    ),
    "quantize before the plan": (
        ("capture", "quantize"),
        "quantize needs a PLANNED graph, but the graph is FLOAT there",
    ),
    "quantize without calibration": (
        ("capture", "plan", "quantize"),
        "quantize must come after calibrate",
    ),
    "two plans": (
        ("capture", "plan", "plan"),
        "plan needs a FLOAT graph, but the graph is PLANNED there",
    ),
    "a legalization before quantize": (
        ("capture", "plan", "integer_bias"),
        "integer_bias needs a QUANTIZED graph, but the graph is PLANNED there",
    ),
}


@pytest.mark.parametrize("case", BAD_ORDERS)
def test_an_impossible_order_fails_before_there_is_a_model(case: str) -> None:
    names, message = BAD_ORDERS[case]
    with pytest.raises(PipelineError) as caught:
        Pipeline(passes(*names))
    assert str(caught.value) == message


def test_what_ran_before_counts_for_a_branch() -> None:
    rest = passes("quantize")
    done = ("capture", "plan", "calibrate")
    Pipeline(rest, start=Stage.GRAPH, start_phase=Phase.PLANNED, already=done)
    with pytest.raises(PipelineError, match="quantize must come after calibrate"):
        Pipeline(rest, start=Stage.GRAPH, start_phase=Phase.PLANNED, already=done[:2])


def test_a_state_of_another_stage_is_refused() -> None:
    captured = run(seeded(SmallCNN), context(X), "capture")
    with pytest.raises(PipelineError, match="starts at MODULE, the state is at GRAPH"):
        Pipeline(passes("capture")).run(captured, context(X))


def test_missing_calibration_data_is_told_before_any_pass_runs() -> None:
    ran: list[str] = []

    def note(state: ModelState, _ctx: PassContext) -> PassResult:
        ran.append("first")
        return PassResult(state, {})

    first = module_pass(note)()
    with pytest.raises(PreconditionError, match=r"^calibrate: needs calibration data; pass --cal"):
        run(seeded(SmallCNN), context(X, calibration=None), first, *QUANTIZE)
    assert ran == []


# --- the user's module ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("fold_batch_norm", "capture"),
        (PruneNM(PruneNMConfig(ignore_profile=True)), *QUANTIZE, "unsigned_activations"),
    ],
    ids=["float", "sparse int8"],
)
def test_the_users_module_is_unchanged(names: tuple[Any, ...]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    module.eval()
    before, text = digest(module), repr(module)
    want = module(X)
    state = run(module, context(X, module=module), *names)
    assert [r for r in state.history if r.changes]
    assert digest(module) == before
    assert repr(module) == text
    assert torch.equal(module(X), want)
    assert all(p.requires_grad for p in module.parameters())


def test_in_place_edits_the_users_module() -> None:
    module = seeded(SmallCNN)
    prune = PruneNM(PruneNMConfig(ignore_profile=True))
    state = Pipeline((prune,)).run(ModelState(module=module), context(X), in_place=True)
    assert state.carrier_module is module
    assert int((module.expand.weight == 0).sum()) == 32


# --- draws ---------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_pass_options_and_site_and_on_nothing_else() -> None:
    drawn: dict[str, list[float]] = {}

    def drawing(name: str, number: int = 0) -> Pass[Options]:
        def draw(state: ModelState, ctx: PassContext) -> PassResult:
            drawn[name] = [
                float(torch.rand(1, generator=ctx.rng(site))) for site in ("stem", "head", "stem")
            ]
            return PassResult(state, {})

        return module_pass(draw, name)(Options(number))

    def draws(*made: Pass[Options], seed: int = 0) -> list[float]:
        run(seeded(SmallCNN), context(X, seed=seed), *made)
        return drawn["b"]

    alone = draws(drawing("b"))
    assert alone[0] == alone[2] != alone[1]
    # inserting a pass, that draws too, moves nothing
    assert draws(drawing("a"), drawing("b")) == alone
    assert draws(drawing("a"), drawing("b"), drawing("c")) == alone
    assert drawn["a"] != alone
    assert draws(drawing("b", 1)) != alone
    assert draws(drawing("b"), seed=1) != alone


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    run(seeded_without_touching(), context(X), *QUANTIZE)
    assert torch.equal(torch.rand(1), want)


def seeded_without_touching() -> nn.Module:
    with torch.random.fork_rng():
        return seeded(SmallCNN)


# --- records -------------------------------------------------------------------------------------


def test_each_pass_leaves_a_record() -> None:
    state = run(seeded(SmallCNN), context(X), *QUANTIZE)
    assert [r.name for r in state.history] == list(QUANTIZE)
    plan, quantize = state.history[1], state.history[3]
    assert plan.config == {"weight_bits": 0, "activation_bits": 0, "keep_float": []}
    assert plan.drift_db == float("inf")
    assert quantize.drift_db is not None
    assert quantize.drift_db < 100
    assert quantize.seconds > 0


def test_progress_names_each_pass() -> None:
    told: list[tuple[str, int, int | None]] = []
    ctx = context(X, progress=lambda what, done, total: told.append((what, done, total)))
    run(seeded(SmallCNN), ctx, "capture", "plan", "calibrate")
    assert told == [("capture", 0, 3), ("plan", 1, 3), ("calibrate", 2, 3), ("calibrate", 1, None)]


# --- errors --------------------------------------------------------------------------------------


def test_a_foreign_exception_is_wrapped_once_with_pass_and_predecessors() -> None:
    def fail(_state: ModelState, _ctx: PassContext) -> PassResult:
        raise ValueError("first line\nsecond line")

    with pytest.raises(PassError) as caught:
        run(seeded(SmallCNN), context(X), module_pass(nothing, "one")(), module_pass(fail)())
    assert str(caught.value) == ("throw_away: ValueError: first line (passes that ran before: one)")
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_a_pass_keeps_its_type_and_says_what_ran_before() -> None:
    def fail(_state: ModelState, _ctx: PassContext) -> PassResult:
        raise PreconditionError("throw_away: as it is")

    with pytest.raises(PreconditionError) as caught:
        run(seeded(SmallCNN), context(X), module_pass(nothing, "one")(), module_pass(fail)())
    assert str(caught.value) == "throw_away: as it is (passes that ran before: one)"


def test_an_error_about_options_passes_through() -> None:
    def fail(_state: ModelState, _ctx: PassContext) -> PassResult:
        raise ConfigError("throw_away: as it is")

    with pytest.raises(ConfigError, match=r"^throw_away: as it is$"):
        run(seeded(SmallCNN), context(X), module_pass(fail)())


def test_a_model_that_a_pass_broke_is_reported_under_its_name() -> None:
    def break_it(state: ModelState, _ctx: PassContext) -> PassResult:
        state.carrier_module.head = nn.Linear(3, 3).eval()
        return PassResult(state, {"head": "broken"})

    with pytest.raises(PassError) as caught:
        run(seeded(SmallCNN), context(X), module_pass(break_it)())
    message = str(caught.value)
    assert message.startswith("throw_away: the model does not run on the example after it: ")
    assert len(message.splitlines()) == 1


def test_an_interrupt_is_not_caught() -> None:
    def interrupt(_state: ModelState, _ctx: PassContext) -> PassResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(seeded(SmallCNN), context(X), module_pass(interrupt)())


# --- pass classes --------------------------------------------------------------------------------


def test_options_of_another_pass_are_refused() -> None:
    with pytest.raises(ConfigError, match="options are a CaptureConfig, not PlanConfig"):
        by_name("capture")(PlanConfig())


def test_an_unknown_pass_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"pass 'prune_mn' is not known \(did you mean 'prune_nm'"
    ):
        by_name("prune_mn")


@pytest.mark.parametrize("kind", shipped(), ids=lambda kind: kind.name)
def test_every_pass_is_named_after_its_file_and_documents_itself(kind: type[Pass[Any]]) -> None:
    assert kind.__module__.rpartition(".")[2] == kind.name
    assert kind.__doc__
    assert kind.config_type.__doc__
    assert dataclasses.fields(kind.config_type) is not None
    hashable = kind.config_type()
    assert hash(hashable) == hash(kind.config_type())  # frozen
    assert kind().options() == {
        f.name: (list(v) if isinstance(v := getattr(hashable, f.name), tuple) else v)
        for f in dataclasses.fields(kind.config_type)
    }


def test_a_model_with_keyword_inputs_goes_through() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
            return {"y": self.layer(x) * mask}

    x = normal(2, 4)
    state = run(seeded(Masked), context(x, kwargs={"mask": x > 0}), *QUANTIZE)
    assert state.phase is Phase.QUANTIZED
