"""What the registry holds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeOptError, PluginError
from edgeopt.registry.kinds import Kind


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
        kind: What it is.
        name: The name that people write.
        place: `module:attribute`, or the path of a file that ships with edgeopt.
        plugin: The package that adds it; None where it ships with edgeopt.
    """

    kind: Kind
    name: str
    place: str
    plugin: Distribution | None = None

    def __str__(self) -> str:
        from_ = f" of {self.plugin} ({self.place})" if self.plugin is not None else ""
        return f"{self.kind.noun} {self.name!r}{from_}"

    @property
    def module(self) -> str:
        """The dotted name of the module; for entries that are no file of edgeopt's."""
        return self.place.partition(":")[0]

    def load(self) -> Any:
        """Import the module and return the class or function.

        Raises:
            PluginError: If a plug-in's module does not import, or lacks the attribute.
        """
        attribute = self.place.partition(":")[2]
        if self.plugin is None:
            return getattr(importlib.import_module(self.module), attribute)
        try:
            value: Any = importlib.import_module(self.module)
        except (Exception, SystemExit) as failure:  # a plug-in's module may raise anything
            raise PluginError(f"{self}: does not import: {_told(failure)}") from failure
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise PluginError(f"{self}: there is no {attribute or 'class or function named'}")
            value = getattr(value, part)
        return value

    def load_class(
        self, base: type[Any], attribute: str, *, needs: Sequence[str] = ()
    ) -> type[Any]:
        """Return the class, checked: it derives from `base` and calls itself as the entry does.

        Args:
            base: The class that every entry of its kind derives from.
            attribute: The class variable that holds its name.
            needs: What it must have beside what `base` declares abstract.

        Raises:
            PluginError: If it is anything else.
        """
        found = self.load()
        if not (isinstance(found, type) and issubclass(found, base)):
            what = "class" if base is object else base.__name__
            raise PluginError(f"{self}: is no {what}")
        abstract: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
        lacks = sorted({*abstract, *(name for name in needs if not hasattr(found, name))})
        if lacks:
            raise PluginError(f"{self}: lacks {', '.join(lacks)}")
        own = getattr(found, attribute, None)
        if own != self.name:
            raise PluginError(
                f"{self}: calls itself {own!r}; the entry point's name and "
                f"{found.__name__}.{attribute} must be one"
            )
        return found

    def make(self, base: type[Any], attribute: str, *, needs: Sequence[str] = ()) -> Any:
        """Return an object of the class, which takes no arguments; as `load_class`.

        Raises:
            PluginError: As `load_class`, or if a plug-in's class cannot be called.
        """
        found = self.load_class(base, attribute, needs=needs)
        with self.guarded("cannot be made"):
            return found()

    def file(self) -> Path:
        """Return the file's path; a plug-in's function is called for it.

        Raises:
            PluginError: If the function fails, or names no file.
        """
        if self.plugin is None:
            return Path(self.place)
        function = self.load()
        with self.guarded("names no file"):
            path = Path(function())
        if not path.is_file():
            raise PluginError(f"{self}: {path} is not a file")
        return path

    @contextlib.contextmanager
    def guarded(self, what: str = "fails") -> Iterator[None]:
        """Run a plug-in's code: whatever it raises becomes one line that names the plug-in.

        edgeopt's own errors pass, and so does everything that edgeopt's own code raises.

        Args:
            what: What that means.

        Raises:
            PluginError: If the plug-in raises anything else.
        """
        try:
            yield
        except EdgeOptError:
            raise
        except Exception as failure:
            if self.plugin is None:
                raise
            raise PluginError(f"{self}: {what}: {_told(failure)}") from failure


def _told(failure: BaseException) -> str:
    first = (str(failure).splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first}" if first else type(failure).__name__
