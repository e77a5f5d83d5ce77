"""Adapters: describe a folder, write fused weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.adapters.deltas.families import family
from edgeopt.adapters.deltas.low_rank import LowRank
from edgeopt.adapters.family import Trained
from edgeopt.adapters.fusing import parse_spec
from edgeopt.adapters.peft.folder import WEIGHTS, Adapter, read_adapter
from edgeopt.adapters.peft.lora import LoraFactors
from edgeopt.api.building.adapters import adapter_hashes, fuse
from edgeopt.artifacts.artifact import FileEntry
from edgeopt.devices.profile import load_profile
from edgeopt.errors import AdapterError, BundleError
from edgeopt.files import atomic_folder, to_json, write_text
from edgeopt.ir.digests import digest as weights_digest
from edgeopt.models.load import load_model
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.weights import check_finite
from edgeopt.progress import Progress, no_progress
from edgeopt.results.verdicts import SCHEMA_VERSION
from edgeopt.version import __version__

FUSED = "fused.json"


MODEL = "model.safetensors"


# --- inspect -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AdapterModule:
    """What an adapter trained for one module.

    Attributes:
        module: The module's name in the base.
        kind: `embedding`, `convolution` or `linear`, as far as the file tells; empty where the
            family is a plug-in's, which has none of what follows but the parameters.
        rank: The rank.
        scale: What `B A` is multiplied by.
        a: Shape of A.
        b: Shape of B.
        parameters: Numbers of both, of B's bias and of the magnitude.
        norm: `||scale * B A||`, Frobenius.
    """

    module: str
    kind: str
    rank: int | None
    scale: float | None
    a: tuple[int, ...]
    b: tuple[int, ...]
    parameters: int
    norm: float | None


@dataclasses.dataclass(frozen=True)
class AdapterTensor:
    """A tensor that an adapter replaces whole."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class AdapterDescription:
    """What an adapter's folder holds.

    Attributes:
        name: The folder's name.
        folder: The folder as given.
        method: `LoRA`, `rsLoRA`, `DoRA` or `DoRA, rank-stabilized`; a plug-in's `peft_type`.
        base: The base model as the trainer named it, or None.
        task: The task type, or None.
        peft: Version of PEFT that wrote it, or None.
        parameters: Numbers that it holds.
        size_bytes: Bytes of its weights' file.
        modules: What has factors.
        whole: What is replaced whole: trained biases, modules saved whole, embeddings.
        options: Options of the configuration that are not PEFT's defaults.
        ignored: Options that are set and change no weight -> why.
        unread: Tensors that PEFT saves and computes without.
        sha256: File -> SHA-256.
        schema: Version.
    """

    name: str
    folder: str
    method: str
    base: str | None
    task: str | None
    peft: str | None
    parameters: int
    size_bytes: int
    modules: tuple[AdapterModule, ...]
    whole: tuple[AdapterTensor, ...]
    options: Mapping[str, Any]
    ignored: Mapping[str, str]
    unread: tuple[str, ...]
    sha256: Mapping[str, str]
    schema: int = SCHEMA_VERSION


def run_inspect(folder: Path) -> AdapterDescription:
    """Describe a PEFT LoRA folder.

    Raises:
        AdapterError: If it cannot be read, or holds what cannot be fused.
    """
    adapter = read_adapter(folder)
    config = adapter.config
    about = ("peft_type", "base_model_name_or_path", "task_type", "peft_version", "use_dora")
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in about and getattr(config, field.name) not in (field.default, {}, ())
    }
    modules = tuple(_module(factors) for factors in adapter.factors.values())
    return AdapterDescription(
        name=adapter.name,
        folder=str(folder),
        method=_method(adapter),
        base=config.base_model_name_or_path,
        task=config.task_type,
        peft=config.peft_version,
        parameters=sum(m.parameters for m in modules)
        + sum(value.numel() for value in adapter.whole.values()),
        size_bytes=(folder / WEIGHTS).stat().st_size,
        modules=modules,
        whole=tuple(
            AdapterTensor(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in sorted(adapter.whole.items())
        ),
        options=options,
        ignored=adapter.ignored,
        unread=adapter.unread,
        sha256=adapter.sha256,
    )


def _method(adapter: Adapter) -> str:
    if adapter.config.peft_type != "LORA":
        return adapter.config.peft_type
    if adapter.config.use_dora:
        return "DoRA, rank-stabilized" if adapter.config.use_rslora else "DoRA"
    return "rsLoRA" if adapter.config.use_rslora else "LoRA"


def _module(factors: LoraFactors | Trained) -> AdapterModule:
    if isinstance(factors, Trained):
        count = sum(value.numel() for value in factors.tensors.values())
        return AdapterModule(factors.module, "", None, None, (), (), count, None)
    # without the model, the file alone tells how the layer stores its weight
    deltas = family(factors).read(factors, transposed=factors.embedding)
    layer = "convolution" if factors.a.dim() > 2 else "linear"
    return AdapterModule(
        module=factors.module,
        kind="embedding" if factors.embedding else layer,
        rank=factors.rank,
        scale=factors.scale,
        a=tuple(factors.a.shape),
        b=tuple(factors.b.shape),
        parameters=sum(delta.parameters for delta in deltas.values()),
        norm=LowRank.update(factors, transposed=factors.embedding).norm,
    )


# --- fuse ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FusedAdapter:
    """One adapter of a fused model.

    Attributes:
        name: The folder's name.
        weight: Its weight.
        sha256: File -> SHA-256.
    """

    name: str
    weight: float
    sha256: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class FusedModel:
    """What `edgeopt adapter fuse` wrote; also `fused.json`, where the weights come from.

    Attributes:
        edgeopt: Version.
        model: The base as named.
        base: SHA-256 of the base's tensors.
        fused: SHA-256 of the fused model's tensors.
        adapters: What was fused, in order.
        file: The weights.
        changes: Module or tensor -> what happened.
        skipped: Module or tensor -> why nothing changed.
        notes: Findings that belong to no single site.
        drift_db: SNR of the outputs against the base's on the example, in dB.
        schema: Version.
    """

    edgeopt: str
    model: str
    base: str
    fused: str
    adapters: tuple[FusedAdapter, ...]
    file: FileEntry
    changes: Mapping[str, str]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    drift_db: float | None
    schema: int = SCHEMA_VERSION


def run_fuse(
    model: str | LoadedModel, adapters: Sequence[str], out: Path, progress: Progress = no_progress
) -> FusedModel:
    """Fuse adapters into a model and write its weights and where they come from.

    A tensor that several names share is written once, under the first of them.

    Raises:
        EdgeOptError: If the model or an adapter cannot be read, they do not fit, or `out` cannot
            be written; nothing is left half-written.
    """
    if not adapters:
        raise AdapterError("adapter fuse: name at least one adapter")
    loaded = load_model(model) if isinstance(model, str) else model
    check_finite(loaded.module)
    fused = fuse(loaded, adapters, load_profile("host"), progress=progress)
    record = fused.history[-1]
    specs = [parse_spec(text) for text in adapters]
    with atomic_folder(out, kind="fused model", marker=FUSED) as folder:
        _write_weights(fused.loaded, folder / MODEL)
        path = folder / MODEL
        result = FusedModel(
            edgeopt=__version__,
            model=loaded.source or loaded.name,
            base=weights_digest(loaded.module),
            fused=weights_digest(fused.loaded.module),
            adapters=tuple(FusedAdapter(d.resolve().name, w, adapter_hashes(d)) for d, w in specs),
            file=FileEntry.of(path),
            changes=record.changes,
            skipped=record.skipped,
            notes=record.notes,
            drift_db=record.drift_db,
        )
        write_text(folder / FUSED, to_json(result))
    return result


def _write_weights(loaded: LoadedModel, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    seen = set()
    for name, value in sorted(loaded.module.state_dict().items()):
        place = (value.data_ptr(), tuple(value.shape))
        if value.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = value.contiguous()
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as failure:
        raise BundleError(f"{path}: cannot be written: {failure}") from None
