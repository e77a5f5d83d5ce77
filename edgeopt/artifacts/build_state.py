"""A bundle's `state/`: programs, plan, statistics and contracts of each target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifacts.bundle import Bundle
from edgeopt.errors import BundleError
from edgeopt.files import read_json, to_json, write_bytes, write_text

if TYPE_CHECKING:
    from torch.export import ExportedProgram


_SITES = ".sites.json"


def write_state(
    folder: Path,
    plan_name: str,
    *,
    programs: Mapping[str, Any],
    plan: Any,
    statistics: Any,
    contracts: Sequence[Any],
) -> None:
    """Write `state/<plan>/`: programs without pickled members, plan, statistics, contracts."""
    import io

    import torch

    from edgeopt.ir.edges import LastingSites
    from edgeopt.ir.editor import without_traces

    place = folder / "state" / plan_name
    for method, exported in programs.items():
        if not _readable(exported):
            continue  # modules with odd names: verify says that there is no program
        buffer = io.BytesIO()
        torch.export.save(without_traces(exported), buffer)
        write_bytes(place / f"{method}.pt2", buffer.getvalue())
        write_text(place / f"{method}{_SITES}", to_json(LastingSites.of(exported.graph)))
    if plan is not None:
        write_text(place / "plan.json", to_json(plan))
    if statistics is not None:
        write_text(place / "statistics.json", to_json(statistics))
    write_text(place / "contracts.json", to_json([c.to_json() for c in contracts]))


def _readable(exported: ExportedProgram) -> bool:
    """Say whether `read_program` takes the program's names."""
    from edgeopt.ir import edges, program

    names = all(edges.is_plain(fqn) and "/" not in fqn for fqn in program.tensors(exported))
    return names and all(site.plain for _, site in edges.sites(exported.graph))


def read_contracts(
    bundle: Bundle, plan_name: str, *, without: Collection[str] = ()
) -> tuple[Any, ...]:
    """Read the contracts of one plan.

    Args:
        bundle: The bundle.
        plan_name: The plan's folder.
        without: Kinds to leave out, since nobody here knows them.

    Raises:
        BundleError: If they are missing or damaged.
    """
    import json

    from edgeopt.contracts.kinds import from_json

    path = bundle.file(f"state/{plan_name}/contracts.json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise BundleError(f"{path}: cannot be read: {failure}") from None
    if not isinstance(rows, list):
        raise BundleError(f"{path}: is no list of contracts")
    return from_json([row for row in rows if _kind(row) not in without])


def _kind(row: Any) -> str:
    return str(row.get("kind", "")) if isinstance(row, dict) else ""


def read_programs(bundle: Bundle, plan_name: str) -> dict[str, ExportedProgram]:
    """Read the programs of one plan, by method; none where the bundle was stripped of them.

    Raises:
        BundleError: If the sites are missing or damaged.
        ModelError: If a program is damaged, or holds what could run.
    """
    from edgeopt.ir.edges import LastingSites
    from edgeopt.ir.reading import read_program

    programs = {}
    folder = f"state/{plan_name}/"
    for name in sorted(entry.path for entry in bundle.manifest.files):
        method, suffix = name.removeprefix(folder).removesuffix(".pt2"), ".pt2"
        if name != f"{folder}{method}{suffix}" or "/" in method:
            continue
        programs[method] = read_program(bundle.file(name))
        path = bundle.file(f"{folder}{method}{_SITES}")
        sites = read_json(path, LastingSites)
        if sites.schema != 1 or not all(row.site.plain for row in sites.rows):
            raise BundleError(f"{path}: is damaged, or of a newer edgeopt")
        sites.restore(programs[method].graph)
    return programs
