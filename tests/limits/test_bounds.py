"""The gate's bounds: how a user names them, and the defaults."""

from __future__ import annotations

import math
import re

import pytest

from edgeopt.errors import ConfigError
from edgeopt.limits.bounds import Bound, bounds
from edgeopt.limits.quantities import QUANTITIES, Kind, Sense


def test_the_defaults_are_all_but_what_is_only_compared_where_asked_for() -> None:
    names = [bound.quantity.name for bound in bounds()]
    assert names == [name for name in QUANTITIES if name not in ("latency_p99_ms", "speedup")]
    assert not any(bound.asked_for for bound in bounds())


def test_a_limit_of_the_command_line_takes_the_place_of_the_default() -> None:
    found = {b.quantity.name: b for b in bounds(["latency_p99_ms<=1.5", "int8_macs >= -0.25"])}
    assert (found["latency_p99_ms"].limit, found["latency_p99_ms"].asked_for) == (1.5, True)
    assert (found["int8_macs"].limit, found["int8_macs"].asked_for) == (-0.25, True)
    assert (found["size_mb"].limit, found["size_mb"].asked_for) == (1.02, False)
    assert list(found) == [name for name in QUANTITIES if name != "speedup"]


def test_an_old_name_takes_the_place_of_the_default_of_todays() -> None:
    assert bounds(["size<=1.5"]) == bounds(["size_mb<=1.5"])


def test_no_bound_is_infinite_on_the_good_side() -> None:
    assert Bound.parse("size_mb<=inf").limit == math.inf
    assert Bound.parse("agreement>=-inf").limit == -math.inf
    assert Bound.parse("size_mb<=inf").text == "size_mb<=inf"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size_mb>=1", "less size_mb is better; write size_mb<=NUMBER"),
        ("size>=1", "less size_mb is better; write size_mb<=NUMBER"),
        ("agreement<=1", "more agreement is better; write agreement>=NUMBER"),
        ("size_mb<=0", "above 0"),
        ("latency_p50_ms<=-1", "above 0"),
        ("speedup>=1.5", "limit 'speedup': the gate does not compare it: candidate and baseline"),
        ("speedup<=1.5", "limit 'speedup': the gate does not compare it"),
    ],
)
def test_a_bound_that_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        Bound.parse(text)


@pytest.mark.parametrize("other", ["size_mb<=1.2", "size<=1.2"])
def test_a_quantity_given_twice_is_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=r"twice: size_mb<=1\.1 and size_mb<=1\.2"):
        bounds(["size_mb<=1.1", other])


def test_a_default_lets_an_unchanged_model_pass() -> None:
    for bound in bounds():
        unchanged = 1.0 if bound.change.kind is Kind.RATIO else 0.0
        if bound.quantity.sense is Sense.AT_MOST:
            assert unchanged <= bound.limit
        else:
            assert unchanged >= bound.limit
