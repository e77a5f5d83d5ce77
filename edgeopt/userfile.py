"""Call a function of the user's own Python file: `FILE.py:FUNCTION`.

Naming a file this way runs its code, with all that it may do; nothing else that edgeopt reads is
ever executed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeOptError, nearest
from edgeopt.files import sha256


def split_spec(spec: str) -> tuple[Path, str] | None:
    """Return file and function of `FILE.py:FUNCTION`, or None for any other form."""
    file, colon, function = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        return None
    return Path(file), function


def load_function(file: Path, function: str, *, error: type[EdgeOptError]) -> Callable[..., Any]:
    """Import a file under a private name and return one of its functions.

    While the file is imported and whenever the function runs, the file's folder stands first in
    `sys.path`, so that it may import its neighbours.

    Raises:
        EdgeOptError: As `error`, if the file is missing, does not import, or has no such function.
    """
    if not file.is_file():
        raise error(f"{file}: no such file; give FILE.py:FUNCTION")
    path = file.resolve()
    # by content, so that a bundle's bytes do not depend on where the file lies
    name = f"edgeopt_user_{path.stem}_{sha256(path)[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and torch look a class's module up by name.
    sys.modules[name] = module
    try:
        with _user_code(path, f"{file}: the import", error):
            spec.loader.exec_module(module)
    except EdgeOptError:
        sys.modules.pop(name, None)
        raise
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise error(f"{file}: no function {function!r}{nearest(function, own)}")
    return _Guarded(found, path, f"{file}:{function}", error)


class _Guarded:
    """A user's function whose failures come out as one line; attributes are the function's."""

    def __init__(
        self, function: Callable[..., Any], path: Path, what: str, error: type[EdgeOptError]
    ) -> None:
        self._function, self._path, self._what, self._error = function, path, what, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _user_code(self._path, self._what, self._error):
            return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


@contextlib.contextmanager
def _user_code(path: Path, what: str, error: type[EdgeOptError]) -> Iterator[None]:
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    except EdgeOptError:
        raise
    except (Exception, SystemExit) as failure:
        text = " ".join(str(failure).split())[:300]
        raise error(f"{what} raised {type(failure).__name__}: {text}") from failure
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
