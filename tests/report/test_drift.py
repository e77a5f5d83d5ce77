"""The drift of several targets: worst first for each, and on one axis along the network."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgeopt.files import parse, to_json
from edgeopt.report import drift
from edgeopt.report.words import decibels
from edgeopt.results.reports import BuildReport
from edgeopt.results.structure import DriftRow
from edgeopt.results.verdicts import finite_db


def test_each_target_has_its_own_ranking(fake_report: BuildReport) -> None:
    views = drift.views(fake_report)
    assert [view.name for view in views] == ["qnn", "xnnpack"]
    for view in views:
        assert [row.rank for row in view.rows] == list(range(1, len(view.rows) + 1))
        own = [row.own_snr_db for row in view.rows if row.own_snr_db is not None]
        assert own == sorted(own)
        assert view.rows[0].site in view.finding
        assert f"--keep-float '{view.rows[0].site}'" in view.keep_float


def test_the_profile_runs_in_graph_order(fake_report: BuildReport) -> None:
    profile = drift.profile(fake_report)
    assert profile is not None
    assert profile.sites[:2] == ("patch_embed:linear#0", "blocks.0.attn.qkv:linear#0")
    qnn, xnnpack = profile.lines
    assert qnn.places == tuple(range(17))
    assert xnnpack.places == tuple(range(1, 17))  # aligned by site, not by position
    by_site = {(r.target, r.site): r.snr_db for r in fake_report.drift}
    for line in profile.lines:
        for place, value in zip(line.places, line.snr_db, strict=True):
            assert by_site[line.name, profile.sites[place]] == value
    assert profile.findings[0].startswith("qnn: from 41.0 dB at the first layer to 26.4 dB")


@pytest.mark.parametrize(
    ("orders", "merged"),
    [
        ([["a", "b", "c"]], "abc"),
        ([["a", "c"], ["a", "b", "c", "d"]], "abcd"),
        ([["b", "c"], ["a", "b"]], "abc"),
        ([["a", "b"], ["x", "y"]], "xyab"),
        ([["a", "b"], ["b", "a"]], "ab"),
    ],
)
def test_merging_keeps_the_first_order(orders: list[list[str]], merged: str) -> None:
    assert "".join(drift._merged(orders)) == merged


def test_the_lowest_layer_is_named() -> None:
    found = {"a": 30.0, "b": 20.0, "c": 25.0}
    rows = [DriftRow(s, v, v, 1, "t", i) for i, (s, v) in enumerate(found.items(), start=1)]
    assert drift._along_words("t", rows) == (
        "t: from 30.0 dB at the first layer to 25.0 dB at the last; lowest at b, 20.0 dB."
    )


def test_a_layer_without_any_error_survives_the_file() -> None:
    row = DriftRow("a", finite_db(float("inf")), finite_db(float("-inf")), 1, "t", 1)
    assert parse(json.loads(to_json(row)), DriftRow, where="x") == row
    assert decibels(row.snr_db) == "exact"


def test_methods_are_told_apart_only_where_there_are_several(fake_report: BuildReport) -> None:
    rows = fake_report.drift
    decode = tuple(dataclasses.replace(row, method="decode") for row in rows)
    views = drift.views(dataclasses.replace(fake_report, drift=(*rows, *decode)))
    names = [view.name for view in views]
    assert names == ["qnn, forward", "xnnpack, forward", "qnn, decode", "xnnpack, decode"]


def test_no_profile_where_the_order_is_not_known(fake_report: BuildReport) -> None:
    rows = tuple(dataclasses.replace(row, depth=0) for row in fake_report.drift)
    assert drift.profile(dataclasses.replace(fake_report, drift=rows)) is None
