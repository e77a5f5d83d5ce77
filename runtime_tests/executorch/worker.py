"""Run ExecuTorch files in a process of its own: started as a script, it imports no edgeopt.

The runtime aborts the process on some bad files, so nobody runs it in their own. Requests come on
stdin and answers go to the descriptor that the only argument names, both as: length of a JSON head
(uint32), the head, then the raw bytes of the arrays that the head lists.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from typing import IO, Any

_HEAD = struct.Struct("<I")


def send(stream: IO[bytes], head: dict[str, Any], arrays: list[Any]) -> None:
    """Write one message; the arrays are numpy's."""
    import numpy as np

    packed = [np.ascontiguousarray(array) for array in arrays]
    listed = [{"dtype": str(a.dtype), "shape": list(a.shape)} for a in packed]
    text = json.dumps(head | {"arrays": listed}).encode()
    stream.write(_HEAD.pack(len(text)))
    stream.write(text)
    for array in packed:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Any]] | None:
    """Read one message, or None where the other end is closed."""
    import numpy as np

    size = stream.read(_HEAD.size)
    if len(size) < _HEAD.size:
        return None
    head: dict[str, Any] = json.loads(stream.read(_HEAD.unpack(size)[0]))
    arrays = []
    for entry in head.pop("arrays"):
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        data = bytearray(stream.read(count * dtype.itemsize))  # writable, as torch wants it
        arrays.append(np.frombuffer(data, dtype).reshape(entry["shape"]))
    return head, arrays


class Worker:
    """Answers requests; each is a method named as its operation."""

    def __init__(self) -> None:
        import executorch.extension.pybindings._C as runtime

        self._runtime = runtime
        self._threads = 0
        self._programs: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._prepared: dict[int, tuple[Any, list[Any]]] = {}

    def load(self, head: dict[str, Any], _arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Load a program and its methods, with a thread pool of the wanted size before it."""
        if head["threads"] != self._threads:
            self._runtime._unsafe_reset_threadpool(head["threads"])
            self._threads = head["threads"]
        program = self._open(head["path"], head["profile"])
        methods = {name: program.load_method(name) for name in head["methods"]}
        self._programs[head["id"]] = program, methods
        return {}, []

    def _open(self, path: str, profile: bool) -> Any:
        return self._runtime._load_program(
            path,
            enable_etdump=profile,
            program_verification=self._runtime.Verification.InternalConsistency,
        )

    def close(self, head: dict[str, Any], _arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Free a program."""
        self._prepared.pop(head["id"], None)
        self._programs.pop(head["id"], None)
        return {}, []

    def run(self, head: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Run one method."""
        outputs = self._method(head).call(self._tensors(arrays))
        return {}, [value.numpy() for value in outputs]

    def prepare(self, head: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Keep the inputs of the calls that are to be timed."""
        self._prepared[head["id"]] = self._method(head), self._tensors(arrays)
        return {}, []

    def time(self, head: dict[str, Any], _arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Make prepared calls in the given order; answer with their milliseconds."""
        taken = []
        for identity in head["order"]:
            method, tensors = self._prepared[identity]
            start = time.perf_counter_ns()
            method.call(tensors, False)  # inputs are copied in, outputs stay where they are
            taken.append((time.perf_counter_ns() - start) / 1e6)
        return {"ms": taken}, []

    def profile(self, head: dict[str, Any], _arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Write what a profiled program recorded."""
        self._programs[head["id"]][0].write_etdump_result_to_file(head["to"])
        return {}, []

    def status(self, head: dict[str, Any], _arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Answer with resident and peak memory in bytes; `clear` starts the peak anew first."""
        if head["clear"]:
            try:
                with open("/proc/self/clear_refs", "w") as file:
                    file.write("5")
            except OSError:
                pass
        found = {}
        with open("/proc/self/status") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key in ("VmRSS", "VmHWM"):
                    found[key] = int(value.split()[0]) * 1024
        return found, []

    def _method(self, head: dict[str, Any]) -> Any:
        return self._programs[head["id"]][1][head["method"]]

    def _tensors(self, arrays: list[Any]) -> list[Any]:
        import torch

        return [torch.from_numpy(array) for array in arrays]


def main() -> None:
    """Answer until stdin closes."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(int(sys.argv[1]), "wb")
    requests = sys.stdin.buffer
    worker = Worker()
    send(answers, {"ready": True}, [])
    while (message := receive(requests)) is not None:
        head, arrays = message
        try:
            send(answers, *getattr(worker, head["do"])(head, arrays))
        except Exception as failure:  # the runtime's errors share no base but Exception
            send(answers, {"error": str(failure) or type(failure).__name__}, [])


if __name__ == "__main__":
    main()
