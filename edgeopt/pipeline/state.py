"""The value that flows through a pipeline, its stage and phase, and the record of each pass."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from edgeopt.contracts.contract import Contract
    from edgeopt.quant.plan import Plan
    from edgeopt.quant.statistics import Statistics


class Stage(enum.IntEnum):
    """What carries the model. Going back is impossible."""

    MODULE = 0
    GRAPH = 1


class Phase(enum.IntEnum):
    """How far quantization has gone on a GRAPH."""

    FLOAT = 0
    PLANNED = 1
    QUANTIZED = 2


class Effect(enum.Enum):
    """What a pass does to the outputs."""

    EQUIVALENT = "equivalent"  # equal up to float rounding; the verifier checks it
    APPROXIMATE = "approximate"  # they change; the drift is measured and recorded


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """One line of history: what ran, with what, what it touched.

    Attributes:
        changes: Site -> what happened, in words.
        skipped: Site -> why not.
        drift_db: SNR of the outputs against the state before, in dB, where measured.
        notes: Other findings worth telling (saturation, a range that more samples would move).
    """

    name: str
    config: Mapping[str, Any]
    changes: Mapping[str, str]
    skipped: Mapping[str, str]
    drift_db: float | None
    seconds: float
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelState:
    """Exactly one carrier, and what is known about it. Immutable: passes return a new one.

    Attributes:
        module: The carrier at MODULE.
        programs: The carrier from GRAPH on: named programs over one set of weights (`forward`,
            or `prefill` and `decode`).
        contracts: What later passes must keep.
        plan: Which edges are to be quantized, and how.
        statistics: What calibration measured.
        history: What ran, in order.
    """

    module: nn.Module | None = None
    programs: Mapping[str, ExportedProgram] | None = None
    stage: Stage = Stage.MODULE
    phase: Phase = Phase.FLOAT
    contracts: tuple[Contract, ...] = ()
    plan: Plan | None = None
    statistics: Statistics | None = None
    history: tuple[PassRecord, ...] = ()

    def __post_init__(self) -> None:
        if (self.module is None) == (self.programs is None):
            raise PipelineError("a state has exactly one carrier: a module, or programs")
        if (self.stage is Stage.MODULE) != (self.module is not None):
            raise PipelineError(f"stage {self.stage.name} does not fit the carrier")
        if self.stage is Stage.MODULE and self.phase is not Phase.FLOAT:
            raise PipelineError(f"a module has no phase {self.phase.name}")

    @property
    def carrier_module(self) -> nn.Module:
        """The module; only at MODULE."""
        if self.module is None:
            raise PipelineError("the state carries programs, not a module")
        return self.module

    @property
    def carrier_programs(self) -> Mapping[str, ExportedProgram]:
        """The programs; only from GRAPH on."""
        if self.programs is None:
            raise PipelineError("the state carries a module, not programs; capture it first")
        return self.programs

    def with_programs(self, programs: Mapping[str, ExportedProgram], **changes: Any) -> ModelState:
        """Return a state over other programs."""
        return dataclasses.replace(self, module=None, programs=dict(programs), **changes)
