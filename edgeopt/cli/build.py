"""`edgeopt build`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import AsJson
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.api.building.options import BuildOptions
    from edgeopt.results.reports import BuildReport


class VerifyLevel(enum.StrEnum):
    """How much is checked after every pass."""

    FULL = "full"
    EDITED = "edited"
    OFF = "off"


def build(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="zoo:NAME, FILE.py:FACTORY, hf:DIR, timm:NAME@WEIGHTS or FILE.pt2.",
        ),
    ] = "zoo:vit",
    profile: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The device (see `edgeopt profiles`).")
    ] = "orin",
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="See `edgeopt recipes`; else the profile's."),
    ] = None,
    calib: Annotated[
        str | None, typer.Option(metavar="DATA", help="Calibration data; else the model's own.")
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="DATA", help="Evaluation data; else the model's own."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="How answers are judged, e.g. top1.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Only this format; onnx:float16 adds a file. May be repeated.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PASS.OPTION=VALUE", help="An option of a pass; may be repeated."
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="DIR[@WEIGHT]",
            help="A PEFT LoRA folder to fuse first; may be repeated.",
        ),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave these sites in float; may be repeated."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Batch size of the files.")
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A dimension that stays dynamic; may be repeated."),
    ] = None,
    input_form: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="float|uint8-nhwc",
            help="uint8-nhwc: the file takes 8-bit pixels and normalizes them.",
        ),
    ] = "float",
    quantized_io: Annotated[
        bool, typer.Option("--quantized-io", help="The file takes and gives codes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The bundle's folder; else dist/MODEL-PROFILE."),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="'NAME<=NUMBER'", help="A bound (or >=); may be repeated."),
    ] = None,
    require_measured: Annotated[
        bool, typer.Option("--require-measured", help="Exit 3 where a limit was not measured.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of every random draw.")] = 0,
    calib_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Calibration samples.")
    ] = 64,
    eval_samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluation samples; else all.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Latency samples of each file.")
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Measure latency.")
    ] = True,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Rank layers by drift.")] = True,
    verify: Annotated[
        VerifyLevel, typer.Option(metavar="full|edited|off", help="What is checked after a pass.")
    ] = VerifyLevel.FULL,
    lock: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Build again from an edgeopt.lock; takes only --out."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compile a model for a device, run it, judge it.

    Writes a bundle: the model files, golden vectors, a report and a lock. Exits 1 if a measured
    limit fails.
    """
    from edgeopt.api.build import run_build
    from edgeopt.api.building.options import BuildOptions
    from edgeopt.cli.text import only_json, progress_line, show_json

    if lock is not None:
        options = _from_lock(context, lock, out)
    else:
        options = BuildOptions(
            model=model,
            profile=profile,
            recipe=recipe,
            calib=calib,
            eval=evaluation,
            metric=metric,
            formats=tuple(formats or ()),
            settings=tuple(settings or ()),
            keep_float=tuple(keep_float or ()),
            batch=batch,
            dynamic=tuple(dynamic or ()),
            input_form=input_form,
            quantized_io=quantized_io,
            out=out,
            limits=tuple(limits or ()),
            adapters=tuple(adapters or ()),
            seed=seed,
            calib_samples=calib_samples,
            eval_samples=eval_samples,
            samples=samples,
            latency=latency,
            drift=drift,
            verify=verify.value,
        )
    with only_json(wanted=as_json), progress_line() as progress:
        outcome = run_build(options, progress=progress)
    if as_json:
        show_json(outcome.report)
    else:
        from edgeopt.cli.summary import show_build

        show_build(outcome.report, outcome.bundle_path)
    return exit_code(outcome.report, require_measured=require_measured)


def exit_code(report: BuildReport, *, require_measured: bool = False) -> int:
    """Return 1 if a limit failed, 3 if one was not measured and had to be, else 0."""
    from edgeopt.results.verdicts import Verdict

    if report.verdict is Verdict.FAIL:
        return 1
    return 3 if require_measured and report.verdict is Verdict.NOT_MEASURED else 0


def _from_lock(context: typer.Context, lock: Path, out: Path | None) -> BuildOptions:
    from edgeopt.api.building.lock import options_from_lock

    free = {"lock", "out", "as_json", "require_measured"}
    for name in sorted(context.params):
        source: Any = context.get_parameter_source(name)
        if name not in free and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--lock holds every option; {name} cannot be given beside it")
    return options_from_lock(lock, out)
