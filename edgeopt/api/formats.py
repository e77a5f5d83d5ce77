"""The formats: what writes each, and what runs and reads its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import BundleError, PluginError
from edgeopt.exporters.base import Exporter
from edgeopt.registry.kinds import EXPORTERS, INSPECTORS
from edgeopt.registry.lookup import find, names
from edgeopt.runtime_tests.inspection import Inspector


def format_names() -> tuple[str, ...]:
    """Return the names of all formats, those of edgeopt first."""
    return names(EXPORTERS)


def format_of(place: Path) -> str:
    """Return the format of a plain model file, by its suffix.

    Plug-ins are asked where it is no format of edgeopt's.

    Raises:
        BundleError: If it is no format's.
    """
    known: list[str] = []
    broken: list[str] = []
    for exporter in every_exporter():
        if isinstance(exporter, PluginError):
            broken.append(f"; {exporter}")
        elif exporter.suffix:
            if exporter.suffix == place.suffix:
                return exporter.format
            known.append(exporter.suffix)
    told = " or ".join(sorted(known))
    raise BundleError(f"{place}: is neither a bundle nor a model file ({told}){''.join(broken)}")


def every_exporter() -> Iterator[Exporter | PluginError]:
    """Yield each format's exporter, those of edgeopt first; or why a plug-in's cannot be asked."""
    for name in format_names():
        try:
            yield exporter_for(name)
        except PluginError as failure:
            yield failure


def exporter_for(format_: str) -> Exporter:
    """Return the exporter of a format, of edgeopt or of a plug-in.

    Raises:
        ConfigError: If there is none; the nearest is suggested.
        PluginError: If a plug-in's exporter does not import, or is none.
    """
    exporter: Exporter = find(EXPORTERS, format_).make(Exporter, "format")
    return exporter


def inspector_for(format_: str) -> Inspector:
    """Return what runs and reads the files of a format; raises as `exporter_for` does."""
    inspector: Inspector = find(INSPECTORS, format_).make(Inspector, "format", needs=("runtime",))
    return inspector
