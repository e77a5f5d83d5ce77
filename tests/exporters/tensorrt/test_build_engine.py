"""The on-device script, driven with a stand-in for trtexec that parses and writes for real."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.exporters.tensorrt.on_device import build_engine
from edgeopt.files import read_json
from edgeopt.results.measurements import Measured

SCRIPT = Path(build_engine.__file__)

# A program that doubles its input: output y = 2 x + bias. It refuses unknown options.
FAKE = '''
import array, json, os, sys

VERSION = "@VERSION@"
BIAS = @BIAS@
FLAGS = """--onnx --saveEngine --loadEngine --timingCacheFile --profilingVerbosity --sparsity
@TYPED@ --minShapes --optShapes --maxShapes --shapes --skipInference --exportLayerInfo
--exportOutput --exportTimes --loadInputs --iterations --duration --warmUp"""
print("&&&& RUNNING TensorRT.trtexec [TensorRT v%s] # trtexec" % VERSION)
options = dict(part.partition("=")[::2] for part in sys.argv[1:])
if "--help" in options:
    print(FLAGS)
    sys.exit(0)
for name in options:
    if name not in FLAGS.split():
        print("[E] unknown option", name)
        sys.exit(1)
log = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls.jsonl")
with open(log, "a") as file:
    file.write(json.dumps(options) + "\\n")
if "--saveEngine" in options:
    if open(options["--onnx"], "rb").read() == b"bad":
        print("[I] parsing\\n[E] [TRT] no importer registered for op: Foo\\n&&&& FAILED")
        sys.exit(1)
    open(options["--saveEngine"], "wb").write(b"engine")
    layers = [{"Name": "fc", "LayerType": "gemm", "TacticName": "sm80_xmma_sparse_gemm_i8",
               "Inputs": [{"Format/Datatype": "Int8"}], "Outputs": []}, "plain name"]
    json.dump({"Layers": layers, "Bindings": []}, open(options["--exportLayerInfo"], "w"))
if "--exportOutput" in options:
    values = array.array("f")
    name, _, path = options["--loadInputs"].partition(":")
    values.frombytes(open(path, "rb").read())
    text = ", ".join("nan" if BIAS is None else repr(2 * v + BIAS) for v in values)
    with open(options["--exportOutput"], "w") as file:
        file.write('[{ "name" : "y", "dimensions" : "?", "values" : [ %s ] }]' % text)
if "--exportTimes" in options:
    rows = [{"startEnqMs": i, "computeMs": 1.0, "latencyMs": 1.5 + i / 1000}
            for i in range(int(options["--iterations"]))]
    json.dump(rows, open(options["--exportTimes"], "w"))
'''


def fake_trtexec(
    folder: Path, *, version: str = "100300", bias: float | None = 0.0, typed: bool = True
) -> Path:
    path = folder / "fake" / "trtexec"
    path.parent.mkdir()
    body = FAKE.replace("@VERSION@", version).replace("@BIAS@", repr(bias))
    body = body.replace("@TYPED@", "--stronglyTyped" if typed else "")
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


def bundle(
    folder: Path, *, samples: int = 4, batch: int = 1, dynamic: bool = False, **changes: Any
) -> Path:
    """Write a bundle whose model doubles x [batch, 3]; return its engine.json."""
    model = folder / "tiny.onnx"
    model.write_bytes(b"model")
    x = np.arange(samples * 3, dtype=np.float32).reshape(samples, 3)
    (folder / "golden").mkdir()
    np.savez(folder / "golden" / "tiny.npz", **{"input:x": x, "output:y": 2 * x})
    profile = {"name": "x", "minimum": [1, 3], "optimum": [2, 3], "maximum": [2, 3]}
    engine = {
        "artifact": "tiny",
        "onnx": "tiny.onnx",
        "sha256": hashlib.sha256(b"model").hexdigest(),
        "minimum_tensorrt": "10.0",
        "flags": ["--stronglyTyped", "--sparsity=enable", "--profilingVerbosity=detailed"],
        "profiles": [profile] if dynamic else [],
        "timing_cache": "tiny.timing.cache",
        "method": "forward",
        "golden": "golden/tiny.npz",
        "tolerance": 0.01,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["b" if dynamic else batch, 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [batch, 3]}],
        "warmup": 3,
        "samples": 20,
        "build_key": "key",
        "schema": 1,
    } | changes
    path = folder / "tiny.engine.json"
    path.write_text(json.dumps(engine))
    return path


def calls(trtexec: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (trtexec.parent / "calls.jsonl").read_text().splitlines()]


def main(tmp_path: Path, engine: Path, trtexec: Path | None, *more: str) -> int:
    out = ["--out", str(tmp_path / "measured.json")]
    program = ["--trtexec", str(trtexec)] if trtexec else []
    return build_engine.main([str(engine), *program, *out, *more])


def test_is_python_3_8() -> None:
    text = SCRIPT.read_text()
    ast.parse(text, feature_version=(3, 8))
    imported = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= set(sys.stdlib_module_names)


def test_measures_and_writes_what_edgeopt_reads(tmp_path: Path) -> None:
    engine, trtexec = bundle(tmp_path), fake_trtexec(tmp_path)
    assert main(tmp_path, engine, trtexec) == 0

    found = read_json(tmp_path / "measured.json", Measured)
    assert (found.artifact, found.runtime, found.engine_bytes) == ("tiny", "TensorRT 10.3.0", 6)
    # 3 warm-up calls are dropped of 23.
    assert found.samples_ms == tuple(1.5 + i / 1000 for i in range(3, 23))
    assert (found.golden_ok, found.golden_max_error) == (True, 0.0)
    assert found.layers == ("fc | gemm | sm80_xmma_sparse_gemm_i8 | inputs Int8", "plain name")
    assert found.sha256 == hashlib.sha256(b"model").hexdigest()
    built, *golden, timed = calls(trtexec)
    assert {"--stronglyTyped", "--skipInference"} <= set(built)
    assert built["--sparsity"] == "enable"
    assert built["--timingCacheFile"] == str(tmp_path / "tiny.timing.cache")
    assert len(golden) == 4  # four golden samples of a batch of one
    assert (timed["--iterations"], timed["--duration"]) == ("23", "0")
    assert found.command.endswith(f"--warmUp={build_engine.WARM_UP_MS}")


def test_runs_as_a_script_beside_its_description(tmp_path: Path) -> None:
    bundle(tmp_path)
    trtexec = fake_trtexec(tmp_path)
    script = tmp_path / "build_engine.py"
    script.write_text(SCRIPT.read_text())
    command = [sys.executable, "-I", str(script), "--trtexec", str(trtexec), "--samples", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_json(tmp_path / "measured.json", Measured).samples_ms) == 5
    assert "edgeopt report BUNDLE --attach" in done.stdout


def test_dynamic_inputs_get_their_profile(tmp_path: Path) -> None:
    engine, trtexec = bundle(tmp_path, dynamic=True), fake_trtexec(tmp_path)
    assert main(tmp_path, engine, trtexec) == 0
    built, *golden, timed = calls(trtexec)
    assert [built[f"--{k}Shapes"] for k in ("min", "opt", "max")] == ["x:1x3", "x:2x3", "x:2x3"]
    assert [call["--shapes"] for call in golden] == ["x:2x3", "x:2x3"]
    assert timed["--shapes"] == "x:2x3"


@pytest.mark.parametrize("bias", [1.0, None], ids=["wrong", "nan"])
def test_wrong_outputs_end_with_1_and_are_written_down(tmp_path: Path, bias: float | None) -> None:
    engine, trtexec = bundle(tmp_path), fake_trtexec(tmp_path, bias=bias)
    assert main(tmp_path, engine, trtexec) == 1
    found = read_json(tmp_path / "measured.json", Measured)
    assert found.golden_ok is False
    assert found.golden_max_error == bias


def test_an_error_within_the_tolerance_is_good(tmp_path: Path) -> None:
    # The smallest of the golden runs has 4 as its largest value: 0.03 is 0.75 % of it.
    engine, trtexec = bundle(tmp_path), fake_trtexec(tmp_path, bias=0.03)
    assert main(tmp_path, engine, trtexec) == 0
    found = read_json(tmp_path / "measured.json", Measured)
    assert found.golden_max_error == pytest.approx(0.03, rel=1e-3)


def test_newer_trtexec_without_the_flag_builds_anyway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, trtexec = bundle(tmp_path), fake_trtexec(tmp_path, version="110400", typed=False)
    assert main(tmp_path, engine, trtexec) == 0
    assert "--stronglyTyped" not in calls(trtexec)[0]
    assert "note: this trtexec has no --stronglyTyped" in capsys.readouterr().out
    assert read_json(tmp_path / "measured.json", Measured).runtime == "TensorRT 11.4.0"


@pytest.mark.parametrize(
    ("version", "typed", "words"),
    [
        ("8602", False, "TensorRT 8.6.2 is too old"),
        ("100300", False, "no strongly typed networks"),
    ],
)
def test_an_older_tensorrt_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str, typed: bool, words: str
) -> None:
    trtexec = fake_trtexec(tmp_path, version=version, typed=typed)
    assert main(tmp_path, bundle(tmp_path), trtexec) == 3
    assert words in capsys.readouterr().err


def test_no_trtexec_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build_engine, "TRTEXEC_PLACES", ())
    assert main(tmp_path, bundle(tmp_path), None) == 3
    assert "trtexec was not found" in capsys.readouterr().err


def test_finds_trtexec_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trtexec = fake_trtexec(tmp_path)
    monkeypatch.setenv("PATH", str(trtexec.parent))
    assert build_engine.find_trtexec(None) == str(trtexec)


def test_a_build_that_fails_names_the_first_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = bundle(tmp_path, sha256=hashlib.sha256(b"bad").hexdigest())
    (tmp_path / "tiny.onnx").write_bytes(b"bad")
    assert main(tmp_path, engine, fake_trtexec(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "cannot build the engine: [E] [TRT] no importer registered for op: Foo" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "measured.json").exists()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"sha256": "0" * 64}, 1, "is damaged"),
        ({"onnx": "missing.onnx"}, 2, "copy the whole bundle"),
        ({"onnx": "../tiny.onnx"}, 2, "no name inside the folder"),
        ({"golden": "golden/none.npz"}, 2, "--no-golden"),
        ({"schema": 9}, 2, "no engine description of schema 1"),
        ({"tolerance": None}, 2, "tolerance is missing"),
        ({"inputs": [{"name": "z", "dtype": "float32", "shape": [1, 3]}]}, 2, "no input:z"),
        ({"inputs": [{"name": "x", "dtype": "int64", "shape": [1, 3]}]}, 2, "is float32, not"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1, 4]}]}, 2, "the engine takes"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [3, 3]}]}, 2, "the engine takes"),
    ],
    ids=["hash", "missing", "outside", "golden", "schema", "key", "name", "type", "shape", "batch"],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    code: int,
    words: str,
) -> None:
    trtexec = fake_trtexec(tmp_path)
    assert main(tmp_path, bundle(tmp_path, **change), trtexec) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_goes_without_golden_vectors_only_when_told(tmp_path: Path) -> None:
    engine, trtexec = bundle(tmp_path, golden="golden/none.npz"), fake_trtexec(tmp_path)
    assert main(tmp_path, engine, trtexec, "--no-golden") == 0
    found = read_json(tmp_path / "measured.json", Measured)
    assert (found.golden_ok, found.golden_max_error) == (None, None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int8", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (3,), ()], ids=["matrix", "vector", "scalar"])
def test_reads_npy_arrays_as_numpy_does(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    found = build_engine.parse_npy((tmp_path / "a.npy").read_bytes(), "a.npy")
    assert (found.kind, found.shape) == (dtype, shape)
    assert build_engine.numbers(found) == [float(v) for v in values.reshape(-1)]


@pytest.mark.parametrize("cut", [3, 20, -1], ids=["magic", "header", "data"])
def test_refuses_a_damaged_npy_array(tmp_path: Path, cut: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(build_engine.Failure):
        build_engine.parse_npy((tmp_path / "a.npy").read_bytes()[:cut], "a.npy")


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v8602]", (8, 6, 2)),
        ("[TensorRT v100300]", (10, 3, 0)),
        ("[TensorRT v101501] [b9]", (10, 15, 1)),
        ("nothing", ()),
    ],
)
def test_decodes_the_version(banner: str, version: tuple[int, ...]) -> None:
    assert build_engine.decode_version(banner) == version
