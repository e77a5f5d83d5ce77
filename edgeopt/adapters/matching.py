"""Match an adapter to a model: which tensor each of its parts changes. Nothing is edited here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from edgeopt.adapters.deltas.delta import Delta
from edgeopt.adapters.deltas.families import deltas_of
from edgeopt.adapters.family import Trained
from edgeopt.adapters.peft.folder import COUNTER, Adapter
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.adapters.summing import Part
from edgeopt.analysis.layers import CONVOLUTIONS, Kind, Layer, find_layers
from edgeopt.analysis.selection import nearest_name
from edgeopt.errors import AdapterError

_ADAPTED = (Kind.LINEAR, Kind.CONV1D, Kind.CONVOLUTION, Kind.EMBEDDING)
_EMBEDDING_NAMES = (
    "embed_tokens",
    "lm_head",
)  # what PEFT saves beside an adapter of its own accord


@dataclasses.dataclass(frozen=True)
class Match:
    """What one adapter does to one model.

    Attributes:
        parts: Tensor FQN -> what the adapter does to it.
        sites: Module FQN -> the tensors that its low-rank update changes, the weight first.
        ranks: Module FQN -> rank and scale in words.
        in_place: Tensor FQNs whose tied partners PEFT changes with them.
        notes: What a user should know.
    """

    parts: Mapping[str, Part]
    sites: Mapping[str, tuple[str, ...]]
    ranks: Mapping[str, str]
    in_place: frozenset[str]
    notes: tuple[str, ...]


def match(adapter: Adapter, module: nn.Module, weight: float) -> Match:
    """Find the tensors that an adapter changes, and check that they are those of its base.

    Names may stand under a prefix, as where a wrapper holds the model.

    Raises:
        AdapterError: If a module or tensor of the adapter is missing or has another shape, if the
            file lacks one that its configuration names, or if a layer cannot take the update.
    """
    names = {name: child for name, child in module.named_modules(remove_duplicate=False) if name}
    prefix = _prefix(adapter, names)
    own = {n.removeprefix(prefix): c for n, c in names.items() if n.startswith(prefix)}
    for name in adapter.factors:
        _refuse_attention(adapter, name, own)
    layers = {layer.module: layer for layer in find_layers(module, _ADAPTED)}
    _check_targets(adapter, own, layers)
    parts: dict[str, Part] = {}
    sites: dict[str, tuple[str, ...]] = {}
    ranks: dict[str, str] = {}
    for name, factors in adapter.factors.items():
        _refuse_second_name(adapter, name, own)
        child = own[name]
        found = _deltas(adapter, factors, child, layers.get(child))
        for leaf, delta in found.items():
            parts[f"{prefix}{name}.{leaf}"] = Part(adapter.name, weight, (delta,))
        sites[f"{prefix}{name}"] = tuple(f"{prefix}{name}.{leaf}" for leaf in found)
        ranks[f"{prefix}{name}"] = ", with ".join(delta.words for delta in found.values())
    _check_whole(adapter, own)
    tensors = module.state_dict(keep_vars=True)
    for name, value in adapter.whole.items():
        fqn = prefix + name
        _check_tensor(adapter, name, value, fqn, tensors)
        parts[fqn] = parts.get(fqn, Part(adapter.name, weight)).upon(value)
    in_place = frozenset(prefix + name for name in adapter.in_place)
    return Match(parts, sites, ranks, in_place, _notes(adapter, own, prefix))


# --- names ---------------------------------------------------------------------------------------


def _prefix(adapter: Adapter, names: Mapping[str, nn.Module]) -> str:
    """Return what stands before the adapter's names; empty where they are the model's own."""
    wanted = sorted({*adapter.factors, *(n.rpartition(".")[0] for n in adapter.whole)} - {""})
    some = {wanted[0], wanted[len(wanted) // 2], wanted[-1]} if wanted else set()
    ends = {n.removesuffix(one) for one in some for n in names if n.endswith(f".{one}")}
    missing = {p: [n for n in wanted if p + n not in names] for p in ("", *sorted(ends))}
    fitting = [prefix for prefix, lacking in missing.items() if not lacking]
    if "" in fitting:
        return ""
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AdapterError(
            f"{adapter.folder}: fits the model at {fitting[0][:-1]} and at {fitting[1][:-1]}; load "
            "the part that it is for"
        )
    prefix, lacking = min(missing.items(), key=lambda item: len(item[1]))
    first = prefix + lacking[0]
    raise AdapterError(
        f"{adapter.folder}: module {first!r} is not in the model ({len(lacking)} of {len(wanted)} "
        f"are missing){nearest_name(first, names)}{_trained_on(adapter)}"
    )


def _trained_on(adapter: Adapter) -> str:
    base = adapter.config.base_model_name_or_path
    return f"; the adapter names {base!r} as its base" if base else ""


def _refuse_second_name(adapter: Adapter, name: str, own: Mapping[str, nn.Module]) -> None:
    """PEFT adapts a module under one of its names only, which one weight cannot express."""
    other = next((n for n, child in own.items() if child is own[name] and n != name), None)
    if other is not None:
        raise AdapterError(
            f"{adapter.folder}: {name} and {other} are one module; PEFT adapts it under one name "
            "only, which cannot be fused"
        )


def _refuse_attention(adapter: Adapter, name: str, own: Mapping[str, nn.Module]) -> None:
    """Refuse torch's own attention, which calls none of its parts.

    PEFT 0.21 adds the update of its output projection twice, in training as in merging, so what
    such an adapter means depends on the version that trained it.
    """
    for place in (name, name.rpartition(".")[0]):
        if isinstance(own.get(place), nn.MultiheadAttention):
            raise AdapterError(
                f"{adapter.folder}: {place} is an nn.MultiheadAttention, whose output projection "
                "PEFT changes twice; it cannot be fused"
            )


def _check_targets(
    adapter: Adapter, own: Mapping[str, nn.Module], layers: Mapping[nn.Module, Layer]
) -> None:
    """Hold the file against the modules that the configuration names."""
    config, given = adapter.config, adapter.factors
    if not config.knows_targets:
        return
    wanted = {
        name
        for name, child in own.items()
        if config.targets(name) and not _refusal(child, layers.get(child))
    }
    for name in sorted(wanted - set(given)):
        raise AdapterError(
            f"{adapter.folder}: the configuration targets {name}, and the file has no factors of it"
        )
    places = {name: _place(layers.get(own[name])) for name in given}
    trained_as_one = given if config.ensure_weight_tying else ()
    tied = {places[name] for name in trained_as_one if config.targets(name)}
    for name in given:
        if name not in wanted and not config.targets(name) and places[name] not in tied:
            raise AdapterError(
                f"{adapter.folder}: has factors of {name}, which its configuration does not target"
            )


def _check_whole(adapter: Adapter, own: Mapping[str, nn.Module]) -> None:
    """Hold the tensors that replace the base's against what the configuration says is saved."""
    config = adapter.config
    copied = [name for name in own if config.copies(name)]
    expected = {f"{name}.{leaf}" for name in copied for leaf in own[name].state_dict()}
    expected = {name for name in expected if not name.endswith(COUNTER)}
    if config.bias == "all":
        expected |= {f"{n}.bias" for n, child in own.items() if _has(child, "bias")}
    elif config.bias == "lora_only":
        expected |= {f"{n}.bias" for n in adapter.factors if _has(own[n], "bias")}
    for name in sorted(expected - set(adapter.whole)):
        raise AdapterError(
            f"{adapter.folder}: {name} is missing, but the configuration says that it was saved"
        )
    for name in sorted(set(adapter.whole) - expected):
        owner, _, leaf = name.rpartition(".")
        embedding = isinstance(own.get(owner), nn.Embedding)
        embedding |= owner.rpartition(".")[2] in _EMBEDDING_NAMES
        if leaf != "weight" or not (embedding or owner in adapter.factors):
            raise AdapterError(
                f"{adapter.folder}: holds {name}, which its configuration does not speak of"
            )


def _has(module: nn.Module, leaf: str) -> bool:
    return isinstance(module._parameters.get(leaf), Tensor)


def _check_tensor(
    adapter: Adapter, name: str, value: Tensor, fqn: str, tensors: Mapping[str, Tensor]
) -> None:
    if fqn not in tensors:
        raise AdapterError(
            f"{adapter.folder}: tensor {name!r} is not in the model{nearest_name(fqn, tensors)}"
            f"{_trained_on(adapter)}"
        )
    if value.shape != tensors[fqn].shape:
        hint = "; was the vocabulary resized?" if value.dim() == 2 else ""
        raise AdapterError(
            f"{adapter.folder}: {name} is {list(value.shape)}, the model's is "
            f"{list(tensors[fqn].shape)}{hint}{_trained_on(adapter)}"
        )


# --- layers --------------------------------------------------------------------------------------


def _refusal(child: nn.Module, layer: Layer | None) -> str:
    """Return why PEFT's LoRA cannot change a module, or its change be fused; or empty."""
    if nn.utils.parametrize.is_parametrized(child):
        return "is parametrized"
    if layer is None:
        return f"is a {type(child).__name__}, which PEFT does not adapt"
    if isinstance(child, nn.Embedding) and child.max_norm is not None:
        return "renormalizes its rows as it reads them (max_norm)"
    if isinstance(child, CONVOLUTIONS):
        if child.groups != 1:
            return f"has {child.groups} groups, and the update is dense over all channels"
        if any(step != 1 for step in child.dilation):
            return "is dilated, and PEFT's branch is not"
        if child.padding_mode != "zeros":
            return f"pads by {child.padding_mode!r}, and PEFT's branch by zeros"
    weight = child._parameters.get(layer.leaf)
    if weight is None:
        return "has no weight of its own"
    if not weight.is_floating_point():
        return f"stores {weight.dtype}: fuse before quantizing"
    return ""


def _place(layer: Layer | None) -> int | None:
    weight = None if layer is None else layer.module._parameters.get(layer.leaf)
    return None if weight is None else weight.data_ptr()


def _deltas(
    adapter: Adapter, factors: LoraFactors | Trained, child: nn.Module, layer: Layer | None
) -> dict[str, Delta]:
    """Return what the factors do to each tensor of one module, the weight first."""
    where = f"{adapter.folder}: {factors.module}"
    if reason := _refusal(child, layer):
        raise AdapterError(f"{where}: {reason}")
    assert layer is not None  # that is a reason
    return deltas_of(factors, layer, where)


def _notes(adapter: Adapter, own: Mapping[str, nn.Module], prefix: str) -> tuple[str, ...]:
    notes = []
    if not adapter.config.knows_targets:
        notes.append(f"{adapter.name}: which modules it targets is told by its file alone")
    if prefix:
        notes.append(f"{adapter.name}: its names stand under {prefix[:-1]}")
    for end in adapter.config.saved_whole:
        if not any(name.endswith(end) for name in own):
            notes.append(f"{adapter.name}: modules_to_save {end!r} names no module of the model")
    if adapter.unread:
        notes.append(
            f"{adapter.name}: {len(adapter.unread)} tensors are not read, as PEFT computes without "
            f"them, first {adapter.unread[0]}"
        )
    return tuple(notes)
