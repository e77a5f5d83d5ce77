"""What a written file is run on: samples, in the form and at the batch that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt.artifacts import io_forms
from edgeopt.artifacts.artifact import Artifact
from edgeopt.data import Samples


def static_batch(artifact: Artifact) -> int | None:
    """Return the batch size that a file fixes, or None where it is dynamic."""
    shape = artifact.methods[0].inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


def largest_batch(artifact: Artifact) -> int | None:
    """Return the largest batch of a dynamic file whose memory is planned, or None: any."""
    size = artifact.options.get("max_batch")
    return int(size) if size is not None else None


def named_inputs(
    artifact: Artifact, samples: Samples, batch: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the first samples as the file takes them.

    Args:
        artifact: The file.
        samples: Where they come from; repeated where there are fewer.
        batch: How many, where the file does not fix it.
    """
    batch = static_batch(artifact) or batch
    first = next(samples.batches(batch))
    method = artifact.methods[0]
    named = {
        spec.name: value.numpy()[np.arange(batch) % len(value)] if value.dim() else value.numpy()
        for spec, value in zip(method.inputs, first.inputs, strict=True)
    }
    return io_forms.file_inputs(method, named)
