"""The command line: parses, prints and sets the exit code. Everything else is the Python API."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; None: those of the process.
    """
    from edgeopt.cli.run import run

    return run(arguments)
