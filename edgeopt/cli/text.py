"""What is printed: plain text in a pipe, rich tables on a terminal, JSON with `--json`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from edgeopt.progress import Progress, no_progress
from edgeopt.report.printable import printable

_REFRESH_SECONDS = 0.1

STYLES = {
    "pass": "green",
    "fail": "bold red",
    "not measured": "yellow",
    "faster": "green",
    "same": "default",
    "slower": "red",
    "cannot tell": "yellow",
    "yes": "green",
    "no": "yellow",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a title.

    Attributes:
        title: Above the rows.
        columns: Headings; a leading `>` aligns the column right.
        rows: Cells as text; a line end shows on a terminal and is a space in a pipe.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def is_terminal() -> bool:
    """Tell whether standard output is a terminal."""
    return sys.stdout.isatty()


def show_line(text: str = "", style: str = "") -> None:
    """Print one line or paragraph on standard output."""
    if style and is_terminal():
        from rich.console import Console
        from rich.text import Text

        Console().print(Text(printable(text), style=style))
        return
    print(printable(text))


def show_table(table: Table) -> None:
    """Print a table; nothing where it has no rows."""
    if not table.rows:
        return
    if is_terminal():
        _show_rich(table)
    else:
        _show_plain(table)


def show_warning(text: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def _show_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(
        title=printable(table.title) or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in table.columns:
        right = column.startswith(">")
        grid.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in table.rows:
        grid.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    Console().print(grid)


def _show_plain(table: Table) -> None:
    heads = [column.removeprefix(">").replace("\n", " ") for column in table.columns]
    lines = [heads, *([" ".join(printable(c).split("\n")) for c in row] for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    if table.title:
        print(printable(table.title))
    for line in lines:
        cells = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())
    print()


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    from edgeopt.files import to_json

    sys.stdout.write(to_json(value))


@contextlib.contextmanager
def only_json(*, wanted: bool) -> Iterator[None]:
    """Send what libraries print on standard output to standard error, where JSON is wanted.

    The file descriptor moves too, for compilers and runtimes that print from C++.
    """
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr), _descriptor_moved():
        yield


@contextlib.contextmanager
def _descriptor_moved() -> Iterator[None]:
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def progress_line() -> Iterator[Progress]:
    """Yield a progress sink that draws one line on standard error, on a terminal only."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
    )
    # No refresh thread: it would run beside the latency loops and be measured with them.
    with Bar(
        *columns, console=Console(stderr=True), transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task("starting", total=None)
        drawn = 0.0

        def sink(what: str, done: int, total: int | None) -> None:
            nonlocal drawn
            progress.update(task, description=printable(what), completed=done, total=total)
            if time.monotonic() - drawn > _REFRESH_SECONDS:
                progress.refresh()
                drawn = time.monotonic()

        yield sink
