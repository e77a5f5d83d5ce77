"""`NAME<=NUMBER` is read in one way, whatever it is a limit of."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import ConfigError
from edgeopt.limits.bounds import Bound
from edgeopt.limits.limit import Limit
from edgeopt.limits.quantities import OLD_NAMES, QUANTITIES, Kind, Quantity, Sense
from edgeopt.limits.written import Written, read

names = st.sampled_from([*QUANTITIES, *OLD_NAMES])
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(names, st.sampled_from(Sense), numbers)
def test_what_is_printed_reads_back_as_the_same(name: str, sense: Sense, number: float) -> None:
    written = Written(name, sense, number)
    assert read(written.text) == Written(written.quantity.name, sense, number)
    assert read(read(written.text).text) == read(written.text)


@given(names, st.sampled_from(Sense), numbers)
def test_a_limit_of_build_is_that_text(name: str, sense: Sense, number: float) -> None:
    text = Written(name, sense, number).text
    limit = Limit.parse(text)
    assert limit.text == text
    assert (limit.maximum if sense is Sense.AT_MOST else limit.minimum) == number


@given(st.sampled_from([q for q in QUANTITIES.values() if q.change is not None]), numbers)
def test_a_bound_of_the_gate_is_that_text(quantity: Quantity, number: float) -> None:
    bound = Bound(quantity, number, "command line")
    if bound.change.kind is Kind.RATIO and number <= 0:
        with pytest.raises(ConfigError, match="above 0"):
            Bound.parse(bound.text)
    else:
        assert Bound.parse(bound.text) == bound


@pytest.mark.parametrize("parse", [Limit.parse, Bound.parse], ids=["build", "gate"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("drop", "a limit is NAME<=NUMBER or NAME>=NUMBER, not 'drop'"),
        ("drop<1", "a limit is NAME<=NUMBER or NAME>=NUMBER, not 'drop<1'"),
        ("drop=1", "a limit is NAME<=NUMBER or NAME>=NUMBER, not 'drop=1'"),
        ("drop<=one", "limit 'drop<=one': 'one' is not a number"),
        ("drop<=", "limit 'drop<=': '' is not a number"),
        ("drop<=nan", "limit 'drop<=nan': 'nan' is not a number"),
        ("drop<=1<=2", "limit 'drop<=1<=2': '1<=2' is not a number"),
        ("int8_macs>=1<=2", "limit 'int8_macs>=1<=2': '1<=2' is not a number"),
        ("latency<=1", "limit 'latency' is not known (did you mean 'latency_p"),
        ("latency<=one", "limit 'latency' is not known (did you mean 'latency_p"),
        ("<=1", "limit '' is not known (known: agreement, "),
        ("drop<=-inf", "limit 'drop<=-inf': '-inf' cannot be a bound"),
        ("int8_macs>=inf", "limit 'int8_macs>=inf': 'inf' cannot be a bound"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_the_same_words(
    text: str, told: str, parse: Callable[[str], object]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        parse(text)
    assert str(caught.value).startswith(told)


def test_many_digits_are_kept() -> None:
    assert Limit.parse("macs<=123456789").text == "macs<=123456789.0"
    assert Limit.parse("macs<=5e9").text == "macs<=5e+09"
