"""Peak memory of an ONNX file in ONNX Runtime, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, RuntimeUnavailable
from edgeopt.results.measurements import MemoryResult
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner

STATUS = Path("/proc/self/status")
TIMEOUT_S = 120
RUNS = 3  # the arena has its final size after the second

# `ru_maxrss` of a child reports its parent's peak; VmHWM is the process's own, and writing 5 to
# clear_refs takes the peak of the imports out of it.
_CHILD = """
import json, sys
import numpy as np
import onnxruntime as ort

def status(key):
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith(key + ":"))

model, values, threads, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with np.load(values, allow_pickle=False) as file:
    inputs = {name: file[name] for name in file.files}
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
except OSError:
    pass
base = status("VmRSS")
settings = ort.SessionOptions()
settings.log_severity_level = 4
settings.intra_op_num_threads = threads
settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
for _ in range(runs):
    session.run(None, inputs)
print(json.dumps({"base": base, "peak": status("VmHWM")}))
"""


def peak_memory(
    artifact: str, model: Path, inputs: Arrays | None = None, *, threads: int = 1
) -> MemoryResult:
    """Measure the peak resident set of a process that loads a file and runs it.

    Args:
        artifact: The artifact's name, for the result.
        model: An ONNX file.
        inputs: Inputs by name, or None: they are made, with 1 for a dynamic size.
        threads: Threads of the runtime.

    Raises:
        RuntimeUnavailable: If ONNX Runtime is missing, or the system has no `/proc`.
        BundleError: If the file cannot be loaded or run.
    """
    if not STATUS.exists():
        raise RuntimeUnavailable("peak memory is read from /proc, which this system lacks")
    runner = OnnxRuntimeRunner()
    session = runner.load([model], LoadOptions(threads=threads, optimize=False))
    given = session.example_inputs() if inputs is None else inputs
    session.close()
    with tempfile.TemporaryDirectory() as work:
        values = Path(work) / "inputs.npz"
        arrays: dict[str, Any] = dict(given)
        np.savez(values, **arrays)
        found = _run_child([str(model.resolve()), str(values), str(threads), str(RUNS)], model)
    return MemoryResult(
        artifact=artifact,
        peak_rss_mb=found["peak"] / 1e6,
        base_rss_mb=found["base"] / 1e6,
        runtime=runner.version(),
    )


def _run_child(arguments: list[str], model: Path) -> dict[str, int]:
    # -P keeps the working folder's own modules out of the child.
    command = [sys.executable, "-P", "-c", _CHILD, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"{model}: did not run within {TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else f"ended with {done.returncode}"
        raise BundleError(f"{model}: cannot be run in a process of its own: {last[:200]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"base": int(found["base"]), "peak": int(found["peak"])}
