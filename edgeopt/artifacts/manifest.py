"""The manifest of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.artifacts.interface import Preprocessing
from edgeopt.registry.plugins import Plugin

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a bundle holds; `manifest.json`.

    Attributes:
        edgeopt: Version that wrote it.
        model: The model as named on the command line, and its adapters.
        profile: The profile's name.
        recipe: The recipe's name.
        build_key: Hash of source, recipe, profile, data, seed and tool versions.
        hashes: The parts of the build key: `weights`, `recipe`, `profile`, `calibration`, ...
        seed: The seed.
        tools: Tool versions.
        artifacts: The exported forms.
        files: Every file but the reports, the lock and the manifest itself.
        preprocessing: For picture models, or None.
        labels: Class names, or empty.
        adapters: Names of fused adapters.
        minimum_runtime: Runtime -> oldest version that takes the files.
        golden: Method -> file with golden inputs and outputs.
        plugins: The plug-ins that made it.
        schema: Version of this schema.
    """

    edgeopt: str
    model: str
    profile: str
    recipe: str
    build_key: str
    hashes: Mapping[str, str]
    seed: int
    tools: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    files: tuple[FileEntry, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    minimum_runtime: Mapping[str, str] = dataclasses.field(default_factory=dict)
    golden: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    schema: int = SCHEMA_VERSION

    def artifact(self, name: str) -> Artifact:
        """Return an artifact by name.

        Raises:
            BundleError: If there is none.
        """
        from edgeopt.errors import BundleError, nearest

        found = {a.name: a for a in self.artifacts}
        if name not in found:
            raise BundleError(f"artifact {name!r} is not in the bundle{nearest(name, found)}")
        return found[name]
