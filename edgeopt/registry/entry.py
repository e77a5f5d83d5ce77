"""What the registry holds."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from edgeopt.errors import PluginError


@dataclasses.dataclass(frozen=True)
class Distribution:
    """An installed package that adds to edgeopt.

    Attributes:
        name: Its name on the index.
        version: Its version.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name and where its class, function or file is.

    Attributes:
        noun: What it is, in one word or two: `pass`, `rule set`.
        name: The name that people write.
        place: `module:attribute`, or the path of a file that ships with edgeopt.
        plugin: The package that adds it; None where it ships with edgeopt.
    """

    noun: str
    name: str
    place: str
    plugin: Distribution | None = None

    def __str__(self) -> str:
        from_ = f" of {self.plugin} ({self.place})" if self.plugin is not None else ""
        return f"{self.noun} {self.name!r}{from_}"

    def load(self) -> Any:
        """Import the module and return the class or function.

        Raises:
            PluginError: If a plug-in's module does not import, or lacks the attribute.
        """
        module, _, attribute = self.place.partition(":")
        if self.plugin is None:
            return getattr(importlib.import_module(module), attribute)
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except (Exception, SystemExit) as failure:  # a plug-in's module may raise anything
            raise PluginError(f"{self}: does not import: {_told(failure)}") from failure
        return value

    def load_class(self, base: type[Any], attribute: str) -> type[Any]:
        """Return the class, checked: it derives from `base` and calls itself as the entry does.

        Args:
            base: The class that every entry of its kind derives from.
            attribute: The class variable that holds its name.

        Raises:
            PluginError: If it is anything else.
        """
        found = self.load()
        if not (isinstance(found, type) and issubclass(found, base)):
            raise PluginError(f"{self}: is no {base.__name__}")
        if getattr(found, attribute, None) != self.name:
            raise PluginError(
                f"{self}: calls itself {getattr(found, attribute, None)!r}; the entry point's name "
                f"and {found.__name__}.{attribute} must be one"
            )
        return found

    def file(self) -> Path:
        """Return the file's path; a plug-in's function is called for it.

        Raises:
            PluginError: If the function fails, or names no file.
        """
        if self.plugin is None:
            return Path(self.place)
        function = self.load()
        try:
            path = Path(function())
        except Exception as failure:  # a plug-in's function may raise anything
            raise PluginError(f"{self}: names no file: {_told(failure)}") from failure
        if not path.is_file():
            raise PluginError(f"{self}: {path} is not a file")
        return path


def _told(failure: BaseException) -> str:
    first = (str(failure).splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first}" if first else type(failure).__name__
