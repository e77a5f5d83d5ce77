"""A model with what it takes and gives, and the data that come with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data import Samples, as_samples
from edgeopt.ir import trees
from edgeopt.ir.calls import Batch, MethodExample


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, what it takes and gives, and the data that come with it.

    Attributes:
        name: Short, fit for a folder's name.
        source: As the user named it.
        module: In eval mode, float32, on the CPU; edgeopt's own, never the user's.
        example_args: Positional example inputs, batch of 2 where the model allows it.
        example_kwargs: Keyword example inputs.
        dynamic_shapes: As `torch.export.export` takes them, or None.
        input_names: One a tensor, in pytree order.
        output_names: One a tensor, in pytree order.
        input_roles: `image`, `tokens`, `mask`, `position`, `cache` or `tensor`, one a tensor.
        preprocessing: How a picture becomes the input, or None.
        labels: Class names, or empty.
        calibration: The source's own calibration data, or None.
        evaluation: The source's own evaluation data, or None.
        metric: `top1`, `perplexity`, `FILE.py:FUNCTION`, or None: drift only.
        methods: Further methods of the module, by name; files keep the shapes of their examples.
    """

    name: str
    source: str
    module: nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any]
    dynamic_shapes: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_roles: tuple[str, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    calibration: Samples | None = None
    evaluation: Samples | None = None
    metric: str | None = None
    methods: Mapping[str, MethodExample] = dataclasses.field(default_factory=dict)

    @property
    def example(self) -> Batch:
        """The example inputs as one call."""
        return Batch(self.example_args, self.example_kwargs)

    @property
    def dimensions(self) -> list[dict[int, trees.Dimension]]:
        """The free axes of each input, as the source declares them."""
        return trees.free_dimensions(
            self.example_args, self.example_kwargs, self.input_names, self.dynamic_shapes
        )

    def data(self, value: Any, *, name: str = "data") -> Samples:
        """Open data for this model: a `--calib` or `--eval` argument, or a Python value.

        Raises:
            DataError: If they are not what the model takes.
        """
        return as_samples(
            value,
            example=self.example,
            preprocessing=self.preprocessing,
            labels=self.labels,
            input_names=self.input_names,
            dynamic_shapes=self.dynamic_shapes,
            name=name,
        )
