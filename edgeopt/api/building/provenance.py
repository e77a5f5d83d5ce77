"""What a build is made of: its parts' hashes, its tools' versions, and the key of it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.api.building.job import Job
from edgeopt.api.building.lock import Lock, differences, locked_options
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.formats import exporter_for
from edgeopt.data import Samples
from edgeopt.devices.machine import has_vnni
from edgeopt.devices.profile import DeviceProfile, Target
from edgeopt.devices.rules import load_rules
from edgeopt.errors import CheckFailed
from edgeopt.ir.digests import key_of
from edgeopt.registry.entry import Entry
from edgeopt.registry.lookup import is_path
from edgeopt.registry.plugins import used
from edgeopt.version import tool_versions


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a build is made of.

    Attributes:
        hashes: Part -> SHA-256.
        tools: Tool -> version.
        machine: What of the machine decides bytes.
        asked: What the build names that plug-ins add.
        build_key: Hash of options, parts, tools, machine and plug-ins.
    """

    hashes: Mapping[str, str]
    tools: Mapping[str, str]
    machine: Mapping[str, str]
    asked: tuple[Entry, ...]
    build_key: str


def provenance_of(
    options: BuildOptions,
    job: Job,
    targets: Sequence[Target],
    evaluation: Samples | None,
    more: Mapping[str, str],
    asked: Sequence[Entry],
) -> Provenance:
    """Return what a build is made of.

    Args:
        options: As given.
        job: What is compiled.
        targets: For what, stand-ins among them.
        evaluation: What judges, or None.
        more: Hashes of further parts (the adapters).
        asked: What the build names that plug-ins add.
    """
    hashes = {**_hashes(job, targets, evaluation), **more}
    tools = _tools() | _compilers(targets)
    machine = {"vnni": str(has_vnni()).lower()}
    parts: dict[str, Any] = {
        "options": {**locked_options(options), **_without_paths(options, job)},
        "hashes": hashes,
        "tools": tools,
        "machine": machine,
    }
    plugins = used(asked)
    if plugins:
        parts["plugins"] = [[p.package, p.version, p.sha256] for p in plugins]
    return Provenance(hashes, tools, machine, tuple(asked), key_of(parts))


def _without_paths(options: BuildOptions, job: Job) -> dict[str, str]:
    """Return the own names of a profile and a recipe that were given by path.

    What their files hold is hashed beside.
    """
    given = {"profile": (options.profile, job.profile.name)}
    if options.recipe is not None:
        given["recipe"] = (options.recipe, job.recipe.name)
    return {option: name for option, (text, name) in given.items() if is_path(text)}


def _tools() -> dict[str, str]:
    """Return the versions of what decides an artifact's bytes."""
    import platform

    names = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")
    return {"python": platform.python_version(), **tool_versions(*names)}


def check_lock(lock: Lock, made_of: Provenance) -> tuple[str, ...]:
    """Hold what a build is made of against a lock; say which tools are other versions.

    Raises:
        CheckFailed: If a part is not what was locked.
    """
    changed, other_tools = differences(lock, made_of.hashes, made_of.tools)
    if changed:
        raise CheckFailed(
            f"the lock cannot be met: {', '.join(changed)} changed since it was written"
        )
    if other_tools:
        return (f"not the tools of the lock, so bytes may differ: {'; '.join(other_tools)}",)
    return ()


def _hashes(job: Job, targets: Sequence[Target], evaluation: Samples | None) -> dict[str, str]:
    modules = [f"{name} {type(m).__qualname__}" for name, m in job.loaded.module.named_modules()]
    rules = [load_rules(t.rules) for t in targets]
    profile = {"profile": _by_name(job.profile), "rules": rules}
    recipe: dict[str, Any] = {"passes": [[p.name, p.options()] for p in job.passes]}
    if job.recipe.keep_float:
        recipe["keep_float"] = job.recipe.keep_float
    found = {
        "weights": job.reference.digest,
        "structure": key_of({"modules": modules}),
        "recipe": key_of(recipe),
        "profile": key_of(profile),
    }
    if job.calibration is not None:
        found["calibration"] = job.calibration.digest()
    elif evaluation is not None:  # golden vectors are taken from it
        found["evaluation"] = evaluation.digest()
    return found


def _by_name(profile: DeviceProfile) -> DeviceProfile:
    """Return a profile whose rule sets are their names, wherever the files lie."""

    def by_name(targets: Sequence[Target]) -> tuple[Target, ...]:
        return tuple(dataclasses.replace(t, rules=load_rules(t.rules).name) for t in targets)

    return dataclasses.replace(
        profile, targets=by_name(profile.targets), stand_ins=by_name(profile.stand_ins)
    )


def _compilers(targets: Sequence[Target]) -> dict[str, str]:
    """Return the versions of compilers whose output is part of the bundle."""
    formats = dict.fromkeys(target.format for target in targets)
    return {
        name: version
        for format_ in formats
        for name, version in exporter_for(format_).compilers().items()
    }
