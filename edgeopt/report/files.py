"""What each file of a bundle is: a target's, a stand-in's, or a float yardstick."""

from __future__ import annotations

from collections.abc import Mapping

from edgeopt.results.reports import ArtifactRow, BuildReport, FileRole


class Files:
    """The artifacts of a report by their role.

    Attributes:
        main: The targets' files, the verdict's first, then the stand-ins'.
        yardsticks: The float files.
    """

    def __init__(self, report: BuildReport) -> None:
        roles = _roles(report.artifacts)
        self._roles: Mapping[str, FileRole] = roles
        main = [a for a in report.artifacts if roles[a.name] is not FileRole.YARDSTICK]
        main.sort(key=lambda a: roles[a.name] is FileRole.STAND_IN)  # stable
        self.main = tuple(main)
        self.yardsticks = tuple(a for a in report.artifacts if a not in main)

    def role(self, artifact: ArtifactRow) -> FileRole:
        """Return what a file is."""
        return self._roles[artifact.name]

    @property
    def own(self) -> tuple[ArtifactRow, ...]:
        """The files of the profile's own targets; the stand-ins' where none was built."""
        found = tuple(a for a in self.main if self.role(a) is FileRole.TARGET)
        return found or self.main

    @property
    def verdict(self) -> ArtifactRow | None:
        """The file that the limits are judged on."""
        return self.own[0] if self.own else None

    def yardstick(self, artifact: ArtifactRow) -> ArtifactRow | None:
        """Return the float file of the same target, or None."""
        return next((a for a in self.yardsticks if a.target == artifact.target), None)


def _roles(artifacts: tuple[ArtifactRow, ...]) -> dict[str, FileRole]:
    """Return each file's role; older reports do not say it, and had one own target."""
    quantized = {a.target for a in artifacts if a.precision == "int8"}
    found = {}
    for artifact in artifacts:
        role = artifact.role
        if role is None:
            role = FileRole.TARGET if artifact.target == artifacts[0].target else FileRole.STAND_IN
            if artifact.precision != "int8" and artifact.target in quantized:
                role = FileRole.YARDSTICK
        found[artifact.name] = role
    return found
