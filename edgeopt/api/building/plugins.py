"""Which plug-ins a build uses, and whether those of its lock are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeopt.api.building.branches import Branch
from edgeopt.api.building.job import Job
from edgeopt.api.building.lock import Lock
from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.targets import Chosen
from edgeopt.devices.rules import load_rules
from edgeopt.errors import PluginError
from edgeopt.limits.limit import Limit
from edgeopt.registry import kinds
from edgeopt.registry.entry import Entry
from edgeopt.registry.kinds import Kind
from edgeopt.registry.lookup import find
from edgeopt.registry.plugins import Plugin, named, standing, used


def entries_of(
    options: BuildOptions,
    job: Job,
    chosen: Chosen,
    limits: Sequence[Limit],
    families: Sequence[str],
) -> tuple[Entry, ...]:
    """Return what a build names that plug-ins add, before it runs.

    Args:
        options: As given.
        job: What is compiled.
        chosen: What is written.
        limits: What is judged.
        families: Of the adapters that were fused.
    """
    names = dict.fromkeys(_names(options, job, chosen, limits))
    names |= dict.fromkeys((kinds.ADAPTERS, family) for family in families)
    return tuple(entry for kind, name in names for entry in named(kind, name))


def _names(
    options: BuildOptions, job: Job, chosen: Chosen, limits: Sequence[Limit]
) -> Iterator[tuple[Kind, str]]:
    yield kinds.PROFILES, options.profile
    yield kinds.RECIPES, options.recipe or job.profile.default_recipe
    for step in job.recipe.passes:
        yield kinds.PASSES, step.name
    for target in chosen.all:
        yield kinds.RULES, target.rules
        rules = load_rules(target.rules)
        for name in (*rules.prepare, *rules.legalize):
            yield kinds.PASSES, name
        yield kinds.EXPORTERS, target.format
        yield kinds.INSPECTORS, target.format
        yield kinds.RUNNERS, target.runtime
    for extra in chosen.extra:
        yield kinds.EXPORTERS, extra.format
        yield kinds.INSPECTORS, extra.format
    for limit in limits:
        yield kinds.QUANTITIES, limit.name
    if isinstance(options.model, str):
        yield kinds.MODELS, options.model.partition(":")[0]


def plugins_of(asked: Sequence[Entry], branches: Sequence[Branch]) -> tuple[Plugin, ...]:
    """Return the plug-ins that a build used: what it named, and the contracts that passes left.

    Raises:
        PluginError: If a contract is of a kind that nothing adds: its bundle could not be verified.
    """
    left = {contract.kind for branch in branches for contract in branch.state.contracts}
    found = [find(kinds.CONTRACTS, kind, error=PluginError) for kind in sorted(left)]
    return used((*asked, *found))


def check_plugins(lock: Lock) -> tuple[str, ...]:
    """Look for the plug-ins of a lock; say which are not as they were.

    Raises:
        PluginError: If one is not installed.
    """
    found = [standing(then) for then in lock.plugins]
    missing = next((here for here in found if not here.installed), None)
    if missing is not None:
        raise PluginError(f"the lock cannot be met: {missing.message}")
    return tuple(
        f"not the plug-ins of the lock, so bytes may differ: {here.message}"
        for here in found
        if here.message
    )
