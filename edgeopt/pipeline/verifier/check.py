"""The verifier: named invariants that are checked after every pass.

`INVARIANTS` is the table; each row is a function of one step. A broken one raises
`InvariantError` naming the pass, the invariant and the site. Levels: `full` runs the model before
and after, `edited` runs only what needs no forward pass, `off` checks nothing.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.contracts.tied import tied_names
from edgeopt.errors import InvariantError
from edgeopt.ir import edges, program
from edgeopt.ir.calls import FORWARD
from edgeopt.ir.digests import digest, digest_tensors
from edgeopt.ir.trees import leaves
from edgeopt.numerics.snr import snr_db
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import ModelState, Stage
from edgeopt.pipeline.verifier.everywhere import ALL_STAGES, state_tensors
from edgeopt.pipeline.verifier.invariant import Row, Snapshot, Step, Violation
from edgeopt.pipeline.verifier.module import MODULE


class Level(enum.Enum):
    """How much is checked."""

    FULL = "full"
    EDITED = "edited"
    OFF = "off"


def snapshot(state: ModelState, ctx: PassContext, level: Level) -> Snapshot | None:
    """Remember what the checks need; None at `off`."""
    if level is Level.OFF:
        return None
    outputs = None
    if level is Level.FULL:
        outputs = _outputs(state, ctx)
    return Snapshot(
        state=state,
        outputs=outputs,
        digest=_digest(state),
        names=frozenset(_names(state)),
        tied=tied_names(state.module) if state.module is not None else frozenset(),
        residue=_residue(state.module) if state.module is not None else frozenset(),
        ranges=_ranges(state),
    )


def check_step(
    pass_: Pass[Any],
    before: Snapshot | None,
    result: PassResult,
    ctx: PassContext,
    level: Level,
) -> float | None:
    """Check every invariant of the state's stage and return the drift in dB.

    Raises:
        InvariantError: Naming the pass, each broken invariant, and its site.
    """
    if before is None:
        return None
    structural = [*ALL_STAGES, *(_stage_rows(result.state))]
    after = snapshot(result.state, ctx, Level.EDITED)
    assert after is not None
    drift_db = None
    early = _violations(
        Step(pass_, before, result, after, ctx, None), [r for r in structural if not r.outputs]
    )
    _raise(pass_, early)
    if level is Level.FULL:
        after = dataclasses.replace(after, outputs=_outputs(result.state, ctx))
        assert before.outputs is not None
        assert after.outputs is not None
        if [o.shape for o in before.outputs] == [o.shape for o in after.outputs]:
            drift_db = snr_db(before.outputs, after.outputs)
        _raise(
            pass_,
            _violations(
                Step(pass_, before, result, after, ctx, drift_db),
                [r for r in structural if r.outputs],
            ),
        )
    return drift_db


def _raise(pass_: Pass[Any], found: list[Violation]) -> None:
    if found:
        first = found[0]
        others = sorted({v.invariant for v in found[1:]} - {first.invariant})
        more = f" (and {len(found) - 1} more{': ' + ', '.join(others) if others else ''})"
        more = more if len(found) > 1 else ""
        raise InvariantError(
            f"{pass_.name}: invariant {first.invariant}: "
            f"{first.site + ': ' if first.site else ''}{first.message}{more}"
        )


def _violations(step: Step, rows: list[Row]) -> list[Violation]:
    return [violation for row in rows for violation in row.check(step)]


def _stage_rows(state: ModelState) -> tuple[Row, ...]:
    from edgeopt.pipeline.verifier.graph import GRAPH
    from edgeopt.pipeline.verifier.quantized import QUANTIZED

    if state.stage is Stage.MODULE:
        return MODULE
    from edgeopt.pipeline.state import Phase

    return (*GRAPH, *QUANTIZED) if state.phase is Phase.QUANTIZED else GRAPH


def invariants() -> Mapping[str, tuple[str, ...]]:
    """Return the names of all invariants: stage -> names."""
    from edgeopt.pipeline.verifier.graph import GRAPH
    from edgeopt.pipeline.verifier.quantized import QUANTIZED

    return {
        "all": tuple(row.name for row in ALL_STAGES),
        "module": tuple(row.name for row in MODULE),
        "graph": tuple(row.name for row in GRAPH),
        "quantized": tuple(row.name for row in QUANTIZED),
    }


def _outputs(state: ModelState, ctx: PassContext) -> list[Tensor]:
    found: list[Tensor] = []
    with torch.no_grad():
        if state.module is not None:
            for method in (FORWARD, *ctx.methods):
                example = ctx.example(method)
                # `forward` through the module itself, so that hooks run
                call = state.module if method == FORWARD else getattr(state.module, method)
                found += leaves(call(*example.args, **example.kwargs))
            return found
        for method, exported in state.carrier_programs.items():
            example = ctx.example(method)
            found += leaves(program.run(exported, example.args, example.kwargs))
        return found


def _digest(state: ModelState) -> str:
    if state.module is not None:
        # extra_repr of some modules holds values (RNG state); the class names do not.
        kinds = "\n".join(
            f"{name} {type(m).__qualname__}" for name, m in state.module.named_modules()
        )
        return digest(state.module) + kinds
    text = "\n".join(str(p.graph) for p in state.carrier_programs.values())
    # Planning and calibrating change the state without touching the graph.
    return digest_tensors(state_tensors(state).items()) + text


def _names(state: ModelState) -> Iterator[str]:
    if state.module is not None:
        for name, _ in state.module.named_modules():
            yield name or "the model"
        yield from state.module.state_dict()
        return
    for exported in state.carrier_programs.values():
        yield from program.tensors(exported)
        for node in exported.graph.nodes:
            site = edges.site_of(node)
            if site is not None:
                yield site.address
                yield site.fqn or "the model"
                yield f"{site.address}.out"
                for index in range(len(edges.flat_arguments(node))):
                    yield f"{site.address}.in{index}"


def _residue(module: nn.Module) -> frozenset[str]:
    found = set()
    for name, child in module.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            for key in getattr(child, kind, {}):
                found.add(f"{name or 'the model'}: {kind} {key}")
        if nn.utils.parametrize.is_parametrized(child):
            found.add(f"{name or 'the model'}: parametrization")
    return frozenset(found)


def _ranges(state: ModelState) -> str:
    if state.programs is None:
        return ""
    return "\n".join(
        f"{name} {sorted((str(k), str(v)) for k, v in p.range_constraints.items())}"
        for name, p in state.programs.items()
    )
