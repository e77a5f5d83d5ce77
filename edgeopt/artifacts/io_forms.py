"""From a model's own inputs and outputs to those of a file, and back.

A model takes and gives floats. A file may take 8-bit pixels or codes, and give codes; its `IOSpec`s
say so, and are all that these functions read. An app does the same by the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.artifacts.interface import IOQuantization, IOSpec, Method, Pixels

Array = np.ndarray[Any, Any]


def file_inputs(method: Method, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the file takes for the model's inputs.

    Normalized pictures become the pixels that they were made from: exactly, if they were 8-bit
    pictures; to the nearest pixel value otherwise.
    """
    specs = {spec.name: spec for spec in method.inputs}
    return {name: _to_file(value, specs[name]) for name, value in inputs.items()}


def model_inputs(method: Method, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the model's inputs for what a file takes."""
    specs = {spec.name: spec for spec in method.inputs}
    return {name: _to_model(value, specs[name]) for name, value in inputs.items()}


def model_outputs(method: Method, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the model's outputs for what a file gives."""
    specs = {spec.name: spec for spec in method.outputs}
    return {name: _to_model(value, specs[name]) for name, value in outputs.items()}


def _to_file(value: Array, spec: IOSpec) -> Array:
    if spec.pixels is not None:
        mean, std = _per_channel(spec.pixels, value.shape[1])
        pixels = np.rint((value.astype(np.float64) * std + mean) * 255)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    if spec.quantization is not None:
        return quantized(value, spec.quantization)
    return value


def _to_model(value: Array, spec: IOSpec) -> Array:
    if spec.pixels is not None:
        planes = value.transpose(0, 3, 1, 2).astype(np.float32)
        mean, std = _per_channel(spec.pixels, planes.shape[1])
        # as the preprocessing of pictures computes it, so that equal pixels give equal floats
        scaled = (planes / np.float32(255) - mean.astype(np.float32)) / std.astype(np.float32)
        return np.ascontiguousarray(scaled)
    if spec.quantization is not None:
        q = spec.quantization
        codes = value.astype(np.int32) - np.int32(q.zero_point)
        return codes.astype(np.float32) * np.float32(q.scale)
    return value


def quantized(value: Array, q: IOQuantization) -> Array:
    """Return the codes of floats: `clamp(rne(x / s) + z)`, in float32 as QuantizeLinear does."""
    limits = np.iinfo(q.dtype)
    codes = np.rint(value.astype(np.float32) / np.float32(q.scale)) + q.zero_point
    return np.clip(codes, limits.min, limits.max).astype(q.dtype)


def _per_channel(pixels: Pixels, channels: int) -> tuple[Array, Array]:
    """Return mean and std as float64 [1, C, 1, 1]."""
    mean, std = (
        np.broadcast_to(np.asarray(v, np.float64), (channels,)).reshape(1, -1, 1, 1)
        for v in (pixels.mean, pixels.std)
    )
    return mean, std
