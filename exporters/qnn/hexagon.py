"""Qualcomm's Hexagon compiler and simulator, each call in a process of its own.

`onnxruntime-qnn` brings the compiler of the HTP (the NPU of Snapdragon phones) and a simulator of
it, which computes the NPU's own numerics on x86-64. Both may abort, so they run in a child process.
The simulator's cycles are not the device's: nothing here measures time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeopt.errors import (
    BundleError,
    CheckFailed,
    ConfigError,
    DataError,
    ExportError,
    RuntimeUnavailable,
    nearest,
)
from edgeopt.exporters import child

INSTALL = "pip install 'edgeopt[qnn]'"
OLDEST_GLIBC = (2, 35)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-qnn")  # what compiles
COMPATIBILITY = "ep_compatibility_info.QNNExecutionProvider"
"""Metadata of a compiled file: `v2:..:SDK:..:HTP ARCH:SOC MODEL:..`."""

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Chip:
    """A Snapdragon and its NPU.

    Attributes:
        name: Qualcomm's part number.
        soc_model: Its number in Qualcomm's tools. It decides what is compiled: a wrong
            `htp_arch` beside it is ignored in silence.
        htp_arch: The Hexagon version.
        title: The name on the box.
    """

    name: str
    soc_model: int
    htp_arch: int
    title: str

    @property
    def version(self) -> str:
        """The Hexagon version as people write it: `v75`."""
        return f"v{self.htp_arch}"


CHIPS: tuple[Chip, ...] = (
    # pytorch/executorch backends/qualcomm/serialization/qc_schema.py; a version's first chip
    # stands for the version.
    Chip("SM8350", 30, 68, "Snapdragon 888"),
    Chip("QCM6490", 93, 68, "QCM6490, QCS6490"),
    Chip("SM8450", 36, 69, "Snapdragon 8 Gen 1"),
    Chip("SM8475", 42, 69, "Snapdragon 8+ Gen 1"),
    Chip("SM8550", 43, 73, "Snapdragon 8 Gen 2"),
    Chip("QCS9100", 77, 73, "QCS9100"),
    Chip("SC8380XP", 60, 73, "Snapdragon X Elite"),
    Chip("SM8650", 57, 75, "Snapdragon 8 Gen 3"),
    Chip("SM8750", 69, 79, "Snapdragon 8 Elite"),
    Chip("SM8850", 87, 81, "Snapdragon 8 Elite Gen 5"),
)


def parse_chips(text: str) -> tuple[Chip, ...]:
    """Read `v73 v75 SM8750`: Hexagon versions and part numbers, in order.

    Raises:
        ConfigError: For an unknown one (the compiler would take another in silence), a repeated
            version, or none at all.
    """
    known: dict[str, Chip] = {}
    for chip in CHIPS:
        known.setdefault(chip.version, chip)
        known[chip.name] = chip
    found: list[Chip] = []
    for word in text.replace(",", " ").split():
        if word not in known:
            raise ConfigError(f"hexagon {word!r} is not known{nearest(word, known)}")
        if any(known[word].version == chip.version for chip in found):
            raise ConfigError(f"hexagon: {known[word].version} is named twice")
        found.append(known[word])
    if not found:
        raise ConfigError("hexagon names no chip; write versions such as 'v73 v75'")
    return tuple(found)


def unavailable() -> str | None:
    """Return why nothing compiles or runs here, in words a user can act on, or None."""
    if sys.platform == "linux" and platform.machine() != "x86_64":
        return f"the Hexagon compiler runs on x86-64, and this machine is {platform.machine()}"
    if sys.platform not in ("linux", "win32"):
        return "the Hexagon compiler runs on Linux and Windows"
    for package in ("onnxruntime", "onnxruntime_qnn"):
        if importlib.util.find_spec(package) is None:
            return f"{package.replace('_', '-')} is not installed: {INSTALL}"
    kind, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if kind == "glibc" and numbers and numbers < OLDEST_GLIBC:
        oldest = ".".join(map(str, OLDEST_GLIBC))
        return f"onnxruntime-qnn needs glibc {oldest} or newer, and this system has {version}"
    return None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A context binary and the ONNX file that loads it.

    Attributes:
        context: The ONNX file: an EPContext node for each partition, and what runs beside it.
        binaries: What the EPContext nodes name.
        chip: What it was compiled for.
        sdk: Version of Qualcomm's SDK.
        partitions: Parts of the graph that run on the NPU, with the CPU between them.
        left: Nodes that do not run on the NPU: name -> operator.
    """

    context: Path
    binaries: tuple[Path, ...]
    chip: Chip
    sdk: str
    partitions: int
    left: Mapping[str, str]


def compile_context(model: Path, context: str, chip: Chip, *, timeout_s: float = 900.0) -> Compiled:
    """Compile a Q/DQ ONNX file for one chip; what is written lies beside it.

    The compiler puts a hash of the model's path into what it writes. It is started in the file's
    folder and given the bare name, so that the same file gives the same bytes anywhere.

    Args:
        model: The file.
        context: Name of the ONNX file to write.
        chip: For which chip.
        timeout_s: How long the compiler may take.

    Raises:
        RuntimeUnavailable: If the package is missing or cannot be loaded.
        ExportError: If the compiler refuses the file, crashes, takes too long, or leaves the whole
            graph to the CPU.
    """
    if (reason := unavailable()) is not None:
        raise RuntimeUnavailable(reason)
    folder = model.parent
    with tempfile.TemporaryDirectory() as work:
        answer = Path(work) / "answer.json"
        order = _order("compile", model.name, chip) | {"context": context, "answer": str(answer)}
        try:
            done = subprocess.run(
                _command(order), env=child.environment(), cwd=folder, capture_output=True,
                text=True, timeout=timeout_s, check=False, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"{model.name}: the Hexagon compiler did not finish in {timeout_s:g} s"
            ) from None
        if not answer.is_file():
            raise ExportError(
                f"{model.name}: the Hexagon compiler ended with {_ending(done.returncode)} for "
                f"{chip.version}: {_last_line(done.stderr)}"
            )
        found: dict[str, str] = json.loads(answer.read_text(encoding="utf-8"))
    if "unavailable" in found:
        raise RuntimeUnavailable(f"onnxruntime-qnn cannot be loaded: {found['unavailable']}")
    if "error" in found:
        raise ExportError(
            f"{model.name}: the Hexagon compiler refuses it for {chip.version}: {found['error']}"
        )
    return read_context(folder / context)


def read_context(path: Path) -> Compiled:
    """Read a compiled file back, and see that it really holds what the NPU runs.

    Raises:
        ExportError: If there is no such file, no partition in it, or a binary is missing.
    """
    import onnx

    if not path.is_file():
        raise ExportError(f"{path.name}: was not written; the graph fell back to the CPU")
    try:
        model = onnx.load(path)
    except Exception as failure:  # protobuf raises types of its own
        raise ExportError(f"{path.name}: is no ONNX file: {failure}") from None
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if not contexts:
        raise ExportError(f"{path.name}: no part of the graph runs on the NPU")
    facts = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in contexts]
    # Partitions may share one binary; only the first of them names it.
    names = dict.fromkeys(fact.get("ep_cache_context", b"").decode() for fact in facts)
    binaries = tuple(path.parent / Path(name).name for name in names if name)
    missing = [binary.name for binary in binaries if not binary.is_file()]
    if missing:
        raise ExportError(f"{path.name}: {missing[0]} is missing")
    about = {entry.key: entry.value for entry in model.metadata_props}.get(COMPATIBILITY, "")
    numbers = about.split(":")[4:6]
    chip = next((c for c in CHIPS if [str(c.htp_arch), str(c.soc_model)] == numbers), None)
    if chip is None:
        raise ExportError(f"{path.name}: was compiled for no chip that is known ({about!r})")
    left = {n.name: n.op_type for n in model.graph.node if n.op_type != "EPContext"}
    sdk = facts[0]["ep_sdk_version"].decode()
    return Compiled(path, binaries, chip, sdk, len(contexts), left)


class Simulator:
    """A compiled file, loaded in the simulator in a process of its own."""

    def __init__(self, compiled: Compiled, *, timeout_s: float = 600.0) -> None:
        """Load a file.

        Args:
            compiled: The file. If it is one partition, any fall back to the CPU is an error.
            timeout_s: How long loading, and each run, may take.

        Raises:
            RuntimeUnavailable: If the package is missing or cannot be loaded.
            BundleError: If the file cannot be loaded.
            CheckFailed: If the graph fell back to the CPU.
        """
        if (reason := unavailable()) is not None:
            raise RuntimeUnavailable(reason)
        self._where = compiled.context.name
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        order = _order("serve", compiled.context.name, compiled.chip)
        self._process = subprocess.Popen(
            _command(order | {"strict": not compiled.left}),
            env=child.environment(), cwd=compiled.context.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        try:
            facts = json.loads(self._answer().decode())
        except BaseException:
            self.close()
            raise
        self.inputs: dict[str, str] = facts["inputs"]
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(s) for n, s in facts["shapes"].items()}
        self.outputs: tuple[str, ...] = tuple(facts["outputs"])

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run the file once; outputs by name, in the file's order.

        Raises:
            DataError: If an input is missing, unknown, or of a wrong type or shape.
            BundleError: If the run fails, the process dies, or takes too long.
        """
        packed = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in inputs.items()}
        np.savez(packed, **arrays)
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, packed.getvalue())
        except BrokenPipeError:
            raise BundleError(f"{self._where}: {self._died()}") from None
        with np.load(io.BytesIO(self._answer()), allow_pickle=False) as found:
            return {name: found[name] for name in self.outputs}

    def close(self) -> None:
        """End the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self) -> bytes:
        kind = self._read(1)
        size = int.from_bytes(self._read(8), "little")
        payload = self._read(size)
        if kind == b"+":
            return payload
        found: dict[str, str] = json.loads(payload.decode())
        if "unavailable" in found:
            raise RuntimeUnavailable(f"onnxruntime-qnn cannot be loaded: {found['unavailable']}")
        if "data" in found:
            raise DataError(f"{self._where}: {found['data']}")
        if "fallback" in found:
            raise CheckFailed(f"{self._where}: {found['fallback']}")
        raise BundleError(f"{self._where}: {found['error']}")

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout_s
        parts: list[bytes] = []
        while size > 0:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._process.kill()
                raise BundleError(
                    f"{self._where}: the simulator did not answer in {self._timeout_s:g} s"
                )
            part = os.read(handle, min(size, 1 << 20))
            if not part:
                raise BundleError(f"{self._where}: {self._died()}")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _died(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return f"the Hexagon simulator ended with {_ending(code)}: {_last_line(text)}"


def write_frame(stream: Any, payload: bytes, kind: bytes = b"") -> None:
    """Write a message: its kind, its length in 8 bytes, and itself."""
    stream.write(kind + len(payload).to_bytes(8, "little") + payload)
    stream.flush()


def _order(task: str, model: str, chip: Chip) -> dict[str, Any]:
    return {"task": task, "model": model, "arch": chip.htp_arch, "soc": chip.soc_model}


def _command(order: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "edgeopt.exporters.qnn.hexagon_child", json.dumps(order)]


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
