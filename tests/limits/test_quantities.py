"""The table of quantities: complete, and what the guides and the schema say of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgeopt.cli.schema import json_schema
from edgeopt.errors import ConfigError
from edgeopt.limits.bounds import Bound
from edgeopt.limits.facts import FIGURES
from edgeopt.limits.known import known
from edgeopt.limits.limit import Limit
from edgeopt.limits.percentiles import PERCENTILES
from edgeopt.limits.quantities import (
    OLD_NAMES,
    QUANTITIES,
    Evidence,
    compared,
    old_name_notes,
)

GUIDE = Path(__file__).resolve().parent.parent.parent / "docs" / "gate.md"


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_name_is_bounded_by_build_and_bounded_or_refused_by_the_gate(name: str) -> None:
    quantity = QUANTITIES[name]
    assert quantity.name == name
    assert quantity.unit
    assert len(quantity.about) > 10
    text = f"{name}{quantity.sense.value}0.5"
    assert Limit.parse(text).quantity is quantity
    if quantity.change is not None:
        assert Bound.parse(text).quantity is quantity
        assert not quantity.not_compared
    else:
        with pytest.raises(ConfigError) as caught:
            Bound.parse(text)
        sentence = f"limit {name!r}: the gate does not compare it: {quantity.not_compared}"
        assert str(caught.value) == sentence
        assert len(quantity.not_compared) > 10


def test_each_kind_of_evidence_is_there_for_exactly_its_quantities() -> None:
    assert set(compared(Evidence.LATENCY)) == set(PERCENTILES)
    assert compared(Evidence.MEMORY) == ("peak_memory_mb",)
    assert set(compared(Evidence.ACCURACY)) == set(FIGURES)


def test_the_gate_compares_all_but_the_speedup() -> None:
    found = {name for evidence in Evidence for name in compared(evidence)}
    assert set(QUANTITIES) - found == {"speedup"}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'latency' is not known \(did you mean 'latency_p"):
        known("latency")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("latency_p50", "latency_p50_ms"),
        ("latency_p99", "latency_p99_ms"),
        ("peak_memory", "peak_memory_mb"),
        ("size", "size_mb"),
    ],
)
def test_an_old_name_is_read_with_one_note(old: str, new: str) -> None:
    assert known(old) is known(new)
    assert old_name_notes([old, "drop", old]) == [f"limit {old!r} is called {new!r} now"]
    assert old not in QUANTITIES


def test_todays_names_give_no_note() -> None:
    assert old_name_notes(QUANTITIES) == []
    assert len(OLD_NAMES) == 4


def test_the_guide_lists_every_limit_of_the_gate_with_its_default() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \|$",
        GUIDE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    table = [
        (
            q.name,
            q.change.kind.value,
            "only where asked for"
            if q.change.default is None
            else f"`{q.sense.value} {q.change.default:g}`",
            q.change.about or q.about,
        )
        for q in QUANTITIES.values()
        if q.change is not None
    ]
    assert rows == table


def test_the_schema_of_a_gate_names_every_quantity_that_it_compares() -> None:
    about = json.dumps(json_schema("gate")["$defs"]["GateLimit"]["description"])
    told = about.partition("name: ")[2].partition("as in ")[0]
    names = [name for name, q in QUANTITIES.items() if q.change is not None]
    assert re.findall(r"`(\w+)`", told) == names
