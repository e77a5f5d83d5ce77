"""A quantity by its name: one of the table, or a plug-in's."""

from __future__ import annotations

import math

from edgeopt.errors import PluginError
from edgeopt.limits.counted import Counted, Told
from edgeopt.limits.quantities import OLD_NAMES, QUANTITIES, Quantity
from edgeopt.registry import kinds
from edgeopt.registry.entry import Entry
from edgeopt.registry.lookup import find


def known(name: str) -> Quantity:
    """Return a quantity by its name, or by an old one.

    Raises:
        ConfigError: If there is none; the nearest name is suggested.
        PluginError: If a plug-in's does not import, or is none.
    """
    entry = find(kinds.QUANTITIES, OLD_NAMES.get(name, name))
    if entry.plugin is None:
        return QUANTITIES[entry.name]
    return _added(entry).quantity


def count(name: str, told: Told) -> float | None:
    """Return the number of a plug-in's quantity, or None where the file does not tell it.

    Raises:
        PluginError: If the plug-in fails, or what it returns is no number.
    """
    entry = find(kinds.QUANTITIES, name)
    with entry.guarded():
        number = _added(entry).count(told)
    if number is None:
        return None
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise PluginError(f"{entry}: counts {number!r}, which is no number")
    return float(number)


def _added(entry: Entry) -> Counted:
    found: Counted = entry.make(Counted, "name", needs=("unit", "sense", "about"))
    return found
