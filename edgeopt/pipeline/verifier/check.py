"""The verifier: named invariants that are checked after every pass.

`INVARIANTS` is the table; each row is a function of one step. A broken one raises
`InvariantError` naming the pass, the invariant and the site. Levels: `full` runs the model before
and after, `edited` runs only what needs no forward pass, `off` checks nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.contracts.contract import Tied
from edgeopt.errors import InvariantError
from edgeopt.ir import edges, program
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.reference import digest, digest_tensors, leaves, snr_db
from edgeopt.pipeline.state import FORWARD, Effect, ModelState, PassContext, Stage
from edgeopt.pipeline.verifier.invariant import Row, Snapshot, Step, Violation

EQUIVALENT_SNR_DB = 80.0
"""Least SNR of an EQUIVALENT pass: float32 rounding in deep models stays above 100 dB."""


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
        tied=_tied(state.module) if state.module is not None else frozenset(),
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
    from edgeopt.pipeline.verifier.graph import GRAPH, QUANTIZED

    if state.stage is Stage.MODULE:
        return MODULE
    from edgeopt.pipeline.state import Phase

    return (*GRAPH, *QUANTIZED) if state.phase is Phase.QUANTIZED else GRAPH


# --- every stage ---------------------------------------------------------------------------------


def io_signature(step: Step) -> Iterator[Violation]:
    """Same number of outputs, shapes and types as before."""
    before, after = step.before.outputs, step.after.outputs
    if before is None or after is None:
        return
    if len(before) != len(after):
        yield Violation("io-signature", "", f"{len(before)} outputs became {len(after)}")
        return
    for index, (was, now) in enumerate(zip(before, after, strict=True)):
        if was.shape != now.shape or was.dtype != now.dtype:
            yield Violation(
                "io-signature",
                f"output {index}",
                f"{tuple(was.shape)} {was.dtype} became {tuple(now.shape)} {now.dtype}",
            )


def finite(step: Step) -> Iterator[Violation]:
    """Every floating tensor is finite."""
    for name, tensor in state_tensors(step.state).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield Violation("finite", name, "holds NaN or Inf")


def equivalence(step: Step) -> Iterator[Violation]:
    """An EQUIVALENT pass keeps the outputs, up to float rounding."""
    drift_db = step.drift_db if step.pass_.effect is Effect.EQUIVALENT else None
    if drift_db is not None and drift_db < EQUIVALENT_SNR_DB:
        yield Violation(
            "equivalence",
            "",
            f"outputs moved to {drift_db:.1f} dB, "
            f"at least {EQUIVALENT_SNR_DB:.0f} dB is float rounding",
        )


def drift_recorded(step: Step) -> Iterator[Violation]:
    """An APPROXIMATE pass has its drift measured."""
    if step.pass_.effect is Effect.APPROXIMATE and step.drift_db is None:
        yield Violation("drift-recorded", "", "the drift could not be measured")


def honest_changes(step: Step) -> Iterator[Violation]:
    """No changes reported means that nothing changed."""
    moved_on = step.pass_.produces is not None
    if not step.result.changes and not moved_on and step.before.digest != step.after.digest:
        yield Violation("honest-changes", "", "reports no change, but weights or graph differ")


def sites_exist(step: Step) -> Iterator[Violation]:
    """Each reported site names something that exists before or after."""
    known = step.before.names | step.after.names
    for site in (*step.result.changes, *step.result.skipped):
        if site not in known:
            yield Violation("sites-exist", site, "is no module, tensor or graph site")


def contracts_hold(step: Step) -> Iterator[Violation]:
    """Every contract still holds on the carrier."""
    state = step.state
    for contract in state.contracts:
        if state.module is not None:
            message = contract.check_module(state.module)
        else:
            message = contract.check_programs(state.carrier_programs)
        if message:
            yield Violation("contracts", ", ".join(contract.sites), f"{contract.kind}: {message}")


def tied_weights(step: Step) -> Iterator[Violation]:
    """Parameters that shared storage still do, unless the pass says that it untied them."""
    if step.state.module is None:
        return
    untied = {frozenset(pair) for pair in step.result.untied}
    for group in step.before.tied:
        for name, other in itertools.combinations(sorted(group), 2):
            pair = frozenset((name, other))
            if pair not in untied and not any(pair <= later for later in step.after.tied):
                yield Violation("tied", name, f"no longer shares storage with {other}")


def reference_intact(step: Step) -> Iterator[Violation]:
    """The float reference owns its storage and was not touched."""
    if step.ctx.reference is not None and not step.ctx.reference.intact():
        yield Violation("reference-intact", "", "the float reference's weights changed")


# --- MODULE --------------------------------------------------------------------------------------


def eval_mode(step: Step) -> Iterator[Violation]:
    """No submodule is left in training mode."""
    for name, module in step.state.carrier_module.named_modules():
        if module.training:
            yield Violation("eval-mode", name or "the model", "is in training mode")


def no_residue(step: Step) -> Iterator[Violation]:
    """No hooks or parametrizations beyond those before."""
    for what in sorted(step.after.residue - step.before.residue):
        yield Violation("no-residue", what, "was left behind")


ALL_STAGES: tuple[Row, ...] = (
    Row("finite", finite),
    Row("honest-changes", honest_changes),
    Row("sites-exist", sites_exist),
    Row("contracts", contracts_hold),
    Row("tied", tied_weights),
    Row("reference-intact", reference_intact),
    Row("io-signature", io_signature, outputs=True),
    Row("equivalence", equivalence, outputs=True),
    Row("drift-recorded", drift_recorded, outputs=True),
)
MODULE: tuple[Row, ...] = (Row("eval-mode", eval_mode), Row("no-residue", no_residue))


def invariants() -> Mapping[str, tuple[str, ...]]:
    """Return the names of all invariants: stage -> names."""
    from edgeopt.pipeline.verifier.graph import GRAPH, QUANTIZED

    return {
        "all": tuple(row.name for row in ALL_STAGES),
        "module": tuple(row.name for row in MODULE),
        "graph": tuple(row.name for row in GRAPH),
        "quantized": tuple(row.name for row in QUANTIZED),
    }


# --- what a state looks like ---------------------------------------------------------------------


def state_tensors(state: ModelState) -> dict[str, Tensor]:
    """Return all parameters and buffers by FQN (of several programs: the shared set)."""
    if state.module is not None:
        return {
            name: value
            for name, value in state.module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }
    found: dict[str, Tensor] = {}
    for exported in state.carrier_programs.values():
        found.update(program.tensors(exported))
    return found


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


def _tied(module: nn.Module) -> frozenset[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.numel():
            groups.setdefault(parameter.data_ptr(), set()).add(name)
    return frozenset(frozenset(group) for group in groups.values() if len(group) > 1)


def tied_contracts(module: nn.Module) -> tuple[Tied, ...]:
    """Return a contract for each pair of parameters that share storage."""
    found = []
    for group in sorted(_tied(module), key=sorted):
        first, *others = sorted(group)
        found += [Tied(first, other) for other in others]
    return tuple(found)


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
