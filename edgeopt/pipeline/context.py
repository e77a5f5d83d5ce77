"""What a pass may read and not change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.ir.calls import Batch, Batches, MethodExample
from edgeopt.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from edgeopt.devices.profile import DeviceProfile, Target
    from edgeopt.pipeline.reference import FloatReference


@dataclasses.dataclass(frozen=True)
class PassContext:
    """What a pass may read and must not change.

    Attributes:
        profile: The device.
        target: The one of the profile's targets that this branch is for.
        example_args: Positional example inputs, batch of at least 2 where the model allows it.
        example_kwargs: Keyword example inputs.
        dynamic_shapes: As `torch.export.export` takes them, or None: capture chooses.
        input_names: Names for the user inputs in order, or empty: from the signature.
        output_names: Names for the outputs in order, or empty.
        methods: Further methods of the module, by name.
        calibration: Batches for statistics, or None.
        evaluation: Batches for judging, or None.
        reference: The untouched float model.
        seed: The build's seed; draw through `rng`.
        keep_float: Address globs of what the user wants left in float.
        progress: Called with (what, done, total).
        scope: Set by the pipeline: the running pass and its options, which seed `rng`.
    """

    profile: DeviceProfile
    target: Target
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dynamic_shapes: Any = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    methods: Mapping[str, MethodExample] = dataclasses.field(default_factory=dict)
    calibration: Batches | None = None
    evaluation: Batches | None = None
    reference: FloatReference | None = None
    seed: int = 0
    keep_float: tuple[str, ...] = ()
    progress: Progress = no_progress
    scope: str = ""

    def example(self, method: str) -> Batch:
        """Return the example call of a method."""
        if method in self.methods:
            return Batch(self.methods[method].args, self.methods[method].kwargs)
        return Batch(self.example_args, self.example_kwargs)

    def rng(self, site: str) -> torch.Generator:
        """Return a generator seeded by (seed, pass, options, site).

        Each site draws its own numbers, so inserting a pass moves no other draw.
        """
        import torch

        key = json.dumps([self.seed, self.scope, site]).encode()
        number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        return torch.Generator().manual_seed(number)
