"""Small models in the NPU's form, written once for all tests of a session."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target
from edgeopt.devices.rules import load_rules
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.qnn.exporter import QnnExporter
from edgeopt.ir import program
from edgeopt.passes.quantize.plan import PlanConfig, PlanQuantization
from edgeopt.pipeline.state import ModelState
from tests.small_models import context, run

RULES = load_rules("qnn")


@dataclasses.dataclass(frozen=True)
class Written:
    """An artifact and what it was written from."""

    state: ModelState
    exported: ExportedProgram
    artifact: Artifact
    folder: Path

    @property
    def files(self) -> list[Path]:
        return [self.folder / entry.path for entry in self.artifact.files]


def quantized(module: nn.Module, *inputs: Tensor, bits: int = 0) -> ModelState:
    """Return a model by QNN's rules, legalized."""
    plan = PlanQuantization(PlanConfig(activation_bits=bits))
    names = ("capture", *RULES.prepare, plan, "calibrate", "quantize", *RULES.legalize)
    return run(module, context(*inputs, rules="qnn"), *names)


def request(state: ModelState, *inputs: Tensor, hexagon: str = "v75") -> ExportRequest:
    """Return what to write: a batch of 1."""
    exported = program.retrace(state.carrier_programs["forward"], inputs, {})
    target = Target("qnn", "qnn", "qnn", "qnn", options={"opset": 21, "hexagon": hexagon})
    (output,) = (n for n in exported.graph.nodes if n.op == "output")
    outputs = tuple(f"out{i}" for i in range(len(output.args[0])))
    names = tuple(f"in{i}" for i in range(len(inputs)))
    return ExportRequest("qnn", {"forward": exported}, target, "int8", "qnn", names, outputs)


def written(
    module: nn.Module, x: Tensor, folder: Path, *, bits: int = 0, hexagon: str = "v75"
) -> Written:
    """Quantize, export and compile a model of one input."""
    state = quantized(module, x, bits=bits)
    order = request(state, x[:1], hexagon=hexagon)
    return Written(state, order.programs["forward"], QnnExporter().export(order, folder), folder)
