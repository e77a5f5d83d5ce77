"""Compare what a runtime computed with what the reference executor gives, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.devices.machine import machine
from edgeopt.results.structure import NodeProof, ProofResult

Array = np.ndarray[Any, Any]
HISTOGRAM_KEYS = 32  # the most frequent differences; the rest is counted as "other"


class Comparison:
    """Collects the nodes of one file as they are compared."""

    def __init__(self, arithmetic: str) -> None:
        """Compare with an arithmetic, by its name in reports."""
        self._arithmetic = arithmetic
        self._details: list[NodeProof] = []
        self._first = ""

    def add(
        self, name: str, operator: str, got: Array, wanted: Array, lsb: Array | float = 1.0
    ) -> None:
        """Compare one node's output; the arguments are `node_proof`'s."""
        proof = node_proof(name, operator, got, wanted, lsb)
        self._details.append(proof)
        if proof.equal < proof.elements and not self._first:
            self._first = first_difference(proof, got, wanted, self._arithmetic)

    def result(
        self,
        artifact: str,
        runtime: str,
        *,
        unproven: Mapping[str, str] | None = None,
        float_islands: Mapping[str, int] | None = None,
    ) -> ProofResult:
        """Return what was found, on this machine.

        Args:
            artifact: The artifact's name.
            runtime: Name and version.
            unproven: Integer nodes without an arithmetic: name -> operator.
            float_islands: Operator -> how many nodes the runtime keeps in float.
        """
        elements = sum(proof.elements for proof in self._details)
        equal = sum(proof.equal for proof in self._details)
        return ProofResult(
            artifact=artifact,
            runtime=runtime,
            arithmetic=self._arithmetic,
            nodes=len(self._details),
            elements=elements,
            equal=equal,
            exact=equal == elements > 0,
            max_lsb=max((proof.max_lsb for proof in self._details), default=0.0),
            first_difference=self._first,
            details=tuple(self._details),
            unproven=dict(unproven or {}),
            float_islands=dict(sorted((float_islands or {}).items())),
            features=machine().features,
        )


def same_bits(got: Array, wanted: Array) -> Array:
    """Return where two arrays of one shape and type have the same bits."""
    if got.dtype == np.float32:
        return np.asarray(got.view(np.uint32) == np.ascontiguousarray(wanted).view(np.uint32))
    return np.asarray(got == wanted)


def node_proof(
    name: str, operator: str, got: Array, wanted: Array, lsb: Array | float = 1.0
) -> NodeProof:
    """Compare one node's output.

    Args:
        name: The node.
        operator: Its operator.
        got: What the runtime computed.
        wanted: What the executor gives.
        lsb: What one step is worth: 1 for codes, the accumulator's scale for floats.
    """
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return NodeProof(name, operator, got.size, 0, float("inf"))
    same = same_bits(got, wanted)
    equal = int(same.sum())
    largest, counts = 0.0, {}
    if equal < got.size:
        difference = (got.astype(np.float64) - wanted.astype(np.float64)) / lsb
        difference = np.where(same, 0.0, difference)
        largest = float(np.abs(difference).max())
        counts = histogram(difference[~same])
    return NodeProof(
        node=name,
        operator=operator,
        elements=got.size,
        equal=equal,
        max_lsb=largest,
        histogram=counts,
    )


def histogram(differences: Array) -> dict[str, int]:
    """Count differences by whole LSB; what is smaller than half of one counts as `<0.5`."""
    whole = np.rint(differences)
    values, counts = np.unique(whole, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = {
        "<0.5" if values[i] == 0 else f"{values[i]:+.0f}": int(counts[i])
        for i in order[:HISTOGRAM_KEYS]
    }
    rest = int(counts[order[HISTOGRAM_KEYS:]].sum())
    return kept | ({"other": rest} if rest else {})


def first_difference(proof: NodeProof, got: Array, wanted: Array, arithmetic: str) -> str:
    """Say where the first element differs, and by what."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return (
            f"{proof.node} ({proof.operator}): the runtime has {got.dtype} {got.shape}, "
            f"{arithmetic} gives {wanted.dtype} {wanted.shape}"
        )
    same = same_bits(got, wanted)
    place = tuple(int(i) for i in np.unravel_index(int(np.argmin(same)), same.shape))
    return (
        f"{proof.node} ({proof.operator}): {proof.elements - proof.equal} of {proof.elements} "
        f"elements differ, first {list(place)}: the runtime has {got[place]}, "
        f"{arithmetic} gives {wanted[place]}"
    )
