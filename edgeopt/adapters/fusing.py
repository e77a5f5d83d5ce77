"""Fuse adapters into a module: match all, then edit; a refusal leaves the module as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from edgeopt.adapters.matching import Match, match
from edgeopt.adapters.peft.folder import Adapter
from edgeopt.adapters.summing import Part, fuse
from edgeopt.contracts.tied import tied_partners
from edgeopt.errors import AdapterError, ConfigError
from edgeopt.progress import Progress, no_progress


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What fusing did.

    Attributes:
        changes: Module or tensor FQN -> what happened, in words.
        skipped: Module or tensor FQN -> why nothing changed.
        untied: Pairs of weights that were one and are two now.
        warnings: What a user should read first.
        notes: Findings that belong to no single site.
    """

    changes: Mapping[str, str]
    skipped: Mapping[str, str]
    untied: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Edit:
    """One stored tensor's new value, and the names that then share it.

    Attributes:
        names: FQNs that get the value.
        parts: What each adapter does to it.
        fresh: Needs storage of its own, since other names keep the old value.
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    fresh: bool


def parse_spec(text: str) -> tuple[Path, float]:
    """Read `DIR` or `DIR@WEIGHT`.

    Raises:
        ConfigError: If the weight is no finite number.
    """
    folder, at, number = text.rpartition("@")
    if not at or Path(text).is_dir():
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not folder or not math.isfinite(weight):
        raise ConfigError(f"adapter {text!r}: takes DIR or DIR@WEIGHT, with a finite weight")
    return Path(folder), weight


def fuse_adapters(
    module: nn.Module,
    adapters: Sequence[tuple[Adapter, float]],
    progress: Progress = no_progress,
) -> Fusion:
    """Fuse adapters with their weights into a module's parameters, in place.

    Raises:
        AdapterError: If an adapter does not fit the module, two replace one module, or a result is
            not finite.
    """
    matches = [match(adapter, module, weight) for adapter, weight in adapters]
    _refuse_rivals([m for m, (_, weight) in zip(matches, adapters, strict=True) if weight])
    groups = _tie_groups(module)
    parts: dict[str, list[Part]] = {}
    for found, (_, weight) in zip(matches, adapters, strict=True):
        if weight:
            for fqn, part in _with_partners(found, groups).items():
                parts.setdefault(fqn, []).append(part)
    edits = _edits(module, parts, groups)
    ratios: dict[str, float] = {}
    for index, edit in enumerate(edits):
        progress("fuse adapters", index, len(edits))
        ratios |= dict.fromkeys(edit.names, _apply(module, edit))
    changes, skipped = _report(matches, adapters, parts, ratios)
    split = [(edit.names, groups[edit.names[0]] - set(edit.names)) for edit in edits if edit.fresh]
    pairs = {(min(a, b), max(a, b)) for names, others in split for a in names for b in others}
    return Fusion(
        changes=changes,
        skipped=skipped,
        untied=tuple(sorted(pairs)),
        warnings=tuple(_split(module, names, others) for names, others in split),
        notes=_notes(matches, adapters, parts),
    )


def _refuse_rivals(matches: Sequence[Match]) -> None:
    """Refuse two adapters that replace one module; biases are added up as task vectors."""
    seen: dict[str, Part] = {}
    for found in matches:
        for fqn, part in found.parts.items():
            if part.whole is None or fqn.endswith(".bias"):
                continue
            other = seen.setdefault(fqn, part)
            if other.whole is not None and not torch.equal(other.whole, part.whole):
                raise AdapterError(
                    f"{other.adapter} and {part.adapter} both replace {fqn}, by different values; "
                    "they cannot be fused together"
                )


# --- tied weights --------------------------------------------------------------------------------


def _tie_groups(module: nn.Module) -> dict[str, frozenset[str]]:
    """Return each tied parameter's FQN -> all names of its storage, its own among them."""
    return {name: frozenset((name, *others)) for name, others in tied_partners(module).items()}


def _with_partners(found: Match, groups: Mapping[str, frozenset[str]]) -> dict[str, Part]:
    """Give tied partners what PEFT loads in place into the storage they share."""
    parts = dict(found.parts)
    for fqn in sorted(found.in_place):
        part = found.parts[fqn]
        assert part.whole is not None
        for name in sorted(groups.get(fqn, frozenset()) - {fqn}):
            own = parts.get(name, Part(part.adapter, part.weight))
            if own.whole is None:
                parts[name] = own.upon(part.whole)
    return parts


def _edits(
    module: nn.Module,
    parts: Mapping[str, Sequence[Part]],
    groups: Mapping[str, frozenset[str]],
) -> list[_Edit]:
    """Return one edit for each value that results, so that equal partners stay tied."""
    edits: list[_Edit] = []
    done: set[str] = set()
    for fqn in sorted(parts):
        if fqn in done:
            continue
        group = groups.get(fqn, frozenset((fqn,)))
        alike: list[tuple[list[str], Sequence[Part]]] = []
        for name in sorted(group):
            own = parts.get(name, ())
            place = next((names for names, other in alike if _same(own, other)), None)
            if place is None:
                alike.append(([name], own))
            else:
                place.append(name)
        _refuse_one_owner(module, [names for names, _ in alike])
        keeper = next((names for names, own in alike if not own), alike[0][0])
        edits += [_Edit(tuple(n), tuple(own), n is not keeper) for n, own in alike if own]
        done |= group
    return edits


def _same(one: Sequence[Part], other: Sequence[Part]) -> bool:
    return len(one) == len(other) and all(a.same(b) for a, b in zip(one, other, strict=True))


def _refuse_one_owner(module: nn.Module, alike: Sequence[Sequence[str]]) -> None:
    """Two names of one module object cannot have two values."""
    owners: dict[int, str] = {}
    for names in alike:
        mine = {id(module.get_submodule(n.rpartition(".")[0])): n for n in names}
        for key, name in mine.items():
            if key in owners:
                raise AdapterError(
                    f"{owners[key]} and {name} are one module, and the adapters change one of them"
                )
        owners |= mine


def _apply(module: nn.Module, edit: _Edit) -> float:
    """Write one value; return how far it moved, relative to what was there."""
    with torch.no_grad():
        old = module.get_parameter(edit.names[0]) if not _is_buffer(module, edit.names[0]) else None
        tensor = old if old is not None else module.get_buffer(edit.names[0])
        value, ratio = fuse(tensor.detach(), edit.parts)
        if not edit.fresh:
            tensor.copy_(value)
            return ratio
        assert old is not None  # only parameters are tied
        fresh = nn.Parameter(value, requires_grad=old.requires_grad)
        for name in edit.names:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = fresh
    return ratio


def _is_buffer(module: nn.Module, fqn: str) -> bool:
    owner, _, leaf = fqn.rpartition(".")
    return leaf in module.get_submodule(owner)._buffers


# --- words ---------------------------------------------------------------------------------------


def _report(
    matches: Sequence[Match],
    adapters: Sequence[tuple[Adapter, float]],
    parts: Mapping[str, Sequence[Part]],
    ratios: Mapping[str, float],
) -> tuple[dict[str, str], dict[str, str]]:
    """Return changes and skipped: one line a module with factors, and one a tensor beside them."""
    words: dict[str, list[str]] = {}
    tensors: dict[str, set[str]] = {}
    told: set[str] = set()
    skipped: dict[str, str] = {}
    for found, (adapter, weight) in zip(matches, adapters, strict=True):
        for site, names in found.sites.items():
            if not weight:
                skipped.setdefault(site, f"{adapter.name} has weight 0")
                continue
            words.setdefault(site, []).append(f"{_called(adapter, weight)} {found.ranks[site]}")
            tensors.setdefault(site, set()).update(names)
            told.update(names)
        if not weight:
            for fqn in found.parts.keys() - {n for names in found.sites.values() for n in names}:
                skipped.setdefault(fqn, f"{adapter.name} has weight 0")
    given = {fqn for found in matches for fqn in found.parts}
    for fqn in parts.keys() - told:
        if fqn not in given and ratios[fqn] == 0:
            continue  # a tied partner, which was given what it had
        tensors[fqn] = {fqn}
        words[fqn] = [f"{p.adapter}: {p.words}" for p in parts[fqn]]
    changes: dict[str, str] = {}
    for site in sorted(words):
        ratio = max(ratios[name] for name in tensors[site])
        skipped.pop(site, None)
        if ratio == 0:
            skipped[site] = f"{'; '.join(words[site])}; that is what the model has"
        else:
            moved = "was zero" if math.isinf(ratio) else f"|change| / |weight| = {ratio:.3g}"
            changes[site] = f"{'; '.join(words[site])}; {moved}"
    return changes, skipped


def _split(module: nn.Module, names: Sequence[str], others: Iterable[str]) -> str:
    size = module.get_parameter(names[0]).nbytes
    mine, theirs = " and ".join(names), " and ".join(sorted(others))
    return (
        f"{mine} shared its weight with {theirs}; the adapters change them differently, as PEFT "
        f"does, so it has its own now: {size:,} bytes more"
    )


def _called(adapter: Adapter, weight: float) -> str:
    return f"{adapter.name}:" if weight == 1 else f"{adapter.name}, weight {weight:g}:"


def _notes(
    matches: Sequence[Match],
    adapters: Sequence[tuple[Adapter, float]],
    parts: Mapping[str, Sequence[Part]],
) -> tuple[str, ...]:
    notes = [note for found in matches for note in found.notes]
    for adapter, weight in adapters:
        if adapter.whole and weight not in (0, 1):
            notes.append(
                f"{adapter.name}: {len(adapter.whole)} tensors that it replaces are moved "
                f"{weight:g} of the way from the base's"
            )
    mixed: dict[str, list[str]] = {}
    for fqn, given in parts.items():
        multiplying = {d.family for part in given for d in part.deltas if d.multiplies}
        for family in multiplying if len(given) > 1 else ():
            mixed.setdefault(family, []).append(fqn)
    for family, fqns in sorted(mixed.items()):
        notes.append(
            f"{len(fqns)} weights have several adapters, one of them {family}, first {fqns[0]}: "
            "the changes that each makes alone are added, which PEFT does not compute"
        )
    return tuple(notes)
