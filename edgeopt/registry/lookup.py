"""Find a thing by its name."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import ConfigError, EdgeOptError, PluginError, nearest
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import Kind
from edgeopt.registry.plugins import entries as plugin_entries
from edgeopt.registry.plugins import installed


def builtin(kind: Kind) -> tuple[Entry, ...]:
    """Return what ships with edgeopt, in the order of the listing."""
    places = kind.builtin.places()
    return tuple(Entry(kind, name, place) for name, place in places.items())


def listed(kind: Kind) -> tuple[Entry, ...]:
    """Return everything of a kind: what ships with edgeopt, then plug-ins' by package and name.

    Nothing is imported for it.
    """
    return (*builtin(kind), *plugin_entries(kind))


def names(kind: Kind) -> tuple[str, ...]:
    """Return the known names, each once."""
    return tuple(dict.fromkeys(entry.name for entry in listed(kind)))


def find(kind: Kind, name: str, *, error: type[EdgeOptError] = ConfigError) -> Entry:
    """Return the entry of a name.

    Raises:
        EdgeOptError: As `error`: there is none of that name; the nearest is suggested, and a
            plug-in that cannot be read is named, since it might have it.
        PluginError: If two packages claim the name.
    """
    found = [entry for entry in listed(kind) if entry.name == name]
    if not found:
        unread = [f"; plug-in {p.distribution}: {p.problem}" for p in installed() if p.problem]
        near = nearest(name, names(kind))
        raise error(f"{kind.noun} {name!r} is not known{near}{''.join(unread)}")
    if len(found) > 1:
        owners = " and ".join(str(entry.plugin or "edgeopt itself") for entry in found)
        raise PluginError(f"{kind.noun} {name!r} is claimed by {owners}; uninstall all but one")
    return found[0]


def is_path(name_or_path: str) -> bool:
    """Say whether a file is named by its path, and not by the name of an entry."""
    return name_or_path.endswith(".toml")


def find_file(
    kind: Kind, name_or_path: str, *, beside: Path | None = None, error: type[EdgeOptError]
) -> Path:
    """Return the file of a name, or the path itself where it ends in `.toml`.

    Args:
        kind: A kind whose entries are files.
        name_or_path: A name, or a path.
        beside: The folder that a relative path starts from; None: where the process runs.
        error: The class to raise.

    Raises:
        EdgeOptError: As `error`, as `find`.
        PluginError: If a plug-in names no file, or two packages claim the name.
    """
    if is_path(name_or_path):
        return (beside or Path()) / name_or_path
    return find(kind, name_or_path, error=error).file()


def check_name(kind: Kind, name_or_path: str, own: str) -> None:
    """Refuse a plug-in's file that calls itself otherwise than the entry point that led to it.

    Args:
        kind: A kind whose entries are files.
        name_or_path: What was asked for; a path may lead to a file of any name.
        own: What the file calls itself.

    Raises:
        PluginError: If the two differ.
    """
    if not is_path(name_or_path) and own != name_or_path:
        raise PluginError(
            f"{find(kind, name_or_path)}: its file calls itself {own!r}; the entry point's name "
            "and the file's must be one"
        )
