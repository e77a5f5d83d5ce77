"""Run the command line: one line for every error, and the exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import typer

from edgeopt.cli.app import app
from edgeopt.errors import EdgeOptError
from edgeopt.report.printable import printable

STOPPED = 2
"""Interrupted or terminated: nothing was written, as with bad input."""
_TYPER_INTERRUPTED = 130


class _Terminated(SystemExit):
    """SIGTERM, as an exception that runs every clean-up on its way."""


# typer carries its own click since 0.2x and imported it before; this is the root in both.
_ParseError: type[Exception] = next(
    type_ for type_ in typer.BadParameter.__mro__ if type_.__name__ == "ClickException"
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    traceback = _takes_traceback(given)
    try:
        with _terminating(), _quiet_libraries():
            code = _dispatch(given)
        sys.stdout.flush()
    except BrokenPipeError:
        return _pipe_closed()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # as typer passes it on
            return _pipe_closed()
        if isinstance(stop, _Terminated):
            _say("terminated; nothing was written")
        raise
    except _ParseError as failure:
        return _complain(_usage(failure), 2, failure, traceback=traceback)
    except EdgeOptError as failure:
        return _complain(str(failure), failure.exit_code, failure, traceback=traceback)
    except (KeyboardInterrupt, typer.Abort) as failure:
        return _complain("interrupted; nothing was written", STOPPED, failure, traceback=False)
    except Exception as failure:
        text = f"{type(failure).__name__}: {failure}"
        hint = "" if traceback else " (this is a bug; run again with --traceback to see where)"
        return _complain(text, 2, failure, traceback=traceback, hint=hint)
    if code == _TYPER_INTERRUPTED:  # typer turned the KeyboardInterrupt into an exit code
        _say("interrupted; nothing was written")
        return STOPPED
    return code


def _pipe_closed() -> int:
    """End well: the reader (`head`) has seen enough, and the final flush must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _dispatch(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    result = command.main(args=arguments, prog_name="edgeopt", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _takes_traceback(arguments: list[str]) -> bool:
    """Take `--traceback` out of the arguments wherever it stands, so that all commands have it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = "--traceback" in arguments[:end]
    if found:
        arguments[:end] = [word for word in arguments[:end] if word != "--traceback"]
    return found or os.environ.get("EDGEOPT_TRACEBACK", "") not in ("", "0")


def _usage(failure: Exception) -> str:
    message: str = failure.format_message() if hasattr(failure, "format_message") else str(failure)
    if possible := getattr(failure, "possibilities", None):
        message = f"{getattr(failure, 'message', message)} (did you mean {sorted(possible)[0]!r}?)"
    context = getattr(failure, "ctx", None)
    path = context.command_path if context is not None else "edgeopt"
    message = message.replace("Value error, ", "")  # pydantic's, which says nothing
    return f"{message or 'a command is missing'} (see `{path} --help`)"


def _complain(
    text: str, code: int, failure: BaseException, *, traceback: bool, hint: str = ""
) -> int:
    if traceback:
        import traceback as module

        module.print_exception(failure, file=sys.stderr)
    _say(f"{text}{hint}")
    return code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"edgeopt: {' '.join(printable(text).split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hide deprecations inside libraries, which no user can act on; `python -W` shows them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a stopped build removes its half-written folder."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated(STOPPED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
