"""`edgeopt bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson


def bench(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE|FILE", help="A bundle, or an .onnx or .pte file.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE|FILE", help="Measure the ratio to this one, interleaved."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads of the runtime.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples of each file.")
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Calls before the first sample of a session."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Measure latency on this machine.

    Two files are interleaved and their ratio is judged against the machine's own noise. Exits 3
    if the machine is too noisy to tell which of two is faster.
    """
    from edgeopt.api.bench import run_bench
    from edgeopt.cli.text import only_json, progress_line, show_json
    from edgeopt.devices.machine import machine
    from edgeopt.devices.profile import Protocol
    from edgeopt.errors import ConfigError
    from edgeopt.results.verdicts import Pace

    if threads is not None and threads > (cores := machine().cores):  # thousands exhaust memory
        raise ConfigError(f"--threads {threads}: this machine has {cores} cores")
    usual = Protocol()
    protocol = Protocol(
        threads=threads or usual.threads,
        warmup=usual.warmup if warmup is None else warmup,
        samples=samples or usual.samples,
        block=min(usual.block, samples or usual.samples),
    )
    with only_json(wanted=as_json), progress_line() as progress:
        result = run_bench(path, against, protocol, progress)
    if as_json:
        show_json(result)
    else:
        from edgeopt.cli.summary import show_bench

        show_bench(result)
    return 3 if any(c.pace is Pace.CANNOT_TELL for c in result.comparisons) else 0
