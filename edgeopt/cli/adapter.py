"""`edgeopt adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.api.adapter import AdapterDescription, FusedModel

adapter = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@adapter.callback()
def _group() -> None:
    """Read and fuse adapters (PEFT LoRA folders).

    Each command takes --json.
    """


@adapter.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A PEFT LoRA folder.")],
    as_json: AsJson = False,
) -> int:
    """Show what an adapter holds: method, ranks, modules, options."""
    from edgeopt.api.adapter import run_inspect
    from edgeopt.cli.text import show_json

    found = run_inspect(folder)
    if as_json:
        show_json(found)
    else:
        _show_description(found)
    return 0


@adapter.command()
def fuse(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `edgeopt build` takes it.")],
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="DIR[@WEIGHT]", help="PEFT LoRA folders; a weight is 1 if none."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where model.safetensors and fused.json go.")
    ],
    as_json: AsJson = False,
) -> int:
    """Fuse adapters into a model and write its weights.

    The file holds the model's state dict; a tensor that two names share stands under the first.
    """
    from edgeopt.api.adapter import run_fuse
    from edgeopt.cli.text import only_json, progress_line, show_json

    with only_json(wanted=as_json), progress_line() as progress:
        result = run_fuse(model, adapters, out, progress)
    if as_json:
        show_json(result)
    else:
        _show_fused(result, out)
    return 0


def _show_description(found: AdapterDescription) -> None:
    from edgeopt.cli.text import Table, show_line, show_table

    ranks = sorted({m.rank for m in found.modules if m.rank is not None})
    text = ", ".join(map(str, ranks))
    show_line(f"{found.name}  {found.method}{f', rank {text}' if ranks else ''}", "bold")
    show_line(
        f"{found.parameters:,} parameters in {len(found.modules)} modules and {len(found.whole)} "
        f"tensors replaced whole; {found.size_bytes:,} bytes; PEFT {found.peft or 'unknown'}"
    )
    show_line(f"Base: {found.base or 'not named'}. Task: {found.task or 'not named'}.")
    show_line()
    modules = tuple(
        (
            m.module,
            m.kind or "-",
            _number(m.rank),
            _number(m.scale),
            _shape(m.a) or "-",
            _shape(m.b) or "-",
            _number(m.norm, 4),
        )
        for m in found.modules
    )
    heads = ("module", "kind", ">rank", ">scale", "A", "B", ">|scale B A|")
    show_table(Table("Modules", heads, modules))
    whole = tuple((t.name, _shape(t.shape), t.dtype) for t in found.whole)
    show_table(Table("Replaced whole", ("tensor", "shape", "type"), whole))
    options = tuple((name, _value(value)) for name, value in found.options.items())
    show_table(Table("Options", ("option", "value"), options))
    show_table(Table("Set, and changes no weight", ("option", "why"), tuple(found.ignored.items())))
    show_table(
        Table("Saved, and PEFT computes without", ("tensor",), tuple((n,) for n in found.unread))
    )


def _show_fused(result: FusedModel, out: Path) -> None:
    from edgeopt.cli.text import Table, show_line, show_table, show_warning
    from edgeopt.pipeline.compiler_pass import WARNING

    names = ", ".join(f"{a.name} (weight {a.weight:g})" for a in result.adapters)
    show_line(f"{result.model} with {names}", "bold")
    for note in result.notes:
        if note.startswith(WARNING):
            show_warning(note.removeprefix(WARNING))
        else:
            show_line(note)
    show_line()
    show_table(Table("Changed", ("site", "how"), tuple(result.changes.items())))
    show_table(Table("Skipped", ("site", "why"), tuple(result.skipped.items())))
    if result.drift_db is not None:
        show_line(f"outputs against the base's on its example: {result.drift_db:.1f} dB")
    show_line(f"written  {out / result.file.path} ({result.file.size_bytes:,} bytes)")


def _number(value: float | None, digits: int = 6) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _value(value: object) -> str:
    import json

    from edgeopt.files import to_plain

    return json.dumps(to_plain(value), ensure_ascii=False)
