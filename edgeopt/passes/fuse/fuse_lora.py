"""Fuse LoRA and DoRA adapters into the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeopt.adapters.fusing import fuse_adapters, parse_spec
from edgeopt.adapters.peft.folder import read_adapter
from edgeopt.contracts.contract import Contract
from edgeopt.contracts.tied import Tied
from edgeopt.errors import ConfigError, PreconditionError
from edgeopt.pipeline.compiler_pass import WARNING, Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Stage


@dataclasses.dataclass(frozen=True)
class FuseLoraConfig:
    """Options of `fuse_lora`.

    Attributes:
        adapters: PEFT folders, each `DIR` or `DIR@WEIGHT` (1 where none is given).
    """

    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[Path] = set()
        for text in self.adapters:
            folder = parse_spec(text)[0].resolve()
            if folder in seen:
                raise ConfigError(f"adapter {folder} is given twice; give it once, with a weight")
            seen.add(folder)


class FuseLora(Pass[FuseLoraConfig]):
    """Add `weight * scale * B A` of each adapter to the weights it was trained for.

    Reads Hugging Face PEFT folders. LoRA, rsLoRA and DoRA; Linear, Embedding, convolutions and
    Transformers' `Conv1D`; trained biases and modules saved whole. The sum is computed in float64
    and rounded once; several adapters add the changes that each makes alone. An adapter of another
    base is refused before anything is edited.

    PEFT adapts a layer and leaves a layer tied to it as it was, so fusing into one side of a tie
    makes it two weights; that is reported. A build runs this pass before the float reference is
    taken (`--adapter`), so accuracy is judged against the adapted model.

    Before: `y = W x + g B (A x)`. After: `y = W' x`, with `W' = W + g B A`, under DoRA
    `W' = m (W + g B A) / ||W + g B A||` by output (arXiv 2106.09685, 2312.03732, 2402.09353).
    """

    name = "fuse_lora"
    config_type = FuseLoraConfig
    stage = Stage.MODULE
    effect = Effect.APPROXIMATE

    def requires(self, state: ModelState, ctx: PassContext) -> None:
        if not self.config.adapters:
            raise PreconditionError("fuse_lora: no adapter is given; name at least one PEFT folder")

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        module = state.carrier_module
        specs = [parse_spec(text) for text in self.config.adapters]
        adapters = [(read_adapter(folder), weight) for folder, weight in specs]
        fusion = fuse_adapters(module, adapters, ctx.progress)
        gone = {frozenset(pair) for pair in fusion.untied}
        after = dataclasses.replace(
            state, contracts=tuple(c for c in state.contracts if not _untied(c, gone))
        )
        notes = (*(f"{WARNING}{text}" for text in fusion.warnings), *fusion.notes)
        return PassResult(after, fusion.changes, fusion.skipped, notes, untied=fusion.untied)


def _untied(contract: Contract, gone: set[frozenset[str]]) -> bool:
    return isinstance(contract, Tied) and frozenset(contract.sites) in gone
