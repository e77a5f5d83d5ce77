"""The files of a build, and where each comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgeopt.api.building.branches import Branch
from edgeopt.api.building.exporting import export
from edgeopt.api.building.inputs import Inputs
from edgeopt.api.formats import inspector_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.pipeline.state import ModelState
from edgeopt.results.reports import FileRole


@dataclasses.dataclass(frozen=True)
class Written:
    """One written file and where it comes from.

    Attributes:
        artifact: The artifact.
        branch: The branch that it belongs to.
        own: Its target is one of the profile's own, not a stand-in.
        yardstick: It is the float file that the branch's own file is compared with.
    """

    artifact: Artifact
    branch: Branch
    own: bool
    yardstick: bool = False

    @property
    def role(self) -> FileRole:
        """What the report calls it."""
        if self.yardstick:
            return FileRole.YARDSTICK
        return FileRole.TARGET if self.own else FileRole.STAND_IN


def write_files(
    folder: Path, inputs: Inputs, trunk: ModelState, branches: Sequence[Branch]
) -> tuple[Written, ...]:
    """Write each branch's file and its float yardstick, the first target's first; then the extra.

    Raises:
        ExportError: If an exporter cannot take a program.
    """
    job = inputs.job

    def file(state: ModelState, target: Target, name: str, precision: str) -> Artifact:
        job.progress(f"export {name}", 0, None)
        return export(
            job,
            state,
            target,
            folder,
            name=name,
            precision=precision,
            build_key=inputs.made_of.build_key,
        )

    found: list[Written] = []
    for branch in branches:
        target, own = branch.target, branch.target in job.profile.targets
        precision = "int8" if job.quantizes else target.float_type
        found.append(Written(file(branch.state, target, target.name, precision), branch, own))
        if job.quantizes and target.yardstick:
            # The same weights in the same form, nothing quantized.
            plain, name = target.float_type, f"{target.name}-{target.float_type}"
            artifact = file(branch.before, target, name, plain)
            found.append(Written(artifact, branch, own, yardstick=True))
    for extra in inputs.chosen.extra:
        target = dataclasses.replace(
            branches[0].target,
            name=extra.format,
            format=extra.format,
            runtime=inspector_for(extra.format).runner().runtime,
        )
        name = f"{extra.format}-{extra.precision}"
        found.append(Written(file(trunk, target, name, extra.precision), branches[0], own=True))
    return tuple(found)
