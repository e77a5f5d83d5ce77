"""A limit may speak of a plug-in's quantity, which is counted in what is told of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.api.building.judging import Found, judge
from edgeopt.errors import ConfigError, PluginError
from edgeopt.limits.bounds import Bound, bounds
from edgeopt.limits.counted import Told
from edgeopt.limits.known import count, known
from edgeopt.limits.limit import Limit
from edgeopt.limits.quantities import QUANTITIES, Evidence, Kind, Sense
from edgeopt.results.reports import ArtifactRow
from edgeopt.results.structure import SizeRow
from edgeopt.results.verdicts import Verdict
from tests.installing import install

SOURCE = """
    from edgeopt.limits.counted import Counted
    from edgeopt.limits.quantities import Kind, Sense

    class Tensors(Counted):
        name = "acme_tensors"
        unit = "count"
        sense = Sense.AT_MOST
        about = "stored tensors"
        compared = Kind.DIFFERENCE

        def count(self, told):
            return float(len(told.sizes)) if told.sizes else None

    class Silent(Tensors):
        name = "acme_silent"
        compared = None

        def count(self, told):
            return told.compile["nothing"]
"""
TOLD = Told(sizes=(SizeRow("main", "a", "float32", 4), SizeRow("main", "b", "float32", 8)))
ROW = ArtifactRow("main", "main", "onnx", "float32", "main.onnx", 1, "", 1, None)


@pytest.fixture
def acme(site: Path) -> Path:
    points = {"acme_tensors": "acme:Tensors", "acme_silent": "acme:Silent", "acme_none": "acme:X"}
    install(site, "acme", {"edgeopt.quantities": points}, {"acme.py": SOURCE})
    return site


@pytest.mark.usefixtures("acme")
def test_a_plugins_quantity_is_known_by_its_name() -> None:
    found = known("acme_tensors")
    assert (found.name, found.unit, found.sense) == ("acme_tensors", "count", Sense.AT_MOST)
    assert found.change is not None
    assert (found.change.kind, found.change.evidence) == (Kind.DIFFERENCE, Evidence.COUNTED)
    assert found.change.default is None
    assert Limit.parse("acme_tensors>=1").quantity == found
    assert count("acme_tensors", TOLD) == 2.0
    with pytest.raises(
        ConfigError, match=r"'acme_tensor' is not known \(did you mean 'acme_tensors'"
    ):
        known("acme_tensor")


@pytest.mark.usefixtures("acme")
def test_what_is_no_quantity_or_fails_names_itself() -> None:
    told = r"^limit 'acme_none' of acme 1\.0 \(acme:X\): there is no X$"
    with pytest.raises(PluginError, match=told):
        Limit.parse("acme_none<=1")
    told = r"^limit 'acme_silent' of acme 1\.0 \(acme:Silent\): fails: KeyError: 'nothing'$"
    with pytest.raises(PluginError, match=told):
        count("acme_silent", TOLD)


@pytest.mark.usefixtures("acme")
def test_the_gate_compares_it_only_where_asked_for_and_only_if_it_may() -> None:
    assert [b.quantity.name for b in bounds()] == [
        name for name in QUANTITIES if name not in ("latency_p99_ms", "speedup")
    ]
    found = bounds(["acme_tensors<=0", "size_mb<=2"])
    assert found[-1] == Bound.parse("acme_tensors<=0")
    assert len(found) == len(bounds()) + 1
    with pytest.raises(
        ConfigError, match="'acme_silent': the gate does not compare it: the plug-in"
    ):
        bounds(["acme_silent<=1"])


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("limit", "told", "value", "verdict"),
    [
        ("acme_tensors<=2", TOLD, 2.0, Verdict.PASS),
        ("acme_tensors<=1", TOLD, 2.0, Verdict.FAIL),
        ("acme_tensors<=2", Told(), None, Verdict.NOT_MEASURED),
    ],
)
def test_build_judges_what_was_counted(
    limit: str, told: Told, value: float | None, verdict: Verdict
) -> None:
    (row,) = judge([Limit.parse(limit)], Found(ROW, 0, told=told))
    assert (row.name, row.unit, row.value, row.verdict) == ("acme_tensors", "count", value, verdict)
    assert row.reason == ("main.onnx" if value else "the file does not tell it")
