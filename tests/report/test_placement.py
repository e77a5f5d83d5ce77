"""The strip keeps order and widths; what an accelerator left is told from what it took."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.report import placement, sizes
from edgeopt.report.placement import OFF, placements
from edgeopt.report.words import stage
from edgeopt.results.reports import BuildReport
from edgeopt.results.structure import OperatorRow, SizeRow

ROWS = st.lists(
    st.builds(
        OperatorRow,
        artifact=st.just("qnn"),
        operator=st.sampled_from(["Gemm", "Add"]),
        site=st.sampled_from(["blocks.0.fc:linear#0", "blocks.1:add#0", "cast_1", ""]),
        precision=st.sampled_from(["int8", "float16", "float32", "unknown"]),
        where=st.sampled_from(["HTP v73", "CPUExecutionProvider"]),
        macs=st.integers(0, 10**12),
    ),
    min_size=1,
    max_size=40,
)


def of(report: BuildReport, rows: list[OperatorRow]) -> placement.Placement:
    """Return the placement of one file's rows."""
    view = placements(dataclasses.replace(report, operators=tuple(rows)))
    (found,) = view.placements
    return found


def row(where: str, precision: str = "int8", macs: int = 0) -> OperatorRow:
    """Return an operator."""
    return OperatorRow("qnn", "Gemm", "net.0.fc:linear#0", precision, where, macs)


@settings(deadline=None)
@given(rows=ROWS)
def test_the_strip_is_whole(rows: list[OperatorRow]) -> None:
    off = placement.off_accelerator(rows, delegates=True)
    kinds = [OFF if is_off else "int8" for is_off in off]
    marks, stretches = placement._strip(rows, kinds)
    assert [mark.kind for mark in marks] == kinds
    assert sum(mark.percent for mark in marks) == pytest.approx(100)
    assert sum(stretch.percent for stretch in stretches) == pytest.approx(100)
    assert min(mark.percent for mark in marks) > 0
    widths = {row.macs: mark.percent for row, mark in zip(rows, marks, strict=True)}
    ordered = [widths[macs] for macs in sorted(widths)]
    assert ordered == sorted(ordered)  # more work is never narrower


def test_marks_stand_in_graph_order(fake_report: BuildReport) -> None:
    for found in placements(fake_report).placements:
        rows = [r for r in fake_report.operators if r.artifact == found.artifact]
        assert [mark.title.split("\n")[0] for mark in found.marks] == [r.site for r in rows]
        assert [s.name for s in found.stretches] == [f"blocks.{i}" for i in range(4)]


def test_too_many_operators_are_shown_with_their_neighbours(fake_report: BuildReport) -> None:
    rows = [row("HTP v73", macs=i % 3) for i in range(placement.MOST_MARKS)]
    rows.insert(300, row("CPUExecutionProvider", "float32"))
    found = of(fake_report, rows)
    assert [mark.kind for mark in found.marks] == ["int8", OFF, "int8"]
    assert "300 operators" in found.marks[0].title


def test_a_file_that_runs_on_the_cpu_left_nothing(fake_report: BuildReport) -> None:
    report = dataclasses.replace(fake_report, compile={})
    found = of(report, [row("CPUExecutionProvider"), row("CPUExecutionProvider", "float32")])
    assert OFF not in {mark.kind for mark in found.marks}
    assert found.finding == "1 of 2 operators do not run in INT8."


def test_an_accelerator_that_took_nothing_left_all(fake_report: BuildReport) -> None:
    report = dataclasses.replace(fake_report, compile={"qnn": {"delegated_share": 0.0}})
    found = of(report, [row("CPUExecutionProvider", macs=5), row("CPUExecutionProvider")])
    assert {mark.kind for mark in found.marks} == {OFF}
    assert found.elsewhere_count == 2  # INT8, and still not where they should run
    assert "2 of 2 operators are left to the CPU (Gemm)" in found.finding


def test_the_finding_counts(fake_report: BuildReport) -> None:
    found = {p.artifact: p for p in placements(fake_report).placements}
    assert list(found) == ["qnn", "xnnpack", "onnxruntime"]
    assert found["xnnpack"].finding == (
        "98.4 % of the multiply-accumulates run in INT8; "
        "8 of 40 operators are left to the CPU (Norm, Gelu)."
    )
    assert found["xnnpack"].places == (("XNNPACK", 32), ("ExecuTorch CPU kernel", 8))
    assert found["xnnpack"].elsewhere[0].kind == OFF  # the worst first
    assert of(fake_report, [row("HTP v73")]).finding == "Each of 1 reported operator runs in INT8."


@pytest.mark.parametrize(
    ("site", "name"),
    [
        ("blocks.3.mlp.fc1:linear#0", "blocks.3"),
        ("vit.encoder.layer.11.output.dense", "vit.encoder.layer.11"),
        ("patch_embed:conv2d#0", "patch_embed"),
        ("head.fc.weight", "head"),
        (":add#0", ""),
        ("gemm_input_reshape_2", ""),
        ("blocks.0.attn.qkv:linear#0/MatMul, blocks.1.x:linear#0/Add", "blocks.0"),
        ("", ""),
        ("0.weight", "0"),
    ],
)
def test_the_stage_of_a_site(site: str, name: str) -> None:
    assert stage(site) == name


def test_sizes_of_each_own_target(fake_report: BuildReport) -> None:
    views = sizes.sizes(fake_report)
    assert [(v.artifact, v.other) for v in views] == [
        ("qnn", "qnn-float32"),
        ("xnnpack", "xnnpack-float32"),
    ]
    for view in views:
        total = sum(r.bytes for r in fake_report.sizes if r.artifact == view.artifact)
        assert sum(layer.bytes for layer in view.layers) + view.rest == total
        assert view.layers[0].site == "blocks.0.mlp.fc1"
        assert view.layers[0].other_bytes == 4 * 256 * 1024 + 4 * 1024
    rows = (SizeRow("qnn", "a.weight", "int8", 60), SizeRow("qnn", "b.weight", "int8", 40))
    (view,) = sizes.sizes(dataclasses.replace(fake_report, sizes=rows))
    assert (view.finding, view.other, view.rest_count) == (
        "Half of the 0.1 kB lie in 1 layer.",
        "",
        0,
    )
