"""What a spec can wish for, and what it refuses because nothing computes it."""

from __future__ import annotations

from typing import Any

import pytest

from edgeopt.errors import ProfileError
from edgeopt.files import parse, to_plain
from edgeopt.quant.spec import Granularity, TensorSpec


@pytest.mark.parametrize(
    ("spec", "codes", "low", "high", "shown"),
    [
        (TensorSpec(), "int8", -128, 127, "int8 symmetric per tensor"),
        (TensorSpec(narrow=True), "int8", -127, 127, "int8 symmetric per tensor"),
        (TensorSpec(bits=4), "int4", -8, 7, "int4 symmetric per tensor"),
        (
            TensorSpec(signed=False, symmetric=False),
            "uint8", 0, 255, "uint8 affine per tensor",
        ),
        (
            TensorSpec(bits=16, granularity=Granularity.CHANNEL, axis=1),
            "int16", -32768, 32767, "int16 symmetric per channel (axis 1)",
        ),
    ],
    ids=["plain", "narrow", "four bits", "unsigned", "channels"],
)  # fmt: skip
def test_a_spec_says_its_codes(
    spec: TensorSpec, codes: str, low: int, high: int, shown: str
) -> None:
    assert (spec.codes_dtype, spec.qmin, spec.qmax, str(spec)) == (codes, low, high, shown)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 32}, "rules: no group_size and no dynamic parameters: nothing computes"),
        ({"dynamic": True}, "rules: no group_size and no dynamic parameters: nothing computes"),
        ({"granularity": "group"}, "rules: granularity: Input should be 'tensor' or 'channel'"),
        ({"bits": 1}, "rules: quantization bits are 2 to 32, not 1"),
        ({"narrow": True, "signed": False}, "rules: a narrow range belongs to signed codes"),
    ],
    ids=["group", "dynamic", "granularity", "bits", "narrow"],
)
def test_rules_that_nothing_computes_are_one_clear_line(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProfileError) as caught:
        parse(fields, TensorSpec, where="rules", error=ProfileError)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_spec_has_the_keys_that_bundles_hold() -> None:
    """The contracts of a bundle are read with every key known, so that none may go."""
    spec = TensorSpec(narrow=True, granularity=Granularity.CHANNEL)
    plain = to_plain(spec)
    assert plain == {
        "bits": 8,
        "signed": True,
        "symmetric": True,
        "granularity": "channel",
        "axis": 0,
        "group_size": 0,
        "narrow": True,
        "dynamic": False,
    }
    assert parse(plain, TensorSpec, where="here") == spec
