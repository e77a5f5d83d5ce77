"""Invariants of modules."""

from __future__ import annotations

from collections.abc import Iterator

from edgeopt.pipeline.verifier.invariant import Row, Step, Violation


def eval_mode(step: Step) -> Iterator[Violation]:
    """No submodule is left in training mode."""
    for name, module in step.state.carrier_module.named_modules():
        if module.training:
            yield Violation("eval-mode", name or "the model", "is in training mode")


def no_residue(step: Step) -> Iterator[Violation]:
    """No hooks or parametrizations beyond those before."""
    for what in sorted(step.after.residue - step.before.residue):
        yield Violation("no-residue", what, "was left behind")


MODULE: tuple[Row, ...] = (Row("eval-mode", eval_mode), Row("no-residue", no_residue))
