"""Absolute limits, of the command line and of profiles."""

from __future__ import annotations

import math

import pytest

from edgeopt.errors import ConfigError
from edgeopt.limits.limit import Limit, renamed


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("drop<=1", Limit("drop", maximum=1.0, source="command line")),
        ("speedup >= 1.6", Limit("speedup", minimum=1.6, source="command line")),
        ("drop<=-0.5", Limit("drop", maximum=-0.5, source="command line")),
        ("drop>=-1", Limit("drop", minimum=-1.0, source="command line")),  # either side
        ("drop<=inf", Limit("drop", maximum=math.inf, source="command line")),
    ],
)
def test_a_limit_is_read_from_the_command_line(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit
    assert Limit.parse(limit.text) == limit


def test_an_old_name_stays_as_written_and_means_todays() -> None:
    limit = Limit("peak_memory", maximum=60.0, method="decode", source="ours")
    assert (limit.name, limit.quantity.name) == ("peak_memory", "peak_memory_mb")
    assert limit.text == "peak_memory_mb<=60"
    assert renamed(limit) == Limit("peak_memory_mb", maximum=60.0, method="decode", source="ours")


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ({}, "limit drop: give either maximum or minimum"),
        ({"maximum": 1.0, "minimum": 0.0}, "limit drop: give either maximum or minimum"),
        ({"maximum": math.nan}, "limit 'drop<=nan': 'nan' is not a number"),
        ({"minimum": math.inf}, "limit 'drop>=inf': 'inf' cannot be a bound"),
    ],
)
def test_a_limit_that_bounds_nothing_is_refused(bound: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limit("drop", **bound)  # type: ignore[arg-type]
    assert str(caught.value) == told
