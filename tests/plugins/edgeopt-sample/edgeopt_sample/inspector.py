"""What can be found out about the files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt.artifacts.artifact import Artifact
from edgeopt.contracts.contract import FileTensors
from edgeopt.devices.profile import Target
from edgeopt.results.structure import OperatorRow
from edgeopt.runtime_tests.inspection import Inspector, Structure
from edgeopt_sample.exporter import Chain, read


@dataclasses.dataclass(frozen=True)
class NpzTensors:
    """The file's tensors, for contracts."""

    chain: Chain

    def tensor(self, fqn: str) -> np.ndarray[Any, Any] | None:
        return self.chain.tensors.get(fqn)

    def edge_dtype(self, edge: str) -> str | None:
        return None


class NpzInspector(Inspector):
    """Run and read the files."""

    format: ClassVar[str] = "sample-npz"
    runtime: ClassVar[str] = "sample-numpy"

    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        chain = read(folder / artifact.model_file.path)
        rows = []
        for operator, *names in chain.steps:
            site, macs = (names[0], chain.tensors[names[0]].size) if names else (operator, 0)
            rows.append(OperatorRow(artifact.name, operator, site, "float32", "numpy", macs))
        products = sum(row.macs > 0 for row in rows)
        return Structure(sum(row.macs for row in rows), 0.0, products, tuple(rows))

    def tensors(self, folder: Path, artifact: Artifact) -> FileTensors:
        return NpzTensors(read(folder / artifact.model_file.path))

    def stored(self, path: Path) -> list[tuple[str, str, int]]:
        return [(fqn, str(t.dtype), t.nbytes) for fqn, t in read(path).tensors.items()]
