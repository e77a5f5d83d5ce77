"""Match an adapter to a model: which tensor each of its parts changes. Nothing is edited here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from edgeopt.adapters.deltas.delta import Part
from edgeopt.adapters.peft.folder import COUNTER, Adapter, LoraFactors
from edgeopt.errors import AdapterError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
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


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The tensors of a module that a low-rank update changes, or why it cannot take one."""

    weight: str = ""
    bias: str = ""
    transposed: bool = False
    refusal: str = ""


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
    _check_targets(adapter, own)
    parts: dict[str, Part] = {}
    sites: dict[str, tuple[str, ...]] = {}
    ranks: dict[str, str] = {}
    for name, factors in adapter.factors.items():
        _refuse_second_name(adapter, name, own)
        found = _low_rank(adapter, factors, own[name], weight)
        for leaf, part in found.items():
            parts[f"{prefix}{name}.{leaf}"] = part
        sites[f"{prefix}{name}"] = tuple(f"{prefix}{name}.{leaf}" for leaf in found)
        ranks[f"{prefix}{name}"] = _describe(factors)
    _check_whole(adapter, own)
    tensors = module.state_dict(keep_vars=True)
    for name, value in adapter.whole.items():
        fqn = prefix + name
        _check_tensor(adapter, name, value, fqn, tensors)
        parts[fqn] = dataclasses.replace(parts.get(fqn, Part(adapter.name, weight)), whole=value)
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
    raise AdapterError(
        f"{adapter.folder}: module {prefix + lacking[0]!r} is not in the model ({len(lacking)} of "
        f"{len(wanted)} are missing){_near(prefix + lacking[0], names)}{_trained_on(adapter)}"
    )


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.3)
    return f"; the nearest is {close[0]!r}" if close else ""


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


def _check_targets(adapter: Adapter, own: Mapping[str, nn.Module]) -> None:
    """Hold the file against the modules that the configuration names."""
    config, given = adapter.config, adapter.factors
    if not config.knows_targets:
        return
    wanted = {n for n, child in own.items() if config.targets(n) and not _layer(child).refusal}
    for name in sorted(wanted - set(given)):
        raise AdapterError(
            f"{adapter.folder}: the configuration targets {name}, and the file has no factors of it"
        )
    trained_as_one = given if config.ensure_weight_tying else ()
    tied = {_place(own[n]) for n in trained_as_one if config.targets(n)}
    for name in given:
        if name not in wanted and not config.targets(name) and _place(own[name]) not in tied:
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
            f"{adapter.folder}: tensor {name!r} is not in the model{_near(fqn, tensors)}"
            f"{_trained_on(adapter)}"
        )
    if value.shape != tensors[fqn].shape:
        hint = "; was the vocabulary resized?" if value.dim() == 2 else ""
        raise AdapterError(
            f"{adapter.folder}: {name} is {list(value.shape)}, the model's is "
            f"{list(tensors[fqn].shape)}{hint}{_trained_on(adapter)}"
        )


# --- layers --------------------------------------------------------------------------------------


def _layer(child: nn.Module) -> _Layer:
    """Return which tensors of a module PEFT's LoRA changes; the type decides the layout."""
    if nn.utils.parametrize.is_parametrized(child):
        return _Layer(refusal="is parametrized")
    if isinstance(child, nn.Embedding):
        if child.max_norm is not None:
            return _Layer(refusal="renormalizes its rows as it reads them (max_norm)")
        return _checked(child, _Layer("weight", transposed=True))
    if isinstance(child, _CONVOLUTIONS):
        return _checked(child, _Layer("weight", "bias", refusal=_convolution_refusal(child)))
    if isinstance(child, nn.Linear):
        return _checked(child, _Layer("weight", "bias"))
    weight = getattr(child, "weight", None)
    if type(child).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2:
        return _checked(child, _Layer("weight", "bias", transposed=True))  # stores [in, out]
    return _Layer(refusal=f"is a {type(child).__name__}, which PEFT does not adapt")


def _convolution_refusal(child: nn.Module) -> str:
    assert isinstance(child, _CONVOLUTIONS)
    if child.groups != 1:
        return f"has {child.groups} groups, and the update is dense over all channels"
    if any(step != 1 for step in child.dilation):
        return "is dilated, and PEFT's branch is not"
    if child.padding_mode != "zeros":
        return f"pads by {child.padding_mode!r}, and PEFT's branch by zeros"
    return ""


def _checked(child: nn.Module, layer: _Layer) -> _Layer:
    weight = child._parameters.get(layer.weight)
    if layer.refusal or weight is None:
        return dataclasses.replace(layer, refusal=layer.refusal or "has no weight of its own")
    if not weight.is_floating_point():
        return dataclasses.replace(layer, refusal=f"stores {weight.dtype}: fuse before quantizing")
    bias = layer.bias if _has(child, layer.bias) else ""
    return dataclasses.replace(layer, bias=bias)


def _place(child: nn.Module) -> int | None:
    weight = child._parameters.get(_layer(child).weight)
    return None if weight is None else weight.data_ptr()


def _low_rank(
    adapter: Adapter, factors: LoraFactors, child: nn.Module, weight: float
) -> dict[str, Part]:
    """Return the parts of one module: its weight, and its bias where B has one."""
    where = f"{adapter.folder}: {factors.module}"
    layer = _layer(child)
    if layer.refusal:
        raise AdapterError(f"{where}: {layer.refusal}")
    if factors.embedding != isinstance(child, nn.Embedding):
        raise AdapterError(
            f"{where}: the factors are {'' if factors.embedding else 'not '}those of an embedding, "
            f"and the model has a {type(child).__name__}"
        )
    own = child.get_parameter(layer.weight)
    shape = (*reversed(own.shape),) if layer.transposed else tuple(own.shape)
    _check_shape(where, "A", factors.a, (factors.rank, *shape[1:]), own)
    ones = (1,) * (len(shape) - 2)
    _check_shape(where, "B", factors.b, (shape[0], factors.rank, *ones), own)
    magnitude = factors.magnitude
    if magnitude is not None:
        expected = (shape[0],) if not ones else (1, shape[0], *ones)
        _check_shape(where, "the magnitude", magnitude, expected, own)
        magnitude = magnitude.flatten()
    part = Part(
        adapter=adapter.name,
        weight=weight,
        b=factors.b.flatten(1),
        a=factors.a.flatten(1),
        scale=factors.scale,
        magnitude=magnitude,
        transposed=layer.transposed,
    )
    if factors.b_bias is None:
        return {layer.weight: part}
    if not layer.bias:
        raise AdapterError(f"{where}: B has a bias, and the layer has none to add it to")
    _check_shape(where, "B's bias", factors.b_bias, (shape[0],), own)
    added = factors.scale * factors.b_bias.double()
    return {layer.weight: part, layer.bias: Part(adapter.name, weight, added=added)}


def _check_shape(
    where: str, what: str, value: Tensor, expected: Sequence[int], weight: Tensor
) -> None:
    if tuple(value.shape) != tuple(expected):
        raise AdapterError(
            f"{where}: {what} is {list(value.shape)}, the model's weight {list(weight.shape)} "
            f"needs {list(expected)}; is it another base?"
        )


def _describe(factors: LoraFactors) -> str:
    kind = "DoRA" if factors.magnitude is not None else "LoRA"
    bias = ", with B's bias" if factors.b_bias is not None else ""
    return f"{kind} of rank {factors.rank}, scale {factors.scale:.6g}{bias}"


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
