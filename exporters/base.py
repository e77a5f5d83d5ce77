"""What every exporter is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.ir.calls import MethodExample


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What to write.

    Attributes:
        name: The artifact's name in the bundle, and the file's stem.
        programs: Method -> program, legalized for the target, at the shapes to be exported.
        target: For which target.
        precision: `float32`, `float16` or `int8`.
        plan: The rule set of the plan, or empty.
        input_names: Names of the inputs in order.
        output_names: Names of the outputs in order.
        input_roles: Role of each input (`image`, `tokens`, ...), or empty.
        build_key: Written into the file's metadata.
        dynamic: Names of the dimensions that stay dynamic.
        dimensions: Axis -> name of each input's dynamic dimensions, in the inputs' order.
        further: Names of the inputs and outputs of the methods beside the first.
    """

    name: str
    programs: Mapping[str, ExportedProgram]
    target: Target
    precision: str
    plan: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_roles: tuple[str, ...] = ()
    build_key: str = ""
    dynamic: tuple[str, ...] = ()
    dimensions: tuple[Mapping[int, str], ...] = ()
    further: Mapping[str, MethodExample] = dataclasses.field(default_factory=dict)

    def inputs_of(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's inputs."""
        return self.further[method].input_names if method in self.further else self.input_names

    def outputs_of(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's outputs."""
        return self.further[method].output_names if method in self.further else self.output_names

    def roles_of(self, method: str) -> tuple[str, ...]:
        """Return the roles of a method's inputs, or none."""
        return self.further[method].input_roles if method in self.further else self.input_roles


class Exporter(abc.ABC):
    """Write programs as files of one format.

    Attributes:
        format: The format's name in profiles.
        own_interface: Its files may take pixels and codes in place of floats, and give codes.
        integer_pixels: Quantized programs normalize pixels in integers; otherwise in float.
        suffix: What a model file's name ends with where that alone shows the format (`.onnx`);
            empty where only a bundle tells.
        extra_precisions: Precisions in which the model as captured may be written beside the
            targets' files: `--format onnx:float16`.
        device_script: The script beside its files that measures them on their device, or empty.
        platforms: App platforms whose runtimes load its files.
        runtimes: (name, licence) of what an app links or a device has to run its files; the
            licence is the one that the runtime's project states.
    """

    format: ClassVar[str]
    own_interface: ClassVar[bool] = False
    integer_pixels: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    extra_precisions: ClassVar[tuple[str, ...]] = ()
    device_script: ClassVar[str] = ""
    platforms: ClassVar[tuple[str, ...]] = ()
    runtimes: ClassVar[tuple[tuple[str, str], ...]] = ()

    def attaching(self, where: str) -> str:
        """Return how its files are measured on their device, or an empty string.

        Args:
            where: `here` or `there`: where the device is for whoever reads it.
        """
        if not self.device_script:
            return ""
        return f"run {self.device_script} {where} and attach what it writes"

    def compilers(self) -> Mapping[str, str]:
        """Return name -> version of what compiles its files here, beside what every build names.

        The versions are part of the build key: another compiler writes other bytes.
        """
        return {}

    @abc.abstractmethod
    def unsupported(self, request: ExportRequest) -> Sequence[str]:
        """Return, in words, what the format cannot take; empty if all is well. Writes nothing."""

    @abc.abstractmethod
    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        """Write the files into `folder`, read them again, check them, and describe them.

        Raises:
            ExportError: If the program cannot be taken, or the written file is not what it
                should be.
        """
