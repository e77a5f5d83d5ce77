"""Read off files: operators, sizes, contracts, drift, proofs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class NodeProof:
    """One integer node of a runtime against the reference executor.

    Attributes:
        node: The node's name in the runtime's own optimized graph.
        operator: Its operator.
        elements: Elements compared.
        equal: Elements that are equal.
        max_lsb: Largest difference in codes (in float ULP-free units: for float outputs, of the
            integer accumulator's scale).
        histogram: Difference in codes -> count, for nodes that differ.
    """

    node: str
    operator: str
    elements: int
    equal: int
    max_lsb: float
    histogram: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ProofResult:
    """A runtime's integer nodes against the reference executor, node by node.

    Attributes:
        artifact: Which one.
        runtime: Name and version.
        arithmetic: The arithmetic that the executor used (`ort_mlas`).
        nodes: Integer nodes compared.
        elements: Elements compared in all.
        equal: Elements equal.
        exact: Whether all are.
        max_lsb: Largest difference in codes.
        first_difference: The first node that differs, or empty.
        details: Per node.
        unproven: Integer nodes that the executor has no arithmetic for: name -> operator.
        float_islands: Operator -> count of nodes that the runtime keeps in float.
        features: CPU features that the proof was made on.
    """

    artifact: str
    runtime: str
    arithmetic: str
    nodes: int
    elements: int
    equal: int
    exact: bool
    max_lsb: float
    first_difference: str
    details: tuple[NodeProof, ...] = ()
    unproven: Mapping[str, str] = dataclasses.field(default_factory=dict)
    float_islands: Mapping[str, int] = dataclasses.field(default_factory=dict)
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ContractResult:
    """One contract, checked again in an exported file."""

    artifact: str
    kind: str
    site: str
    holds: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class OperatorRow:
    """Where one operator of the model runs, as the runtime or compiler reports it.

    Attributes:
        artifact: In which artifact.
        operator: The operator or layer kind (`QLinearConv`, `gemm`).
        site: FQN or node name.
        precision: `int8`, `float16`, `float32`.
        where: Execution provider, delegate, compiler or device. In a file that an accelerator or a
            delegate takes a part of, the rest runs in a place that has a word that begins with
            `CPU` or `portable` (`CPUExecutionProvider`, `ExecuTorch CPU kernel`).
        macs: Multiply-accumulates of one call, 0 where none.
        reason: Why it is not INT8, where it is not.
    """

    artifact: str
    operator: str
    site: str
    precision: str
    where: str
    macs: int
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """Bytes of one weight in a file."""

    artifact: str
    site: str
    dtype: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class DriftRow:
    """How much one layer's quantization costs by itself.

    Attributes:
        site: The operator's address; pass it to `--keep-float`.
        snr_db: SNR of its output, quantized program against float, at the same evaluation inputs;
            `EXACT_DB` where they are equal.
        own_snr_db: SNR of the layer's output with only this layer quantized, at float inputs.
        rank: 1 is the worst of its target.
        target: Whose quantized program it is; empty in reports older than this field.
        depth: Place in graph order, 1 is the first; 0 where it is not known.
        method: The program's method.
    """

    site: str
    snr_db: float
    own_snr_db: float | None
    rank: int
    target: str = ""
    depth: int = 0
    method: str = "forward"
