"""Run Qualcomm's context binaries in the Hexagon simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, ExportError, RuntimeUnavailable, nearest
from edgeopt.exporters.qnn import hexagon
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.version import tool_versions


class QnnSession:
    """A compiled file in the simulator. It has one method and no state."""

    def __init__(self, simulator: hexagon.Simulator, compiled: hexagon.Compiled) -> None:
        self._simulator = simulator
        self.compiled = compiled
        self.input_names: tuple[str, ...] = tuple(simulator.inputs)
        self.output_names: tuple[str, ...] = simulator.outputs

    def run(self, method: str, inputs: Arrays) -> Arrays:
        """Run the file; its one method goes by any name.

        Raises:
            DataError: If an input is missing, unknown, or of a wrong type or shape.
            BundleError: If the simulator fails or dies.
        """
        return self._simulator.run(inputs)

    def example_inputs(self, method: str, *, seed: int = 0) -> Arrays:
        """Make inputs that the file takes: normal floats, zero integers."""
        random = np.random.default_rng(seed)
        made: dict[str, np.ndarray[Any, Any]] = {}
        for name, kind in self._simulator.inputs.items():
            shape = self._simulator.shapes[name]
            if kind == "tensor(float)":
                made[name] = random.standard_normal(shape).astype(np.float32)
            else:
                made[name] = np.zeros(shape, kind.removeprefix("tensor(").removesuffix(")"))
        return made

    def close(self) -> None:
        """End the simulator."""
        self._simulator.close()


@dataclasses.dataclass(frozen=True)
class QnnRunner:
    """The HTP simulator of onnxruntime-qnn: the NPU's numerics, and nothing of its speed.

    Attributes:
        runtime: The name in profiles.
        arch: The Hexagon version to run (`v75`), or empty: the first that was compiled.
    """

    runtime: str = "qnn"
    arch: str = ""

    def unavailable(self) -> str | None:
        """Return why it cannot run here, and how to install it, or None."""
        return hexagon.unavailable()

    def version(self) -> str:
        """Return `onnxruntime-qnn VERSION (HTP simulator)`.

        Raises:
            RuntimeUnavailable: If it is not installed.
        """
        if (reason := hexagon.unavailable()) is not None:
            raise RuntimeUnavailable(reason)
        name = "onnxruntime-qnn"
        return f"{name} {tool_versions(name)[name]} (HTP simulator)"

    def load(self, files: Sequence[Path], options: LoadOptions) -> QnnSession:
        """Load a context file of an artifact's files.

        Raises:
            RuntimeUnavailable: If onnxruntime-qnn is missing, or nothing was compiled.
            BundleError: If a file is missing, damaged, or cannot be loaded.
            CheckFailed: If the graph fell back to the CPU.
        """
        if (reason := hexagon.unavailable()) is not None:
            raise RuntimeUnavailable(reason)
        compiled = self._compiled(files)
        return QnnSession(hexagon.Simulator(compiled), compiled)

    def _compiled(self, files: Sequence[Path]) -> hexagon.Compiled:
        contexts = {version_of(path): path for path in files if version_of(path)}
        if not contexts:
            raise RuntimeUnavailable(
                f"{files[0].name}: nothing is compiled for the NPU; build it where "
                "onnxruntime-qnn is installed"
            )
        wanted = self.arch or next(iter(contexts))
        if wanted not in contexts:
            raise BundleError(
                f"{files[0].name}: is not compiled for {wanted}{nearest(wanted, contexts)}"
            )
        try:
            return hexagon.read_context(contexts[wanted])
        except ExportError as failure:
            raise BundleError(str(failure)) from None


def version_of(path: Path) -> str:
    """Return the Hexagon version of a context file by its name, or an empty string."""
    parts = path.name.split(".")
    return parts[-3] if parts[-2:] == ["ctx", "onnx"] and len(parts) > 2 else ""
