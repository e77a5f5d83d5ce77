"""The kinds of contracts, and how they are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.contracts.contract import Contract
from edgeopt.contracts.head_groups import HeadGroups
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.contracts.quantized import Quantized
from edgeopt.contracts.tied import Tied

KINDS: dict[str, type[Contract]] = {
    contract.kind: contract for contract in (NMSparse, Tied, Quantized, HeadGroups)
}


def from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Contract, ...]:
    """Read contracts back from a bundle's state.

    Raises:
        BundleError: For an unknown kind or a field that does not fit.
    """
    from edgeopt.errors import BundleError, nearest
    from edgeopt.files import parse

    found: list[Contract] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise BundleError(f"a contract is a table, not {row!r}")
        fields = dict(row)
        kind = str(fields.pop("kind", ""))
        if kind not in KINDS:
            raise BundleError(f"contract kind {kind!r} is not known{nearest(kind, KINDS)}")
        found.append(parse(fields, KINDS[kind], where=f"contract {kind}", error=BundleError))
    return tuple(found)
