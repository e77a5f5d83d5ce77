"""A state has one carrier that fits its stage; a context draws by seed, pass and site."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from edgeopt.errors import PipelineError
from edgeopt.pipeline.state import ModelState, Phase, Stage
from edgeopt.progress import no_progress
from tests.small_models import context, normal, run

MODULE = nn.Linear(4, 4).eval()


@pytest.fixture(scope="module")
def graph() -> ModelState:
    return run(MODULE, context(normal(2, 4)), "capture")


def test_a_state_has_exactly_one_carrier(graph: ModelState) -> None:
    with pytest.raises(PipelineError, match="exactly one carrier"):
        ModelState()
    with pytest.raises(PipelineError, match="exactly one carrier"):
        dataclasses.replace(graph, module=MODULE)


def test_the_stage_fits_the_carrier(graph: ModelState) -> None:
    with pytest.raises(PipelineError, match="stage GRAPH does not fit the carrier"):
        ModelState(module=MODULE, stage=Stage.GRAPH)
    with pytest.raises(PipelineError, match="stage MODULE does not fit the carrier"):
        dataclasses.replace(graph, stage=Stage.MODULE)


@pytest.mark.parametrize("phase", [Phase.PLANNED, Phase.QUANTIZED])
def test_a_module_has_no_phase(phase: Phase) -> None:
    with pytest.raises(PipelineError, match=f"a module has no phase {phase.name}"):
        ModelState(module=MODULE, phase=phase)


def test_asking_for_the_other_carrier_says_what_to_do(graph: ModelState) -> None:
    with pytest.raises(PipelineError, match="capture it first"):
        _ = ModelState(module=MODULE).carrier_programs
    with pytest.raises(PipelineError, match="carries programs, not a module"):
        _ = graph.carrier_module


def test_a_state_cannot_be_changed(graph: ModelState) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.phase = Phase.PLANNED  # type: ignore[misc]


def test_other_programs_keep_the_rest(graph: ModelState) -> None:
    other = graph.with_programs(graph.carrier_programs, phase=Phase.PLANNED)
    assert other.phase is Phase.PLANNED
    assert other.history == graph.history
    assert graph.phase is Phase.FLOAT


def test_a_draw_is_the_same_for_the_same_seed_pass_and_site() -> None:
    ctx = context(normal(2, 4), seed=3)
    numbers = torch.rand(4, generator=ctx.rng("a"))
    assert torch.equal(torch.rand(4, generator=ctx.rng("a")), numbers)
    for other in (
        ctx.rng("b"),
        dataclasses.replace(ctx, seed=4).rng("a"),
        dataclasses.replace(ctx, scope="prune").rng("a"),
    ):
        assert not torch.equal(torch.rand(4, generator=other), numbers)


def test_sites_and_scopes_do_not_run_together() -> None:
    ctx = context(normal(2, 4))
    one = dataclasses.replace(ctx, scope="ab").rng("c")
    two = dataclasses.replace(ctx, scope="a").rng("bc")
    assert one.initial_seed() != two.initial_seed()


def test_the_generator_is_the_same_on_every_machine() -> None:
    # half of the first 64 bits of SHA-256 over the JSON text [0, "", "stem"]
    assert context(normal(2, 4)).rng("stem").initial_seed() == 7632610796488613242


def test_progress_to_nobody_returns_nothing() -> None:
    assert no_progress("capture", 0, None) is None
