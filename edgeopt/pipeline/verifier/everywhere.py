"""Invariants of every stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from edgeopt.ir import program
from edgeopt.pipeline.state import Effect, ModelState
from edgeopt.pipeline.verifier.invariant import Row, Step, Violation

EQUIVALENT_SNR_DB = 80.0
"""Least SNR of an EQUIVALENT pass: float32 rounding in deep models stays above 100 dB."""


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
