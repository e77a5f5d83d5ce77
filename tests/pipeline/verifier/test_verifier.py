"""Each invariant of the verifier has a pass that breaks it, and the error names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.errors import ConfigError, InvariantError
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE
from edgeopt.ir.edges import EdgeId
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import Effect, ModelState
from edgeopt.pipeline.verifier.check import invariants
from edgeopt.quant.plan import Plan
from tests.small_models import QUANTIZE, SmallCNN, context, normal, run, seeded

Edit = Callable[[ModelState, PassContext], PassResult]


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The throw-away passes have no options."""


def breaker(edit: Edit, at: ModelState, kind: Effect) -> Pass[NoOptions]:
    """Return a pass of the state's stage and phase that does what `edit` does."""

    class Breaker(Pass[NoOptions]):
        name: ClassVar[str] = "breaker"
        config_type = NoOptions
        stage = at.stage
        effect = kind
        from_phase = at.phase
        to_phase = at.phase

        def run(self, state: ModelState, ctx: PassContext) -> PassResult:
            return edit(state, ctx)

    return Breaker()


def step(
    edit: Edit,
    state: ModelState,
    ctx: PassContext,
    *,
    effect: Effect = Effect.APPROXIMATE,
    verify: str = "full",
) -> ModelState:
    """Run one throw-away pass."""
    pipeline = Pipeline((breaker(edit, state, effect),), start=state.stage, start_phase=state.phase)
    return pipeline.run(state, ctx, verify=verify)


class Tied(nn.Module):
    """Two linears with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


EXAMPLE = normal(4, 3, 8, 8)


@pytest.fixture(scope="module")
def states() -> dict[str, tuple[ModelState, PassContext]]:
    """Return a state of each kind; passes never change the one they get."""
    cnn, tied = seeded(SmallCNN), seeded(Tied)
    ctx = context(EXAMPLE)
    return {
        "module": (ModelState(module=cnn), ctx),
        "tied": (ModelState(module=tied), context(normal(2, 4))),
        "graph": (run(cnn, ctx, "capture"), ctx),
        "quantized": (run(cnn, ctx, *QUANTIZE), ctx),
    }


# --- edits that break exactly one invariant ------------------------------------------------------


def changed(state: ModelState, site: str = "stem") -> PassResult:
    return PassResult(state, {site: "edited"})


def module_edit(do: Callable[[nn.Module], object]) -> Edit:
    def edit(state: ModelState, _ctx: PassContext) -> PassResult:
        with torch.no_grad():
            do(state.carrier_module)
        return changed(state)

    return edit


def graph_edit(
    before: Callable[[ProgramEditor], object] = lambda _: None,
    after: Callable[[torch.export.ExportedProgram], object] = lambda _: None,
) -> Edit:
    """Edit a copy of the program, and then the finished program itself."""

    def edit(state: ModelState, _ctx: PassContext) -> PassResult:
        editor = ProgramEditor(state.carrier_programs["forward"])
        before(editor)
        exported = editor.finish()
        after(exported)
        return changed(state.with_programs({"forward": exported}))

    return edit


def node_of(graph: torch.fx.Graph, address: str) -> torch.fx.Node:
    return next(n for n, site in edges.sites(graph) if site.address == address)


def unreported(state: ModelState, _ctx: PassContext) -> PassResult:
    state.carrier_module.stem.weight.data.mul_(1.5)
    return PassResult(state, {})


def unknown_site(state: ModelState, _ctx: PassContext) -> PassResult:
    state.carrier_module.stem.weight.data.mul_(1.5)
    return changed(state, "stam")


def false_contract(state: ModelState, _ctx: PassContext) -> PassResult:
    # 8 dense input channels: both groups hold 4 non-zeros
    dense = NMSparse("expand.weight", 2, 4, 1)
    return changed(dataclasses.replace(state, contracts=(dense,)))


def trained_reference(state: ModelState, ctx: PassContext) -> PassResult:
    assert ctx.reference is not None
    ctx.reference.module.stem.weight.data.mul_(1.5)
    return PassResult(state, {})


def untie(module: nn.Module) -> None:
    module.second.weight = nn.Parameter(module.second.weight.clone())


def static_shapes(state: ModelState, ctx: PassContext) -> PassResult:
    exported = program.retrace(state.carrier_programs["forward"], ctx.example_args, {})
    return changed(state.with_programs({"forward": exported}))


def misorder(exported: torch.export.ExportedProgram) -> None:
    first, second = node_of(exported.graph, "stem:conv2d#0"), node_of(exported.graph, "relu:relu#0")
    second.append(first)


def wrong_shape(exported: torch.export.ExportedProgram) -> None:
    exported.state_dict["stem.bias"] = nn.Parameter(torch.zeros(3), requires_grad=False)


def stale_value(exported: torch.export.ExportedProgram) -> None:
    # the classifier's result: nobody reads its recorded value
    node = node_of(exported.graph, "head:linear#0")
    node.meta["val"] = node.meta["val"].to(torch.float64)


def dead_node(exported: torch.export.ExportedProgram) -> None:
    node = node_of(exported.graph, "relu:relu#0")
    with exported.graph.inserting_after(node):
        dead = exported.graph.call_function(torch.ops.aten.neg.default, (node,))
    dead.meta["val"] = node.meta["val"]
    edges.derive(dead, node, "dead")


def write_in_place(exported: torch.export.ExportedProgram) -> None:
    node_of(exported.graph, "relu:relu#0").target = torch.ops.aten.relu_.default


def forget_site(exported: torch.export.ExportedProgram) -> None:
    node_of(exported.graph, "relu:relu#0").meta["custom"] = {}


def negative_scale(editor: ProgramEditor) -> None:
    editor.table["head.weight_scale"] = -editor.table["head.weight_scale"]


def part_shared(editor: ProgramEditor) -> None:
    node = node_of(editor.graph, ":add/dq.in0#0")
    assert node.target is DEQUANTIZE
    scale = editor.tensor(node.args[1])
    assert scale is not None
    node.update_arg(1, editor.add_buffer("own_scale", 2 * scale))


def shift_bias(editor: ProgramEditor) -> None:
    table = editor.table
    grid = table["head.weight_scale"] * editor.tensor(
        node_of(editor.graph, "head:linear/dq.in0#0").args[1]
    )
    editor.replace("head.bias", table["head.bias"] + 0.4 * grid)


def plan_edit(change: Callable[[Any], Any]) -> Edit:
    """Change the first weight line of the plan."""

    def edit(state: ModelState, _ctx: PassContext) -> PassResult:
        plan = state.plan
        assert plan is not None
        rows = list(plan.edges["forward"])
        at = next(i for i, row in enumerate(rows) if row.role.value == "weight")
        rows[at] = change(rows[at])
        other = Plan(plan.rules, plan.target, {"forward": tuple(rows)})
        return changed(dataclasses.replace(state, plan=other))

    return edit


def sixteen_bits(row: Any) -> Any:
    return dataclasses.replace(row, spec=dataclasses.replace(row.spec, bits=16))


def elsewhere(row: Any) -> Any:
    return dataclasses.replace(row, edge=EdgeId("n99", "in1"))


BREAKERS: dict[str, tuple[str, Effect, Edit]] = {
    "finite": (
        "module",
        Effect.APPROXIMATE,
        module_edit(lambda m: m.stem.weight[0, 0, 0, 0].fill_(float("nan"))),
    ),
    "honest-changes": ("module", Effect.APPROXIMATE, unreported),
    "sites-exist": ("module", Effect.APPROXIMATE, unknown_site),
    "contracts": ("module", Effect.APPROXIMATE, false_contract),
    "tied": ("tied", Effect.APPROXIMATE, lambda s, c: module_edit_at(s, untie)),
    "reference-intact": ("module", Effect.APPROXIMATE, trained_reference),
    "io-signature": (
        "module",
        Effect.EQUIVALENT,
        module_edit(lambda m: setattr(m, "head", nn.Linear(8, 6).eval())),
    ),
    "equivalence": (
        "module",
        Effect.EQUIVALENT,
        module_edit(lambda m: m.head.weight.mul_(1.01)),
    ),
    "eval-mode": ("module", Effect.APPROXIMATE, module_edit(lambda m: m.relu.train())),
    "no-residue": (
        "module",
        Effect.APPROXIMATE,
        module_edit(lambda m: m.stem.register_forward_hook(lambda *_: None)),
    ),
    "well-formed": ("graph", Effect.APPROXIMATE, graph_edit(after=misorder)),
    "shapes": ("graph", Effect.APPROXIMATE, graph_edit(after=wrong_shape)),
    "fresh-meta": ("graph", Effect.APPROXIMATE, graph_edit(after=stale_value)),
    "no-dead": ("graph", Effect.APPROXIMATE, graph_edit(after=dead_node)),
    "functional": ("graph", Effect.APPROXIMATE, graph_edit(after=write_in_place)),
    "provenance": ("graph", Effect.APPROXIMATE, graph_edit(after=forget_site)),
    "ranges": ("graph", Effect.APPROXIMATE, static_shapes),
    "qparams": ("quantized", Effect.APPROXIMATE, graph_edit(negative_scale)),
    "shared": ("quantized", Effect.APPROXIMATE, graph_edit(part_shared)),
    "target": ("quantized", Effect.APPROXIMATE, plan_edit(sixteen_bits)),
    "planned": ("quantized", Effect.APPROXIMATE, plan_edit(elsewhere)),
    "bias-grid": ("quantized", Effect.APPROXIMATE, graph_edit(shift_bias)),
}


def module_edit_at(state: ModelState, do: Callable[[nn.Module], object]) -> PassResult:
    do(state.carrier_module)
    return changed(state, "second")


def wide_linear() -> None:
    """Quantize a linear whose accumulator can overflow: 70,000 * 127 * 255 = 2.27e9 > 2^31.

    The input is never negative, so its zero point is the lowest code and codes reach 255 above it.
    """
    module = nn.Linear(70_000, 1)
    nn.init.constant_(module.weight, 0.5)  # every code is 127
    x = normal(2, 70_000).abs()
    run(module.eval(), context(x), *QUANTIZE)


def other_shape(state: ModelState, _ctx: PassContext) -> PassResult:
    state.carrier_module.head = nn.Linear(8, 6).eval()
    return changed(state, "head")


@pytest.mark.parametrize("name", BREAKERS)
def test_a_pass_that_breaks_an_invariant_is_stopped_with_its_name(
    name: str, states: dict[str, tuple[ModelState, PassContext]]
) -> None:
    kind, effect, edit = BREAKERS[name]
    state, ctx = states[kind]
    if name == "reference-intact":
        assert state.module is not None
        ctx = context(EXAMPLE, module=state.module)
    with pytest.raises(InvariantError) as caught:
        step(edit, state, ctx, effect=effect)
    message = str(caught.value)
    assert message.startswith(f"breaker: invariant {name}: ")
    others = {n for names in invariants().values() for n in names} - {name}
    assert not [n for n in others if f": {n}" in message.partition("(and ")[2]], message
    assert len(message.splitlines()) == 1


def test_an_accumulator_that_could_overflow_is_stopped() -> None:
    with pytest.raises(InvariantError, match=r"^quantize: invariant accumulator: .*, past int32 "):
        wide_linear()


def test_a_drift_that_cannot_be_measured_is_stopped(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    # Only outputs of other shapes have no drift, so io-signature is broken too and comes first.
    state, ctx = states["module"]
    with pytest.raises(InvariantError, match=r"io-signature: .*\(and 1 more: drift-recorded\)"):
        step(other_shape, state, ctx)


def test_every_invariant_has_a_pass_that_breaks_it() -> None:
    names = [name for rows in invariants().values() for name in rows]
    assert len(names) == len(set(names))
    assert set(names) == {*BREAKERS, "accumulator", "drift-recorded"}


# --- what the verifier lets through --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["module", "graph", "quantized"])
def test_an_honest_pass_goes_through_and_its_drift_is_recorded(
    kind: str, states: dict[str, tuple[ModelState, PassContext]]
) -> None:
    def halve(editor: ProgramEditor) -> None:
        # a power of two moves scale and bias alike, so the bias stays on its grid
        for name in ("head.weight_scale", "head.weight", "head.bias"):
            value = editor.table.get(name)
            if value is not None and value.is_floating_point():
                editor.replace(name, value * 0.5)

    state, ctx = states[kind]
    edit = (
        module_edit(lambda m: (m.head.weight.mul_(0.5), m.head.bias.mul_(0.5)))
        if kind == "module"
        else graph_edit(halve)
    )
    after = step(edit, state, ctx)
    # the error is half of the signal: 10 log10(1 / 0.25)
    assert after.history[-1].drift_db == pytest.approx(6.0206, abs=1e-3)


def test_an_untied_weight_that_the_pass_reports_goes_through(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    def edit(state: ModelState, _ctx: PassContext) -> PassResult:
        untie(state.carrier_module)
        return PassResult(state, {"second": "untied"}, untied=(("first.weight", "second.weight"),))

    state, ctx = states["tied"]
    after = step(edit, state, ctx).carrier_module
    assert after.first.weight.data_ptr() != after.second.weight.data_ptr()


def test_outputs_that_became_nan_are_not_equivalent(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    def overflow(module: nn.Module) -> None:
        module.stem.weight.fill_(3e38)  # finite, but sums of it are not

    state, ctx = states["module"]
    with pytest.raises(InvariantError, match="invariant equivalence"):
        step(module_edit(overflow), state, ctx, effect=Effect.EQUIVALENT)


# --- levels --------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        copy = Counting().eval()
        copy.load_state_dict(self.state_dict())
        copy.calls = self.calls
        return copy

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.linear(x)


@pytest.mark.parametrize(("level", "forwards"), [("full", 2), ("edited", 0), ("off", 0)])
def test_only_the_full_level_runs_the_model(level: str, forwards: int) -> None:
    module = Counting().eval()

    def edit(state: ModelState, _ctx: PassContext) -> PassResult:
        state.carrier_module.linear.weight.data.mul_(2.0)
        return changed(state, "linear")

    after = step(edit, ModelState(module=module), context(normal(2, 4)), verify=level)
    assert (after.history[-1].drift_db is not None) == (level == "full")
    assert len(module.calls) == forwards


@pytest.mark.parametrize("level", ["edited", "off"])
def test_only_the_full_level_finds_that_outputs_moved(
    level: str, states: dict[str, tuple[ModelState, PassContext]]
) -> None:
    state, ctx = states["module"]
    _, effect, edit = BREAKERS["equivalence"]
    assert step(edit, state, ctx, effect=effect, verify=level).history[-1].drift_db is None


def test_the_edited_level_still_finds_what_needs_no_forward_pass(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    state, ctx = states["module"]
    with pytest.raises(InvariantError, match="invariant sites-exist"):
        step(unknown_site, state, ctx, verify="edited")


def test_the_level_off_checks_nothing(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    state, ctx = states["module"]
    after = step(BREAKERS["finite"][2], state, ctx, verify="off")
    assert bool(after.carrier_module.stem.weight.isnan().any())


def test_an_unknown_level_is_refused_with_the_known_ones(
    states: dict[str, tuple[ModelState, PassContext]],
) -> None:
    state, ctx = states["module"]
    with pytest.raises(ConfigError, match="verify is full, edited, off, not 'most'"):
        step(unreported, state, ctx, verify="most")
