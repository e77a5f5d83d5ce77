"""What every format lets us find out about its files on this machine."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.interface import Method
from edgeopt.contracts.contract import FileTensors
from edgeopt.devices.profile import Target
from edgeopt.errors import BundleError
from edgeopt.registry.kinds import RUNNERS
from edgeopt.registry.lookup import find
from edgeopt.results.measurements import MemoryResult
from edgeopt.results.structure import OperatorRow, ProofResult, SizeRow
from edgeopt.runtime_tests.base import Arrays, LoadOptions, Runner, Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def runner_for(runtime: str) -> Runner:
    """Return the runner of a runtime, of edgeopt or of a plug-in.

    Raises:
        ConfigError: If there is none; the nearest is suggested.
        PluginError: If a plug-in's runner does not import, or is none.
    """
    needs = ("unavailable", "version", "load")
    runner: Runner = find(RUNNERS, runtime).make(object, "runtime", needs=needs)
    return runner


@dataclasses.dataclass(frozen=True)
class Structure:
    """What can be read off a file without running it on its device.

    Attributes:
        macs: Multiply-accumulates of one call.
        int8_macs: Share of them that are INT8, or None where nothing is multiplied.
        float_gemms: Weighted operators that stay float.
        operators: Where each runs.
        compile: What a real compiler said, or empty. Numbers that limits and gates know:
            `partitions`, `delegated_share` (0 to 1), `fused_attentions`.
        warnings: What the user should know.
    """

    macs: int
    int8_macs: float | None
    float_gemms: int
    operators: tuple[OperatorRow, ...]
    compile: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Inspector(abc.ABC):
    """Run and read the files of one format. It takes artifacts alone, so a bundle is enough.

    Attributes:
        format: The format's name in profiles.
        runtime: The name of the runner that runs its files on this machine.
        stands_in: Its runner is not the file's own runtime: the numbers are those of the same
            program elsewhere, and its latency says nothing.
        times_here: A call's duration on this machine means something (a simulator's does not).
        sample_limit: How many samples accuracy is judged on where calls are slow, or None: all.
        proof_reads_programs: `prove` needs the programs; the file alone does not show its codes.
        sessions: How many sessions, each a process of its own, may judge accuracy side by side.
    """

    format: ClassVar[str]
    runtime: ClassVar[str]
    stands_in: ClassVar[bool] = False
    times_here: ClassVar[bool] = True
    sample_limit: ClassVar[int | None] = None
    proof_reads_programs: ClassVar[bool] = False
    sessions: ClassVar[int] = 1

    def runner(self) -> Runner:
        """Return what runs the format's files on this machine.

        Raises:
            ConfigError: If there is no runner of that name.
            PluginError: If a plug-in's runner does not import, or is none.
        """
        return runner_for(self.runtime)

    def load(self, folder: Path, artifact: Artifact, *, threads: int = 1) -> Session:
        """Load an artifact for its numerics.

        Raises:
            RuntimeUnavailable: If the runtime is missing.
            BundleError: If the file cannot be loaded.
        """
        files = [folder / entry.path for entry in artifact.files]
        return self.runner().load(files, LoadOptions(threads, optimize=not self.stands_in))

    def untimed(self) -> str | None:
        """Return why calls of the format's files are not timed on this machine, or None.

        There is always a reason where the runner stands in for another runtime, or where
        `times_here` is False.
        """
        reason = self.runner().unavailable()
        if reason is None and (self.stands_in or not self.times_here):
            return f"edgeopt times no {self.format} file itself"
        return reason

    def interface(self, path: Path) -> tuple[tuple[Method, ...], tuple[str, ...]]:
        """Return the methods of a plain file, and the names of the files beside it that it needs.

        Raises:
            BundleError: If the file cannot be read, or does not tell.
        """
        raise BundleError(
            f"{path}: a plain {self.format} file does not tell its inputs; name its bundle"
        )

    @abc.abstractmethod
    def structure(self, folder: Path, artifact: Artifact, target: Target) -> Structure:
        """Read off a file what runs where, by its runtime's own graph or a real compiler.

        Raises:
            ExportError: If the compiler refuses the file.
        """

    @abc.abstractmethod
    def tensors(self, folder: Path, artifact: Artifact) -> FileTensors:
        """Open the file's weights for `Contract.check_file`."""

    @abc.abstractmethod
    def stored(self, path: Path) -> Iterable[tuple[str, str, int]]:
        """Return (name, type, bytes) of each tensor that a model file stores, in its order."""

    def sizes(self, folder: Path, artifact: Artifact) -> tuple[SizeRow, ...]:
        """Return the bytes of each stored tensor, by the model's FQN where it has one."""
        mapped = sorted(artifact.tensor_map.items(), reverse=True)
        fqn_of = {entry.name: fqn for fqn, entry in mapped}
        return tuple(
            SizeRow(artifact.name, fqn_of.get(name, name), dtype, size)
            for name, dtype, size in self.stored(folder / artifact.model_file.path)
        )

    def prove(
        self,
        folder: Path,
        artifact: Artifact,
        inputs: Arrays,
        programs: Mapping[str, ExportedProgram] | None = None,
    ) -> ProofResult | None:
        """Compare the runtime's integers with the reference executor, or return None.

        Args:
            folder: Where the artifact's files are.
            artifact: An INT8 artifact.
            inputs: One real call of its first method, by input name.
            programs: The legalized programs that it was written from, where they are at hand.
        """
        return None

    def memory(self, folder: Path, artifact: Artifact) -> MemoryResult | None:
        """Measure the peak memory of a process that loads and runs the file, or return None.

        Raises:
            RuntimeUnavailable: If this system cannot tell.
        """
        return None
