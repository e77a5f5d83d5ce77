"""Exit codes, and one line for every way to fail or to be stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest

from edgeopt.cli import main
from edgeopt.errors import EdgeOptError, RuntimeUnavailable
from edgeopt.results.reports import BuildReport, VerifyResult
from edgeopt.results.structure import ContractResult
from edgeopt.results.verdicts import Check, Verdict


@pytest.mark.parametrize(
    ("verdict", "required", "code"),
    [
        (Verdict.PASS, False, 0),
        (Verdict.PASS, True, 0),
        (Verdict.NOT_MEASURED, False, 0),
        (Verdict.NOT_MEASURED, True, 3),
        (Verdict.FAIL, False, 1),
        (Verdict.FAIL, True, 1),
    ],
)
def test_build_exit_codes(
    verdict: Verdict,
    required: bool,
    code: int,
    fake_report: BuildReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = dataclasses.replace(fake_report, verdict=verdict)
    outcome = SimpleNamespace(report=report, bundle_path=Path("x"))
    monkeypatch.setattr("edgeopt.api.build.run_build", lambda _options, **_more: outcome)
    assert main(["build", *(["--require-measured"] if required else [])]) == code


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.PASS, 0), (Verdict.FAIL, 1), (Verdict.NOT_MEASURED, 3)]
)
def test_verify_exit_codes_and_what_it_prints(
    verdict: Verdict,
    code: int,
    fake_report: BuildReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = ContractResult("tensorrt", "NMSparse", "head.weight", False, "3 of 4 are not zero")
    result = VerifyResult(
        bundle="dist/x",
        verdict=verdict,
        checks=(Check("file model.onnx", False, "SHA-256 differs"),),
        proof=fake_report.proof,
        contracts=(*fake_report.contracts, broken),
    )
    monkeypatch.setattr("edgeopt.api.verify.run_verify", lambda _bundle: result)
    assert main(["verify", "dist/x"]) == code
    text = capsys.readouterr().out
    assert text.startswith(verdict.value.upper())
    for words in ("SHA-256 differs", "3 of 4 are not zero", "bit exact", "388 differ"):
        assert words in text
    assert main(["verify", "dist/x", "--json"]) == code
    read = json.loads(capsys.readouterr().out)
    assert pydantic.TypeAdapter(VerifyResult).validate_python(read) == result


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (EdgeOptError("calibration data\nis empty"), 2, "edgeopt: calibration data is empty\n"),
        (RuntimeUnavailable("no runtime"), 3, "edgeopt: no runtime\n"),
        (KeyboardInterrupt(), 2, "edgeopt: interrupted; nothing was written\n"),
        (ZeroDivisionError("by zero"), 2, "edgeopt: ZeroDivisionError: by zero (this is a bug; "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_failure_is_one_line(
    failure: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_words: Any, **_more: Any) -> None:
        raise failure

    monkeypatch.delenv("EDGEOPT_TRACEBACK", raising=False)
    monkeypatch.setattr("edgeopt.api.build.run_build", fail)
    assert main(["build"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_traceback_is_shown_where_asked_for(
    by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if by == "variable":
        monkeypatch.setenv("EDGEOPT_TRACEBACK", "1")
    assert main(["profiles", "orn", *(["--traceback"] if by == "option" else [])]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("edgeopt: profile 'orn'")


def test_a_closed_pipe_is_no_error() -> None:
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "from edgeopt.cli import main; sys.exit(main(['schema', 'build']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 2, "interrupted"), (signal.SIGTERM, 2, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_stopped_build_leaves_nothing(number: int, code: int, word: str, tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
import edgeopt.api.build as api
from edgeopt.cli import main
from edgeopt.files import atomic_folder

def run_build(options, *, progress):
    with atomic_folder(options.out) as work:
        (work / "half.onnx").write_bytes(bytes(9))
        print("started", flush=True)
        time.sleep(60)

api.run_build = run_build
raise SystemExit(main(["build", "--out", {str(tmp_path / "bundle")!r}]))
"""
    running = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell would pass an ignored SIGINT on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "started\n"
    assert list(tmp_path.iterdir())
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert not list(tmp_path.iterdir())
    assert err == f"edgeopt: {word}; nothing was written\n"
