"""Run the files with numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt_sample.exporter import read


class NumpySession:
    """A loaded file."""

    def __init__(self, path: Path) -> None:
        self._chain = read(path)

    def run(self, method: str, inputs: Arrays) -> Arrays:
        x = inputs[self._chain.input]
        for operator, *names in self._chain.steps:
            if operator == "relu":
                x = np.maximum(x, 0)
                continue
            weight, *bias = (self._chain.tensors[name] for name in names)
            x = x @ weight.T + (bias[0] if bias else 0)
        return {self._chain.output: x}

    def example_inputs(self, method: str, *, seed: int = 0) -> Arrays:
        first = next(names[0] for _, *names in self._chain.steps if names)
        shape = (1, self._chain.tensors[first].shape[1])
        return {self._chain.input: np.random.default_rng(seed).standard_normal(shape, np.float32)}

    def close(self) -> None:
        """There is nothing to free."""


@dataclasses.dataclass(frozen=True)
class NumpyRunner:
    """numpy on this CPU."""

    runtime: str = "sample-numpy"

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def load(self, files: Sequence[Path], options: LoadOptions) -> NumpySession:
        return NumpySession(files[0])
