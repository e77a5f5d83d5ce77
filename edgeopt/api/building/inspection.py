"""What the written files show without being run: structure, operators, sizes, contracts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgeopt.api.building.written import Written
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.contracts.contract import Contract
from edgeopt.devices.rules import Compute, RuleSet, load_rules
from edgeopt.errors import CheckFailed
from edgeopt.results.reports import ArtifactRow
from edgeopt.results.structure import ContractResult, OperatorRow, SizeRow
from edgeopt.runtime_tests.inspection import Structure


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What one written file shows without being run.

    Attributes:
        row: The artifact in short.
        structure: What runs where; every operator that is not INT8 has a reason.
        sizes: Bytes of each stored tensor.
        contracts: Its branch's contracts, checked in the file.
    """

    row: ArtifactRow
    structure: Structure
    sizes: tuple[SizeRow, ...]
    contracts: tuple[ContractResult, ...]


def inspect(folder: Path, written: Sequence[Written]) -> tuple[Inspected, ...]:
    """Inspect every file, in order.

    Raises:
        CheckFailed: If a contract does not hold in a file.
    """
    found = tuple(_inspected(folder, one) for one in written)
    broken = [c for one in found for c in one.contracts if not c.holds]
    if broken:
        first = broken[0]
        raise CheckFailed(
            f"{first.artifact}: contract {first.kind} of {first.site} does not hold in the "
            f"file: {first.message}" + (f" (and {len(broken) - 1} more)" * (len(broken) > 1))
        )
    return found


def _inspected(folder: Path, written: Written) -> Inspected:
    artifact, target = written.artifact, written.branch.target
    inspector = inspector_for(artifact.format)
    structure = inspector.structure(folder, artifact, target)
    rules = load_rules(target.rules)
    operators = tuple(_with_reason(row, rules) for row in structure.operators)
    return Inspected(
        row=_row(written, structure),
        structure=dataclasses.replace(structure, operators=operators),
        sizes=inspector.sizes(folder, artifact),
        contracts=check_contracts(folder, artifact, written.branch.state.contracts),
    )


def _row(written: Written, found: Structure) -> ArtifactRow:
    artifact = written.artifact
    return ArtifactRow(
        name=artifact.name,
        target=artifact.target,
        format=artifact.format,
        precision=artifact.precision,
        file=artifact.model_file.path,
        size_bytes=artifact.model_file.size_bytes,
        sha256=artifact.model_file.sha256,
        macs=found.macs,
        int8_macs=found.int8_macs,
        notes=artifact.notes,
        role=written.role,
        float_gemms=found.float_gemms,
    )


def _with_reason(row: OperatorRow, rules: RuleSet) -> OperatorRow:
    """Say why an operator is not INT8 where its runtime does not, by the target's rules."""
    if row.precision == "int8" or row.reason:
        return row
    operator = row.site.rpartition(":")[2].partition("#")[0]
    rule = rules.operators.get(operator)
    if rule is not None and rule.compute is Compute.FOLLOW:
        reason = "moves floats between float operators"
    else:
        note = "" if rule is None else rule.note
        reason = note or f"the rules of {rules.name} keep it in float"
    return dataclasses.replace(row, reason=reason)


def check_contracts(
    folder: Path, artifact: Artifact, contracts: Sequence[Contract]
) -> tuple[ContractResult, ...]:
    """Check each contract again in the exported file."""
    tensors = inspector_for(artifact.format).tensors(folder, artifact)
    found = []
    for contract in contracts:
        if contract.kind == "quantized" and artifact.precision != "int8":
            continue  # the float file is of the same trunk
        message = contract.check_file(tensors)
        found.append(
            ContractResult(
                artifact.name,
                contract.kind,
                ", ".join(contract.sites),
                message is None,
                message or "",
            )
        )
    return tuple(found)
