"""The sentences over the charts say what the numbers say, and no more."""

from __future__ import annotations

import dataclasses

import pytest

from edgeopt.report import view
from edgeopt.report.words import decibels, number, share, significant
from edgeopt.results.measurements import AccuracyResult, Comparison
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import Pace


def _judged(artifact: str, drop: float, low: float | None, high: float | None) -> AccuracyResult:
    return AccuracyResult(
        artifact, "r 1", "top1", "points", 99.0, 99.0 - drop, drop, low, high, 99.0, 20.0, 0.99, 600
    )


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([("a", 0.5, 0.2, 0.9)], "a loses 0.50 points of top1 (95 %: 0.20 to 0.90)."),
        (
            [("a", 0.5, -0.2, 0.9)],
            "a loses 0.50 points of top1; 600 samples cannot tell that from no loss.",
        ),
        ([("a", 0.5, None, None)], "a loses 0.50 points of top1."),
        ([("a", 0.0, -0.3, 0.4)], "a loses no top1; 600 samples allow a drop of 0.40 points."),
        (
            [("a", -0.2, -0.3, 0.1), ("b", -0.1, -0.2, 0.6)],
            "None of 2 files loses any top1; 600 samples allow a drop of 0.60 points.",
        ),
        (
            [("a", 0.1, 0.0, 0.2), ("b", 0.7, 0.1, 1.0)],
            "The worst of 2 files, b loses 0.70 points of top1 (95 %: 0.10 to 1.00).",
        ),
    ],
)
def test_accuracy(results: list[tuple[str, float, float | None, float | None]], words: str) -> None:
    assert view.accuracy_finding([_judged(*result) for result in results]) == words


def test_yardsticks_are_not_judged_and_the_verdicts_file_is_first(
    fake_report: BuildReport,
) -> None:
    yardstick = dataclasses.replace(fake_report.accuracy[0], artifact="qnn-float32", drop=9.0)
    report = dataclasses.replace(fake_report, accuracy=(yardstick, *fake_report.accuracy))
    (group,) = view.judged(report)
    assert [result.artifact for result in group] == ["qnn", "xnnpack", "onnxruntime"]
    assert view.drop_limit(report, group) == 1.0


@pytest.mark.parametrize(
    ("pace", "ratio", "words"),
    [
        (Pace.FASTER, 0.4, "a is 2.50 × as fast as b."),
        (Pace.SLOWER, 1.4, "a takes 1.40 × as long as b."),
        (Pace.SAME, 1.0, "a is as fast as b."),
        (Pace.CANNOT_TELL, 0.9, "a cannot be told from b."),
    ],
)
def test_comparison(pace: Pace, ratio: float, words: str) -> None:
    pair = Comparison("a", "b", ratio, ratio, ratio, 0.0, pace, 10)
    assert view.comparison_finding(pair) == words


def test_latency_names_pairs_once_and_methods(fake_report: BuildReport) -> None:
    ((_, results),) = view.machines(fake_report)
    words = view.latency_findings(results, fake_report.comparisons)
    assert len(words) == 2
    assert words[0].startswith("onnxruntime takes 1.94 ms at the median, onnxruntime-float32 4.")
    methods = [dataclasses.replace(results[0], method=m) for m in ("prefill", "decode")]
    words = view.latency_findings(methods, fake_report.comparisons)
    assert [w.split(" takes")[0] for w in words] == ["xnnpack prefill", "xnnpack decode"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (number(-0.001), "0.00"),
        (number(-1.5), "−1.50"),
        (number(-12345.6), "−12,346"),
        (number(None), "–"),
        (significant(-1e-7), "−1e-07"),
        (significant(123456.0), "123,456"),
        (decibels(300.0), "exact"),
        (decibels(None), "–"),
        (share(0.99999), "over 99.9 %"),
        (share(1.0), "100 %"),
        (share(0.0), "0 %"),
        (share(0.1), "10.0 %"),
        (share(0.00001), "under 0.1 %"),
    ],
)
def test_numbers_for_people(found: str, wanted: str) -> None:
    assert found == wanted
