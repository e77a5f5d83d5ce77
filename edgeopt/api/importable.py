"""Which packages import, asked in a process of its own beside the caller's work.

An import may end the process (a library built for another CPU); what was to come after it is then
asked in the next one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Self

CHILD = "edgeopt.api.importable"
SECONDS = 120
LOOKED_FOR = {"timm": ("torch", "torchvision")}
"""What is only looked for, with what it needs: its import takes two seconds, and where that fails,
its loader helps it (`edgeopt.models.torchvision_operators`)."""
MARK = "edgeopt-import:"
"""Begins an answer: packages may print when they are imported."""


class Imports:
    """Imports that run in a child from now on; `problems` waits for them.

    Args:
        modules: What to import, in order.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = list(modules)
        self._child = _start(self._modules)

    def problems(self) -> dict[str, str]:
        """Return module -> why it does not import, in one line, or empty."""
        found: dict[str, str] = {}
        while True:
            found |= _read(self._child)
            rest = self._modules[len(found) :]
            if not rest:
                return found
            code = self._child.returncode
            how = f"signal {-code}" if code < 0 else f"code {code}"
            found[rest[0]] = f"does not import: it ends the process ({how})"
            self._child = _start(rest[1:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._child.kill()
        self._child.wait()


def problem(module: str) -> str:
    """Import a module here; return why it does not, in one line, or empty."""
    if find_spec(module) is None:
        return "not installed"
    if module in LOOKED_FOR:
        lacks = [name for name in LOOKED_FOR[module] if find_spec(name) is None]
        return f"needs {lacks[0]}, which is not installed" if lacks else ""
    try:
        import_module(module)
    except Exception as failure:  # a broken install raises anything: OSError, RuntimeError, ...
        first = (str(failure).splitlines() or [""])[0]
        return f"does not import: {type(failure).__name__}: {first}"
    return ""


def _start(modules: Sequence[str]) -> subprocess.Popen[str]:
    from edgeopt.exporters import child

    return subprocess.Popen(
        [sys.executable, "-m", CHILD, *modules],
        env=child.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _read(process: subprocess.Popen[str]) -> dict[str, str]:
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    pairs = (line.split("\t", 1) for line in said.splitlines() if line.startswith(MARK))
    return {module.removeprefix(MARK): reason for module, reason in pairs}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{MARK}{name}\t{problem(name)}", flush=True)
