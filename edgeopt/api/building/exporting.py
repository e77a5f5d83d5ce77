"""Write one file of a state, with the inputs and outputs that the user asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch.export import ExportedProgram

from edgeopt.api.building.job import Job
from edgeopt.api.building.shapes import dimensions, shaped_once
from edgeopt.api.formats import exporter_for
from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.program_interface import Interface, with_codes, with_pixels
from edgeopt.devices.profile import Target
from edgeopt.errors import ConfigError, ExportError
from edgeopt.exporters.base import Exporter, ExportRequest
from edgeopt.ir.calls import FORWARD
from edgeopt.pipeline.state import ModelState
from edgeopt.registry.kinds import EXPORTERS
from edgeopt.registry.lookup import find


def export(
    job: Job,
    state: ModelState,
    target: Target,
    folder: Path,
    *,
    name: str,
    precision: str,
    build_key: str,
) -> Artifact:
    """Write one file of a state for a target.

    Raises:
        ExportError: If the exporter cannot take the program.
    """
    exporter = exporter_for(target.format)
    shaped = {  # further methods have their examples' shapes since capture
        m: p if m in job.loaded.methods else shaped_once(job, p)
        for m, p in state.carrier_programs.items()
    }
    faces = _interfaces(job, shaped, exporter, precision)
    programs = {method: face.exported for method, face in faces.items()}
    request = ExportRequest(
        name=name,
        programs=programs,
        target=target,
        precision=precision,
        plan=state.plan.rules if state.plan is not None and precision == "int8" else "",
        input_names=job.loaded.input_names,
        output_names=job.loaded.output_names,
        input_roles=job.loaded.input_roles,
        build_key=build_key,
        dynamic=job.dynamic,
        dimensions=_dimension_names(job, state),
        further=job.loaded.methods,
    )
    source = find(EXPORTERS, target.format)
    with source.guarded():
        problems = exporter.unsupported(request)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ExportError(f"target {name}: {problems[0]}{more}")
    with source.guarded():
        artifact = exporter.export(request, folder)
    artifact = faces[FORWARD].described(artifact)
    open_ = {d for m in artifact.methods for spec in m.inputs for d in spec.shape}
    lengths = {name: size for name, size in job.lengths.items() if name in open_}
    return dataclasses.replace(artifact, lengths=lengths)


def _interfaces(
    job: Job, programs: Mapping[str, ExportedProgram], exporter: Exporter, precision: str
) -> dict[str, Interface]:
    """Give the programs the inputs and outputs that the user asked for."""
    faces = {method: Interface(exported) for method, exported in programs.items()}
    wanted = job.pixels is not None or job.quantized_io
    if not wanted:
        return faces
    if not exporter.own_interface:
        note = f"inputs and outputs are floats: {exporter.format} files take no other form here"
        return {m: dataclasses.replace(face, notes=(note,)) for m, face in faces.items()}
    if len(faces) != 1:
        raise ConfigError("--input and --quantized-io: the model has several methods")
    ((method, face),) = faces.items()
    if job.quantized_io and not job.quantizes:
        raise ConfigError(f"--quantized-io: recipe {job.recipe.name} quantizes nothing")
    if job.pixels is not None:
        roles = job.loaded.input_roles
        position = roles.index("image") if "image" in roles else 0
        face = with_pixels(face, position, job.pixels, integer=exporter.integer_pixels)
        if roles.count("image") > 1:
            note = "only the first picture is taken as pixels; the others stay normalized floats"
            face = dataclasses.replace(face, notes=(*face.notes, note))
    if job.quantized_io and precision == "int8":
        face = with_codes(face)
    return {method: face}


def _dimension_names(job: Job, state: ModelState) -> tuple[dict[int, str], ...]:
    captured = state.carrier_programs[FORWARD]
    return tuple(
        {axis: found.name for axis, found in leaf.items() if found.name in job.dynamic}
        for leaf in dimensions(job, captured)
    )
