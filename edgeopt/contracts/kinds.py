"""The kinds of contracts, and how they are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.contracts.contract import Contract
from edgeopt.registry.kinds import CONTRACTS
from edgeopt.registry.lookup import find


def from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Contract, ...]:
    """Read contracts back from a bundle's state.

    Raises:
        BundleError: For an unknown kind or a field that does not fit.
        PluginError: If a plug-in's kind does not import, or is none.
    """
    from edgeopt.errors import BundleError
    from edgeopt.files import parse

    found: list[Contract] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise BundleError(f"a contract is a table, not {row!r}")
        fields = dict(row)
        kind = str(fields.pop("kind", ""))
        type_ = find(CONTRACTS, kind, error=BundleError).load_class(Contract, "kind")
        found.append(parse(fields, type_, where=f"contract {kind}", error=BundleError))
    return tuple(found)
