"""Adapters that a build fuses before anything else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.adapters.fusing import parse_spec
from edgeopt.adapters.peft.config import read_type
from edgeopt.adapters.peft.folder import CONFIG, WEIGHTS
from edgeopt.devices.profile import DeviceProfile
from edgeopt.errors import ConfigError, PipelineError
from edgeopt.files import sha256
from edgeopt.ir.digests import key_of
from edgeopt.models.loaded import LoadedModel
from edgeopt.passes.fuse.fuse_lora import FuseLora, FuseLoraConfig
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState, PassRecord
from edgeopt.progress import Progress, no_progress

_NAME_LENGTH = 100


@dataclasses.dataclass(frozen=True)
class Fused:
    """A model with its adapters, as a build goes on with it.

    Attributes:
        loaded: The model; the one given where there are no adapters.
        history: What ran.
        names: The adapters' names, with their weight where it is not 1.
        hashes: What the build key holds of them.
        families: Their families.
    """

    loaded: LoadedModel
    history: tuple[PassRecord, ...] = ()
    names: tuple[str, ...] = ()
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    families: tuple[str, ...] = ()


def adapters_of(
    given: Sequence[str], passes: Sequence[Pass[Any]]
) -> tuple[tuple[str, ...], tuple[Pass[Any], ...]]:
    """Return all adapters, those that a recipe names before those of the options, and the rest.

    A recipe's `fuse_lora` is taken out of its passes, since it runs before the reference is taken.

    Raises:
        PipelineError: If a recipe fuses after another pass: the reference would lack the adapter.
    """
    front = [p for p in passes if isinstance(p, FuseLora)]
    if any(not isinstance(p, FuseLora) for p in passes[: len(front)]):
        raise PipelineError(
            "fuse_lora must stand first, so that the reference is the adapted model"
        )
    if any(not p.config.adapters for p in front):
        raise ConfigError("fuse_lora: the recipe names no adapter; set fuse_lora.adapters")
    named = [text for p in front for text in p.config.adapters]
    return (*named, *given), tuple(passes[len(front) :])


def fuse(
    loaded: LoadedModel,
    adapters: Sequence[str],
    profile: DeviceProfile,
    *,
    verify: str = "full",
    progress: Progress = no_progress,
) -> Fused:
    """Fuse adapters into a copy of a model, through the pass and the verifier.

    Raises:
        EdgeOptError: If an adapter cannot be read, or is not one of this model.
    """
    if not adapters:
        return Fused(loaded)
    pass_ = FuseLora(FuseLoraConfig(tuple(adapters)))
    context = PassContext(
        profile=profile,
        target=profile.targets[0],
        example_args=loaded.example_args,
        example_kwargs=loaded.example_kwargs,
        progress=progress,
    )
    state = Pipeline((pass_,)).run(ModelState(module=loaded.module), context, verify=verify)
    specs = [parse_spec(text) for text in adapters]
    names = tuple(_called(folder, weight) for folder, weight in specs)
    files = [[adapter_hashes(folder), weight] for folder, weight in specs]
    called = re.sub(r"[^\w.-]+", "-", "-".join((loaded.name, *names)))[:_NAME_LENGTH]
    return Fused(
        loaded=dataclasses.replace(
            loaded,
            module=state.carrier_module,
            name=called,
            source=f"{loaded.source or loaded.name} with {', '.join(names)}",
        ),
        history=state.history,
        names=names,
        hashes={"adapters": key_of({"adapters": files})},
        families=tuple(str(read_type(folder / CONFIG)) for folder, _ in specs),
    )


def _called(folder: Path, weight: float) -> str:
    name = folder.resolve().name
    return name if weight == 1 else f"{name}@{weight:g}"


def adapter_hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in (CONFIG, WEIGHTS)}
