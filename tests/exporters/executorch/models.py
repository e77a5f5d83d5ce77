"""Small models as ExecuTorch files, lowered once for all tests: a lowering takes seconds."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.artifacts.artifact import Artifact
from edgeopt.devices.profile import Target, load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.exporters.base import ExportRequest
from edgeopt.exporters.executorch.exporter import ExecuTorchExporter
from edgeopt.ir import program
from edgeopt.pipeline.state import ModelState
from tests.small_models import Block, SmallCNN, context, normal, run, seeded

XNNPACK = "xnnpack"
QUANTIZE = ("plan", "calibrate", "quantize")


class PaddedCNN(nn.Module):
    """Borders on one side, a grouped and a one-dimensional convolution, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.left = nn.Conv2d(8, 4, 3, groups=2, padding=1)
        self.right = nn.Conv2d(8, 4, 1, bias=False)
        self.down = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.line = nn.Conv1d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.stem(nn.functional.pad(x, (0, 1, 0, 1))))
        y = torch.cat([nn.functional.relu(self.left(y)), self.right(y)], 1)
        y = nn.functional.relu(self.down(nn.functional.pad(y, (0, 1, 0, 1))))
        return self.line(y.flatten(2))


EXAMPLES: dict[type[nn.Module], Tensor] = {
    SmallCNN: normal(4, 3, 8, 8),
    PaddedCNN: normal(4, 3, 16, 16),
    Block: normal(4, 4, 16),
}


@dataclasses.dataclass(frozen=True)
class Written:
    """A file and what it was written from."""

    folder: Path
    artifact: Artifact
    programs: dict[str, ExportedProgram]
    state: ModelState
    example: Tensor

    @property
    def path(self) -> Path:
        return self.folder / self.artifact.model_file.path


def target() -> Target:
    """Return the phone's target."""
    return load_profile("phone-cpu").targets[0]


def state(kind: type[nn.Module], *, quantized: bool = True) -> ModelState:
    """Return a model after the passes that the rules ask for."""
    return _state(kind, quantized)


@functools.cache
def _state(kind: type[nn.Module], quantized: bool) -> ModelState:
    ctx = context(EXAMPLES[kind], rules=XNNPACK)
    return run(
        seeded(kind), ctx, "capture", *load_rules(XNNPACK).prepare, *(QUANTIZE if quantized else ())
    )


def request(
    programs: dict[str, ExportedProgram], *, precision: str = "int8", dynamic: tuple[str, ...] = ()
) -> ExportRequest:
    """Ask for a file named `model` with one input and one output."""
    return ExportRequest(
        "model",
        programs,
        target(),
        precision,
        XNNPACK if precision == "int8" else "",
        ("x",),
        ("y",),
        build_key="key",
        dynamic=dynamic,
    )


def written(kind: type[nn.Module], *, quantized: bool = True, dynamic: bool = False) -> Written:
    """Lower a model: with a dynamic batch, or one fixed to 1; a Block also to 2, as `batch2`."""
    return _written(kind, quantized, dynamic, (1, 2) if kind is Block else (1,))


@functools.cache
def _written(
    kind: type[nn.Module], quantized: bool, dynamic: bool, batches: tuple[int, ...]
) -> Written:
    made, example = state(kind, quantized=quantized), EXAMPLES[kind]
    captured = made.carrier_programs["forward"]
    programs = {
        "forward" if index == 0 else f"batch{size}": program.retrace(
            captured, (example[:size],), {}
        )
        for index, size in enumerate(batches)
    }
    if dynamic:
        programs = {"forward": captured}
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-executorch-"))
    wanted = request(
        programs,
        precision="int8" if quantized else "float32",
        dynamic=("batch",) if dynamic else (),
    )
    artifact = ExecuTorchExporter().export(wanted, folder)
    return Written(folder, artifact, programs, made, example)
