"""`edgeopt gate`: exit codes, JSON, the files it writes, and what it prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pydantic
import pytest

from edgeopt.api.gate import GateOptions
from edgeopt.cli import main
from edgeopt.limits.results import GateResult
from edgeopt.results.verdicts import Verdict
from tests.report.fake_gate import make


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for the gate: return a result, and collect what it was asked."""
    seen: list[Any] = []

    def run_gate(candidate: Path, baseline: Path, options: Any, *, progress: Any) -> GateResult:
        seen.append((candidate, baseline, options))
        progress("timing", 0, None)
        print("a library prints here")
        return make()

    monkeypatch.setattr("edgeopt.api.gate.run_gate", run_gate)
    return seen


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.PASS, 0), (Verdict.FAIL, 1), (Verdict.NOT_MEASURED, 3)]
)
def test_exit_codes(verdict: Verdict, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = dataclasses.replace(make(), verdict=verdict)
    monkeypatch.setattr("edgeopt.api.gate.run_gate", lambda *_words, **_more: result)
    assert main(["gate", "new", "--baseline", "old"]) == code


def test_the_options_are_passed_on(gated: list[Any]) -> None:
    words = (
        "gate new --baseline old --limit size_mb<=1.5 --limit drop<=2 --method decode "
        "--artifact onnxruntime --samples 40 --require-measured"
    )
    assert main(words.split()) == 1
    assert gated == [
        (
            Path("new"),
            Path("old"),
            GateOptions(("size_mb<=1.5", "drop<=2"), "decode", "onnxruntime", 40, True),
        )
    ]


def test_json_is_only_json_and_fits_the_schema(
    gated: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", "new", "--baseline", "old", "--json"]) == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert pydantic.TypeAdapter(GateResult).validate_python(data) == make()
    assert "a library prints here" in err
    promised = (
        *("name", "method", "kind", "unit", "baseline", "candidate", "value", "low", "high"),
        *("limit", "comparison", "verdict"),
    )
    assert all(set(promised) <= set(row) for row in data["limits"])
    assert data["limits"][0]["kind"] == "ratio"
    assert data["limits"][0]["comparison"] == "slower"
    assert data["comparisons"][0]["samples_ms"]["candidate"] == [1.2, 1.2]


def test_reports_are_written_beside_the_text(
    gated: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit, markdown = tmp_path / "deep" / "gate.xml", tmp_path / "gate.md"
    words = ["gate", "new", "--baseline", "old", "--junit", str(junit), "--markdown", str(markdown)]
    assert main(words) == 1
    assert ElementTree.parse(junit).getroot().tag == "testsuites"
    assert markdown.read_text(encoding="utf-8").startswith("### edgeopt gate: fail")
    out, err = capsys.readouterr()
    assert "FAIL  dist/new (onnxruntime) against dist/old (onnxruntime)" in out
    for text in ("x 1.200 (1.150 to 1.250)", "slower", "Not measured", "no compiler told it"):
        assert text in out
    assert "warning: the candidate was made of a.py:make" in err
    assert "\x1b" not in out


def test_a_report_that_cannot_be_written_is_one_line(
    gated: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    junit = tmp_path / "file" / "gate.xml"
    assert main(["gate", "new", "--baseline", "old", "--junit", str(junit)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("edgeopt: ")
    assert "cannot be written" in err
    assert err.count("\n") == 1
