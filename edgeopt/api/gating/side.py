"""One of the two that a gate compares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.bundle import Bundle
from edgeopt.devices.machine import is_device
from edgeopt.devices.profile import Protocol, load_profile
from edgeopt.errors import PluginError, ProfileError
from edgeopt.limits.results import GateSide
from edgeopt.results.reports import ArtifactRow, BuildReport

THIS_MACHINE = "host"


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        place: The bundle or file as given.
        folder: Where the artifact's files are.
        artifact: What is compared.
        bundle: The bundle, or None: a plain file.
        report: The bundle's report, or None.
    """

    place: Path
    folder: Path
    artifact: Artifact
    bundle: Bundle | None = None
    report: BuildReport | None = None

    @property
    def file(self) -> Path:
        """The model file."""
        return self.folder / self.artifact.model_file.path

    @property
    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of the artifact's files, the model file's first."""
        return tuple(entry.sha256 for entry in self.artifact.files)

    @property
    def told(self) -> GateSide:
        """The side as results name it."""
        manifest = None if self.bundle is None else self.bundle.manifest
        return GateSide(
            path=self.place.as_posix(),
            artifact=self.artifact.name,
            file=self.artifact.model_file.path,
            sha256=self.artifact.model_file.sha256,
            format=self.artifact.format,
            precision=self.artifact.precision,
            profile=manifest.profile if manifest else "",
            recipe=manifest.recipe if manifest else "",
            build_key=manifest.build_key if manifest else "",
        )

    def away(self) -> str:
        """Return why a latency measured on this machine is not the device's, or an empty string.

        A plain file names no device: it is judged for the machine that runs it.
        """
        if self.bundle is None:
            return ""
        name = self.bundle.manifest.profile
        try:
            profile = load_profile(name)
        except (ProfileError, PluginError):  # a profile of the user's own: its build knew
            return "" if self._was_timed_at_home() else f"profile {name!r} is not at hand here"
        if not is_device(profile):
            return f"this machine is not the device ({profile.title})"
        stand_ins = [target.name for target in profile.stand_ins]
        return "it stands in for another runtime" if self.artifact.target in stand_ins else ""

    def _was_timed_at_home(self) -> bool:
        rows = () if self.report is None else self.report.latency
        return any(
            r.artifact == self.artifact.name and r.machine.device == THIS_MACHINE and not r.stand_in
            for r in rows
        )

    def protocol(self) -> Protocol:
        """Return how the profile wants its latency measured; the usual way where it is unknown."""
        if self.bundle is None:
            return Protocol()
        try:
            profile = load_profile(self.bundle.manifest.profile)
            return profile.target(self.artifact.target).protocol
        except (ProfileError, PluginError):
            return Protocol()


def artifact_row(report: BuildReport, artifact: Artifact) -> ArtifactRow | None:
    return next((row for row in report.artifacts if row.name == artifact.name), None)
