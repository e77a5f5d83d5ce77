"""Which files go onto which platform, and where they stand there."""

from __future__ import annotations

import dataclasses
import plistlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from edgeopt.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Platform:
    """One kind of machine that an app or a robot's program runs on.

    Attributes:
        name: As on the command line.
        title: In words.
        place: The folder of the assets below `--out`; `{name}` is the model's name.
        raw_golden_only: Golden vectors are only written in the raw form. A Jetson's build script
            reads the bundle's own.
    """

    name: str
    title: str
    place: str
    raw_golden_only: bool = True

    def folder(self, name: str) -> PurePosixPath:
        """Return the assets' folder below `--out`."""
        return PurePosixPath(self.place.format(name=name))

    def extra_files(self, name: str) -> Mapping[str, bytes]:
        """Return the files that only this platform needs: path -> content."""
        return {"Info.plist": _info_plist(name)} if self.name == "ios" else {}


PLATFORMS: Mapping[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform(
            "android",
            "an Android app (a module's folder; its assets)",
            "src/main/assets/edgeopt/{name}",
        ),
        Platform(
            "ios",
            "an iOS app (a resource bundle)",
            "{name}.bundle",
        ),
        Platform(
            "jetson",
            "a Jetson (a folder with the engine's build script)",
            "{name}",
            raw_golden_only=False,
        ),
    )
}


def platform(name: str) -> Platform:
    """Return a platform.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PLATFORMS:
        raise ConfigError(f"platform {name!r} is not known{nearest(name, PLATFORMS)}")
    return PLATFORMS[name]


def _info_plist(name: str) -> bytes:
    """Return what makes a folder a resource bundle that `Bundle(url:)` opens."""
    return plistlib.dumps(
        {
            "CFBundleIdentifier": f"edgeopt.assets.{name}",
            "CFBundleInfoDictionaryVersion": "6.0",
            "CFBundleName": name,
            "CFBundlePackageType": "BNDL",
            "CFBundleShortVersionString": "1.0",
            "CFBundleVersion": "1",
        },
        sort_keys=True,
    )
