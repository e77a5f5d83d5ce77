"""Which files a build writes: targets, stand-ins and what `--format` adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeopt.devices.profile import DeviceProfile, Target
from edgeopt.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is written.

    Attributes:
        targets: The targets to build, the verdict's first.
        stand_ins: Runtimes that stand in for the device's on this machine.
        extra: Precisions of additional ONNX files.
    """

    targets: tuple[Target, ...]
    stand_ins: tuple[Target, ...]
    extra: tuple[str, ...]

    @property
    def all(self) -> tuple[Target, ...]:
        """Targets and stand-ins: each gets a branch."""
        return (*self.targets, *self.stand_ins)


def choose_targets(profile: DeviceProfile, formats: Sequence[str]) -> Chosen:
    """Return what `--format` asks for; everything of the profile where it names no target.

    Raises:
        ConfigError: If no target of the profile has the format.
    """
    known = {t.format for t in (*profile.targets, *profile.stand_ins)}
    plain: list[str] = []
    extra: list[str] = []
    for text in formats:
        format_, colon, precision = text.partition(":")
        if not colon and format_ not in known:
            raise ConfigError(
                f"--format {format_}: profile {profile.name} has no such target"
                f"{nearest(format_, known)}"
            )
        if colon and (format_ != "onnx" or precision not in ("float32", "float16")):
            raise ConfigError(
                f"--format {text}: takes onnx:float32 or onnx:float16 beside "
                f"{', '.join(sorted(known))}"
            )
        if colon:
            extra.append(precision)
        else:
            plain.append(format_)
    if not plain:
        return Chosen(profile.targets, profile.stand_ins, tuple(extra))
    targets = tuple(t for t in profile.targets if t.format in plain)
    stand_ins = tuple(t for t in profile.stand_ins if t.format in plain)
    return Chosen(targets or stand_ins, stand_ins if targets else (), tuple(extra))
