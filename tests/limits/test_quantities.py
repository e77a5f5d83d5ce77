"""The table of limits: how a user names them, and what the guide says of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from edgeopt.errors import ConfigError
from edgeopt.limits.facts import ACCURACY, COUNTED
from edgeopt.limits.quantities import QUANTITIES, Bound, Kind, Sense, bounds

GUIDE = Path(__file__).resolve().parent.parent.parent / "docs" / "gate.md"


def test_the_defaults_are_all_but_what_is_only_compared_where_asked_for() -> None:
    names = [bound.quantity.name for bound in bounds()]
    assert names == [name for name in QUANTITIES if name != "latency_p99"]
    assert not any(bound.asked_for for bound in bounds())


def test_a_limit_of_the_command_line_takes_the_place_of_the_default() -> None:
    found = {b.quantity.name: b for b in bounds(["latency_p99<=1.5", "int8_macs >= -0.25"])}
    assert (found["latency_p99"].limit, found["latency_p99"].asked_for) == (1.5, True)
    assert (found["int8_macs"].limit, found["int8_macs"].asked_for) == (-0.25, True)
    assert (found["size"].limit, found["size"].asked_for) == (1.02, False)
    assert list(found) == list(QUANTITIES)


def test_no_bound_is_infinite_on_the_good_side() -> None:
    assert Bound.parse("size<=inf").limit == math.inf
    assert Bound.parse("agreement>=-inf").limit == -math.inf


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency<=1.1", "did you mean 'latency_p"),
        ("size", "NAME<=NUMBER or NAME>=NUMBER"),
        ("size=1", "NAME<=NUMBER or NAME>=NUMBER"),
        ("size>=1", "less size is better; write size<=NUMBER"),
        ("agreement<=1", "more agreement is better; write agreement>=NUMBER"),
        ("size<=big", "'big' is not a number"),
        ("size<=nan", "cannot be a bound"),
        ("size<=-inf", "cannot be a bound"),
        ("int8_macs>=inf", "cannot be a bound"),
        ("size<=0", "above 0"),
        ("latency_p50<=-1", "above 0"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        Bound.parse(text)


def test_a_limit_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"given twice: size<=1\.1 and size<=1\.2"):
        bounds(["size<=1.1", "size<=1.2"])


def test_a_default_lets_an_unchanged_model_pass() -> None:
    for bound in bounds():
        unchanged = 1.0 if bound.quantity.kind is Kind.RATIO else 0.0
        if bound.quantity.sense is Sense.AT_MOST:
            assert unchanged <= bound.limit
        else:
            assert unchanged >= bound.limit


def test_every_quantity_has_one_way_to_be_found() -> None:
    measured = {"latency_p50", "latency_p99", "peak_memory"}
    assert sorted(QUANTITIES) == sorted([*measured, *COUNTED, *ACCURACY])


def test_the_guide_lists_every_limit_with_its_default() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \|$",
        GUIDE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    table = [
        (
            q.name,
            q.kind.value,
            "only where asked for" if q.default is None else f"`{q.sense.value} {q.default:g}`",
            q.about,
        )
        for q in QUANTITIES.values()
    ]
    assert rows == table
