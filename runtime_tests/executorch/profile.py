"""Where the time of an ExecuTorch file goes: the runtime's own events, kernel by kernel."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import BundleError
from edgeopt.exporters.executorch.file import read_file
from edgeopt.exporters.executorch.flatbuffer import Schema
from edgeopt.runtime_tests.base import Arrays
from edgeopt.runtime_tests.executorch.runner import ExecuTorchSession, shared_process

RUNS = 20
_WRAPPERS = ("DELEGATE_CALL", "OPERATOR_CALL", "Method::", "Program::")
"""Events that hold others."""


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One kind of kernel.

    Attributes:
        kernel: As the runtime calls it: `Fully Connected (NC, QS8, QC8W) GEMM`.
        calls: In one run.
        microseconds: Of all its calls in one run, the median over runs.
        share: Of the time of all kernels, 0 to 1.
    """

    kernel: str
    calls: int
    microseconds: float
    share: float


def profile(
    path: Path,
    inputs: Arrays | None = None,
    *,
    method: str = "forward",
    threads: int = 1,
    runs: int = RUNS,
) -> tuple[KernelTime, ...]:
    """Run a file with its events recorded and add them up, the longest first.

    XNNPACK's events have a resolution of one microsecond.

    Args:
        path: The file.
        inputs: By name, or None: they are made.
        method: Which one runs.
        threads: Threads of the runtime.
        runs: Runs that count; two more come before them.

    Raises:
        RuntimeUnavailable: If ExecuTorch is missing.
        BundleError: If the file cannot be loaded or run.
    """
    import numpy as np

    file = read_file(path)
    session = ExecuTorchSession(shared_process(threads), path, file, threads=threads, profile=True)
    try:
        given = session.example_inputs(method=method) if inputs is None else inputs
        for _ in range(runs + 2):
            session.run(method, given)
        with tempfile.TemporaryDirectory() as work:
            dump = Path(work) / "events.etdp"
            session.write_profile(dump)
            events = list(_events(dump))[-runs:]
    finally:
        session.close()
    if not events:
        raise BundleError(f"{path}: the runtime recorded no events")
    names = sorted({name for durations, _ in events for name in durations})
    spent = {n: float(np.median([durations[n] for durations, _ in events])) for n in names}
    total = sum(spent.values()) or 1.0
    return tuple(
        KernelTime(name, events[-1][1][name], spent[name], spent[name] / total)
        for name in sorted(names, key=lambda n: (-spent[n], n))
    )


def _events(dump: Path) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Yield (microseconds, calls) by kernel, of each run."""
    found = importlib.util.find_spec("executorch")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(next(iter(found.submodule_search_locations)))
    schema = Schema.load(folder / "devtools" / "etdump" / "etdump_schema_flatcc.fbs")
    data = dump.read_bytes()
    data = data[4:] if data[8:10] == b"ED" else data  # the size comes first
    for run in schema.read(data, dump.name)["run_data"]:
        if run["name"] != "Execute":
            continue
        durations: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for event in run["events"]:
            name, microseconds = _kernel(event["profile_event"])
            if name:
                durations[name] += microseconds  # type: ignore[assignment]
                calls[name] += 1
        yield durations, calls


def _kernel(event: Any) -> tuple[str, float]:
    if event is None:
        return "", 0.0
    name = event["delegate_debug_id_str"] or event["name"]
    if name.startswith(_WRAPPERS):
        return "", 0.0
    name = re.sub(r" #\d+$", "", name.removeprefix("native_call_"))
    return name, (event["end_time"] - event["start_time"]) / 1000
