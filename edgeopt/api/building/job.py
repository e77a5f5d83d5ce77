"""Everything that a compile needs, resolved."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeopt.artifacts.interface import Pixels
from edgeopt.data import Samples
from edgeopt.devices.profile import DeviceProfile, Target
from edgeopt.ir.trees import leaves
from edgeopt.models.loaded import LoadedModel
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.reference import FloatReference
from edgeopt.pipeline.state import PassRecord
from edgeopt.progress import Progress
from edgeopt.recipes.recipe import Recipe

CALIBRATION_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a compile needs, resolved.

    Attributes:
        loaded: The model.
        profile: The device.
        recipe: The recipe.
        passes: The recipe's passes with their options.
        calibration: Calibration samples, or None.
        reference: The float reference.
        keep_float: Address globs that stay float.
        batch: Batch size of the files.
        dynamic: Names of the dimensions that stay dynamic.
        seed: The seed.
        verify: The verifier's level.
        progress: Called with (what, done, total).
        history: Passes that ran before the reference was taken (adapter fusion).
        pixels: How 8-bit pixels become the picture input's floats, or None: files take floats.
        quantized_io: Whether INT8 files take and give codes.
    """

    loaded: LoadedModel
    profile: DeviceProfile
    recipe: Recipe
    passes: tuple[Pass[Any], ...]
    calibration: Samples | None
    reference: FloatReference
    keep_float: tuple[str, ...]
    batch: int
    dynamic: tuple[str, ...]
    seed: int
    verify: str
    progress: Progress
    history: tuple[PassRecord, ...] = ()
    pixels: Pixels | None = None
    quantized_io: bool = False

    def context(self, target: Target, batch: int | None = None) -> PassContext:
        """Return what passes may read, for one target.

        Args:
            target: The target.
            batch: The batch that the captured program fixes, or None.
        """
        return PassContext(
            profile=self.profile,
            target=target,
            example_args=self.loaded.example_args,
            example_kwargs=self.loaded.example_kwargs,
            dynamic_shapes=self.loaded.dynamic_shapes,
            input_names=self.loaded.input_names,
            output_names=self.loaded.output_names,
            methods=self.loaded.methods,
            calibration=(
                self.calibration.as_batches(batch or CALIBRATION_BATCH)
                if self.calibration
                else None
            ),
            reference=self.reference,
            seed=self.seed,
            keep_float=self.keep_float,
            progress=self.progress,
        )

    @property
    def lengths(self) -> dict[str, int]:
        """The example's size in each free dimension but the batch, by name."""
        example = (self.loaded.example_args, dict(self.loaded.example_kwargs))
        return {
            dimension.name: value.shape[axis]
            for value, free in zip(leaves(example), self.loaded.dimensions, strict=True)
            for axis, dimension in free.items()
            if axis > 0
        }

    @property
    def quantizes(self) -> bool:
        """Whether the recipe quantizes at all."""
        return any(p.name == "quantize" for p in self.passes)
