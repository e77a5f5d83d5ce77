"""Which files a build writes: targets, stand-ins and what `--format` adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from edgeopt.api.formats import every_exporter, exporter_for, format_names
from edgeopt.devices.profile import DeviceProfile, Target
from edgeopt.errors import ConfigError, PluginError, nearest


@dataclasses.dataclass(frozen=True)
class Extra:
    """A file of the model as captured, beside the targets'.

    Attributes:
        format: Its format.
        precision: Its precision.
    """

    format: str
    precision: str


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is written.

    Attributes:
        targets: The targets to build, the verdict's first.
        stand_ins: Runtimes that stand in for the device's on this machine.
        extra: Files beside the targets'.
    """

    targets: tuple[Target, ...]
    stand_ins: tuple[Target, ...]
    extra: tuple[Extra, ...]

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
    extra: list[Extra] = []
    for text in formats:
        format_, colon, precision = text.partition(":")
        if not colon and format_ not in known:
            raise ConfigError(
                f"--format {format_}: profile {profile.name} has no such target"
                f"{nearest(format_, known)}"
            )
        if colon:
            extra.append(_extra(format_, precision, known))
        else:
            plain.append(format_)
    if not plain:
        return Chosen(profile.targets, profile.stand_ins, tuple(extra))
    targets = tuple(t for t in profile.targets if t.format in plain)
    stand_ins = tuple(t for t in profile.stand_ins if t.format in plain)
    return Chosen(targets or stand_ins, stand_ins if targets else (), tuple(extra))


def _extra(format_: str, precision: str, known: Collection[str]) -> Extra:
    """Return what `--format onnx:float16` adds.

    Raises:
        ConfigError: If no exporter offers it.
    """
    if format_ in format_names() and precision in exporter_for(format_).extra_precisions:
        return Extra(format_, precision)
    offered = (
        f"{exporter.format}:{p}"
        for exporter in every_exporter()
        if not isinstance(exporter, PluginError)
        for p in exporter.extra_precisions
    )
    raise ConfigError(
        f"--format {format_}:{precision}: takes {' or '.join(offered)} beside "
        f"{', '.join(sorted(known))}"
    )
