"""Run ExecuTorch files in processes of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, DataError, RuntimeUnavailable, nearest
from edgeopt.exporters.executorch.file import ExecuTorchFile, FileMethod, read_file
from edgeopt.results.measurements import MemoryResult
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.executorch import worker as protocol

INSTALL = "pip install 'edgeopt[executorch]'"
START_S = 120
ANSWER_S = 600
MEMORY_RUNS = 3
_ids = itertools.count(1)


class RuntimeProcess:
    """A process that holds loaded programs. It is started at once and ends with its owner."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            RuntimeUnavailable: If the runtime does not start.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self._read_at = 0
        answers, theirs = os.pipe()
        environment = dict(os.environ, PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1")
        try:
            # -P keeps the working folder's own modules out of the child.
            self._child = subprocess.Popen(
                [sys.executable, "-P", protocol.__file__, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs,),
                env=environment,
            )
        finally:
            os.close(theirs)
        self._answers = os.fdopen(answers, "rb")
        try:
            self._receive(START_S, "starting")
        except BundleError as failure:
            raise RuntimeUnavailable(f"the ExecuTorch runtime does not start: {failure}") from None

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._child.poll() is None

    def ask(
        self, what: str, where: str, arrays: Sequence[np.ndarray[Any, Any]] = (), **head: Any
    ) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        """Send a request and return the answer.

        Raises:
            BundleError: If the runtime refuses, or the process ended.
        """
        if not self.alive:
            raise BundleError(f"{where}: the process that held it ended earlier")
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is in how it ended
            protocol.send(self._child.stdin, {"do": what} | head, list(arrays))
        return self._receive(ANSWER_S, where)

    def _receive(
        self, seconds: float, where: str
    ) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        ready, _, _ = select.select([self._answers], [], [], seconds)
        if not ready:
            self.stop()
            raise BundleError(f"{where}: no answer within {seconds:g} s")
        try:
            message = protocol.receive(self._answers)
        except ValueError:
            message = None
        if message is None:
            raise BundleError(f"{where}: {self._ending()}")
        head, arrays = message
        said = self._said()
        if "error" in head:
            raise BundleError(f"{where}: {_reason(head['error'], said)}")
        return head, arrays

    def _ending(self) -> str:
        code = self._child.wait()
        said = [line for line in self._said() if line.strip()]
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return f"the ExecuTorch runtime aborted ({how})" + (f": {_clean(said[-1])}" if said else "")

    def _said(self) -> list[str]:
        """Return the lines that the runtime wrote since the last look."""
        self._log.seek(self._read_at)
        data = self._log.read()
        self._read_at += len(data)
        return data.decode("utf-8", "replace").splitlines()

    def stop(self) -> None:
        """End it."""
        if self.alive:
            self._child.kill()
        self._child.wait()
        self._answers.close()
        self._log.close()


@functools.cache
def _processes() -> dict[int, RuntimeProcess]:
    """Return the running processes by their number of threads: a pool belongs to a process."""
    found: dict[int, RuntimeProcess] = {}

    def end() -> None:
        for process in found.values():
            process.stop()

    atexit.register(end)
    return found


def shared_process(threads: int) -> RuntimeProcess:
    """Return the process for programs of so many threads; it is started where none is alive.

    Raises:
        RuntimeUnavailable: If the runtime does not start.
    """
    running = _processes()
    process = running.get(threads)
    if process is None or not process.alive:
        process = running[threads] = RuntimeProcess()
    return process


class ExecuTorchSession:
    """A loaded file. Its methods keep their state until `reset`."""

    def __init__(
        self,
        process: RuntimeProcess,
        path: Path,
        file: ExecuTorchFile,
        *,
        threads: int,
        profile: bool = False,
    ) -> None:
        """Load a file into a process; the file itself says how it is read."""
        self._process = process
        self._where = str(path)
        self._file = file
        self._id = next(_ids)
        self._process.ask(
            "load",
            self._where,
            id=self._id,
            path=str(path.resolve()),
            threads=threads,
            methods=sorted(file.methods),
            profile=profile,
        )

    def input_names(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's inputs; `input_0`, ... where the file has none."""
        return _names(self._file, "inputs", method, len(self._method(method).inputs))

    def output_names(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's outputs; `output_0`, ... where the file has none."""
        return _names(self._file, "outputs", method, len(self._method(method).outputs))

    def run(self, method: str, inputs: Arrays) -> Arrays:
        """Run one method.

        Raises:
            DataError: If an input is missing, unknown, or of a wrong type or shape.
            BundleError: If the file fails while it runs, or aborts its process.
        """
        arrays = self._ordered(method, inputs)
        _, outputs = self._process.ask("run", self._where, arrays, id=self._id, method=method)
        return dict(zip(self.output_names(method), outputs, strict=True))

    def prepare(self, method: str, inputs: Arrays) -> None:
        """Keep the inputs of the calls that `timed` makes."""
        self._process.ask(
            "prepare", self._where, self._ordered(method, inputs), id=self._id, method=method
        )

    def holds(self, sessions: Sequence[ExecuTorchSession]) -> bool:
        """Say whether this session's process holds all of them."""
        return all(session._process is self._process for session in sessions)

    def timed(self, order: Sequence[ExecuTorchSession]) -> list[float]:
        """Make one prepared call of each session, in this order, and return milliseconds.

        The process that holds the sessions takes the times, so the pipe is not in them.

        Raises:
            BundleError: If they are not all in one process, or one fails.
        """
        if not self.holds(order):
            raise BundleError(f"{self._where}: is timed with a file that another process holds")
        head, _ = self._process.ask("time", self._where, order=[s._id for s in order])
        return [float(ms) for ms in head["ms"]]

    def example_inputs(self, method: str = "forward", *, seed: int = 0) -> Arrays:
        """Make inputs that the file takes: normal floats, zero integers, 1 for a dynamic size."""
        random = np.random.default_rng(seed)
        made: dict[str, np.ndarray[Any, Any]] = {}
        for name, tensor in zip(self.input_names(method), self._method(method).inputs, strict=True):
            shape = ((1, *tensor.shape[1:])) if tensor.dynamic else tensor.shape
            floats = np.issubdtype(np.dtype(tensor.dtype), np.floating)
            values = random.standard_normal(shape) if floats else np.zeros(shape)
            made[name] = values.astype(tensor.dtype)
        return made

    def write_profile(self, to: Path) -> None:
        """Write the events that a profiled session recorded (ETDump)."""
        self._process.ask("profile", self._where, id=self._id, to=str(to))

    def close(self) -> None:
        """Free the program."""
        if self._process.alive:
            self._process.ask("close", self._where, id=self._id)

    def _method(self, name: str) -> FileMethod:
        found = self._file.methods.get(name)
        if found is None:
            raise DataError(f"{self._where}: no method {name!r}{nearest(name, self._file.methods)}")
        return found

    def _ordered(self, method: str, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        names = self.input_names(method)
        for name in inputs:
            if name not in names:
                raise DataError(f"{self._where}: no input {name!r}{nearest(name, names)}")
        found = []
        for name, tensor in zip(names, self._method(method).inputs, strict=True):
            if name not in inputs:
                raise DataError(f"{self._where}: input {name!r} is missing")
            array = np.asarray(inputs[name])
            most = tensor.shape
            fits = array.ndim == len(most) and all(
                0 < got <= size if tensor.dynamic else got == size
                for got, size in zip(array.shape, most, strict=False)
            )
            if str(array.dtype) != tensor.dtype or not fits:
                bound = "at most " if tensor.dynamic else ""
                raise DataError(
                    f"{self._where}: input {name!r} is {array.dtype} {array.shape}, not "
                    f"{tensor.dtype} of {bound}{most}"
                )
            found.append(array)
        return found


class ExecuTorchRunner:
    """ExecuTorch's own runtime, with the backends that its wheel is built with.

    Attributes:
        runtime: The name in profiles.
    """

    runtime: str = "executorch"

    def unavailable(self) -> str | None:
        """Return why it cannot run here, and how to install it, or None."""
        if importlib.util.find_spec("executorch") is None:
            return f"ExecuTorch is not installed: {INSTALL}"
        if importlib.util.find_spec("executorch.extension.pybindings._C") is None:
            return f"this ExecuTorch has no Python runtime: {INSTALL}"
        return None

    def version(self) -> str:
        """Return `executorch VERSION`.

        Raises:
            RuntimeUnavailable: If it is not installed.
        """
        reason = self.unavailable()
        if reason is not None:
            raise RuntimeUnavailable(reason)
        return f"executorch {importlib.metadata.version('executorch')}"

    def load(self, files: Sequence[Path], options: LoadOptions) -> ExecuTorchSession:
        """Load the first of `files`.

        Raises:
            RuntimeUnavailable: If ExecuTorch is missing.
            BundleError: If the file is missing, damaged, or aborts the runtime.
        """
        self.version()
        file = read_file(files[0])
        process = shared_process(options.threads)
        return ExecuTorchSession(process, files[0], file, threads=options.threads)


def peak_memory(
    artifact: str, model: Path, *, method: str = "forward", threads: int = 1
) -> MemoryResult:
    """Measure the peak resident set of a process that loads a file and runs it.

    Args:
        artifact: The artifact's name, for the result.
        model: An ExecuTorch file; inputs are made.
        method: Which one runs.
        threads: Threads of the runtime.

    Raises:
        RuntimeUnavailable: If ExecuTorch is missing, or the system has no `/proc`.
        BundleError: If the file cannot be loaded or run.
    """
    if not Path("/proc/self/status").exists():
        raise RuntimeUnavailable("peak memory is read from /proc, which this system lacks")
    version = ExecuTorchRunner().version()
    file = read_file(model)
    process = RuntimeProcess()
    try:
        base, _ = process.ask("status", str(model), clear=True)
        session = ExecuTorchSession(process, model, file, threads=threads)
        given = session.example_inputs(method=method)
        for _ in range(MEMORY_RUNS):
            session.run(method, given)
        peak, _ = process.ask("status", str(model), clear=False)
    finally:
        process.stop()
    return MemoryResult(artifact, peak["VmHWM"] / 1e6, base["VmRSS"] / 1e6, version)


def _names(file: ExecuTorchFile, kind: str, method: str, count: int) -> tuple[str, ...]:
    said: Mapping[str, Any] = file.about.get(kind, {})
    names = tuple(str(name) for name in said.get(method, ()))
    return names if len(names) == count else tuple(f"{kind[:-1]}_{i}" for i in range(count))


def _reason(error: str, said: Sequence[str]) -> str:
    """Return the runtime's error with the first line that it logged, which tells more."""
    told = next((_clean(line) for line in said if _LOGGED.match(line)), "")
    return f"{_clean(error)}" + (f" ({told})" if told else "")


_LOGGED = re.compile(r"\[(?!cpuinfo|threadpool)\w+\.cpp:\d+\]")


def _clean(line: str) -> str:
    text = " ".join(re.sub(r"\[[\w.]+:\d+\]", "", line).split())
    return text if len(text) <= 200 else text[:197] + "..."
