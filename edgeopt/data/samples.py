"""Labelled samples: re-iterable, streaming, compared by content."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.errors import ConfigError, DataError
from edgeopt.ir.calls import Batch, Batches
from edgeopt.ir.digests import digest_tensors
from edgeopt.ir.trees import leaves

HASH_BATCH = 64
CACHED_BYTES = 2_500_000


@dataclasses.dataclass(frozen=True)
class LabelledBatch:
    """One call of the model, with the right answers.

    Attributes:
        args: Positional inputs, any pytree; each tensor is `[B, ...]`.
        kwargs: Keyword inputs, likewise.
        labels: `[B, ...]`, or None where nobody knows them.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Every tensor in pytree order, positional ones first."""
        return tuple(leaves((self.args, dict(self.kwargs))))

    @property
    def size(self) -> int:
        """Samples in the batch."""
        return len(self.inputs[0])

    @property
    def cached_size(self) -> int:
        """How many samples a float model should take at a time on a CPU; may exceed `size`.

        The first layers of a network for pictures hold many times their input. Where they leave
        the caches, torch takes two to three times as long for a picture (MobileNetV2 at 224, in
        batches of 32 against 4), so large samples go in small batches.
        """
        sample = sum(value.nbytes for value in self.inputs) // self.size
        return max(1, CACHED_BYTES // max(1, sample))

    def part(self, start: int, stop: int) -> LabelledBatch:
        """Return some of the samples as a batch of their own."""

        def rows(value: Any) -> Any:
            return value[start:stop] if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(rows, (self.args, dict(self.kwargs)))
        return LabelledBatch(args, kwargs, rows(self.labels))


class Source(Protocol):
    """Random access to samples; reading may decode."""

    count: int

    def read(self, indices: Sequence[int]) -> LabelledBatch:
        """Return the samples at `indices` as one batch.

        Raises:
            DataError: If one cannot be read, or is not what the model takes.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Samples:
    """A chosen subset of a source, in a fixed order.

    Attributes:
        name: Where the samples come from, for messages and reports.
        source: Reads them.
        indices: Which of them.
        preprocessing: How pictures were turned into inputs, where they were.
        class_names: Class of each label value, where the data say so.
    """

    name: str
    source: Source
    indices: Sequence[int]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    # Subsets share it: a sample is hashed once, whichever subset asks first.
    _hashes: dict[int, tuple[str, str]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise DataError(f"{self.name}: no samples; name data that hold at least one")

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def batches(self, size: int) -> Iterator[LabelledBatch]:
        """Read the samples in order, `size` at a time; the last batch may be smaller.

        Raises:
            ConfigError: If `size` is under 1.
            DataError: If a sample cannot be read or holds NaN or Inf.
        """
        if size < 1:
            raise ConfigError(f"a batch holds at least 1 sample, not {size}")
        for start in range(0, self.count, size):
            chosen = self.indices[start : start + size]
            batch = self.source.read(chosen)
            for value in batch.inputs:
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    rows = torch.isfinite(value).reshape(len(value), -1).all(1)
                    row = int((~rows).nonzero()[0])
                    raise DataError(
                        f"{self.name}: sample {chosen[row]} holds NaN or Inf; remove or repair it"
                    )
            yield batch

    def as_batches(self, size: int) -> Batches:
        """Return the samples without labels, as passes take them."""
        if size < 1:
            raise ConfigError(f"a batch holds at least 1 sample, not {size}")

        def start() -> Iterator[Batch]:
            for batch in self.batches(size):
                yield Batch(batch.args, batch.kwargs)

        return start

    def take(self, n: int, seed: int) -> Samples:
        """Draw `n` samples without replacement, in the source's order; all, if there are fewer.

        Raises:
            ConfigError: If `n` is under 1.
        """
        return self.split(n, seed)[0] if n < self.count else self._checked(n)

    def split(self, n: int, seed: int) -> tuple[Samples, Samples]:
        """Draw `n` samples as `take` does, and return them and the rest.

        Raises:
            ConfigError: If `n` is under 1.
            DataError: If nothing would be left.
        """
        self._checked(n)
        if n >= self.count:
            raise DataError(f"{self.name}: cannot split {n} samples off {self.count}")
        chosen = np.zeros(self.count, dtype=bool)
        chosen[np.random.default_rng(seed).choice(self.count, n, replace=False)] = True
        first = [index for index, taken in zip(self.indices, chosen, strict=True) if taken]
        rest = [index for index, taken in zip(self.indices, chosen, strict=True) if not taken]
        return self.subset(first), self.subset(rest)

    def without(self, other: Samples) -> Samples:
        """Return those samples whose content `other` does not hold.

        Raises:
            DataError: If none is left.
        """
        known = other.fingerprints()
        own = self._all_hashes()
        return self.subset(
            [i for i, (content, _) in zip(self.indices, own, strict=True) if content not in known]
        )

    def subset(self, indices: Sequence[int]) -> Samples:
        """Return the samples at these indices of the source."""
        return dataclasses.replace(self, indices=tuple(indices))

    def fingerprints(self) -> frozenset[str]:
        """Return one SHA-256 a sample, of its inputs as the model gets them (no labels)."""
        return frozenset(content for content, _ in self._all_hashes())

    def digest(self) -> str:
        """Return the SHA-256 of all inputs and labels in order; no batch size changes it."""
        total = hashlib.sha256()
        for content, label in self._all_hashes():
            total.update(f"{content} {label}\n".encode())
        return total.hexdigest()

    def _checked(self, n: int) -> Samples:
        if n < 1:
            raise ConfigError(f"{self.name}: take at least 1 sample, not {n}")
        return self

    def _all_hashes(self) -> list[tuple[str, str]]:
        missing = [index for index in self.indices if index not in self._hashes]
        for start in range(0, len(missing), HASH_BATCH):
            chosen = missing[start : start + HASH_BATCH]
            batch = self.source.read(chosen)
            for row, index in enumerate(chosen):
                self._hashes[index] = _hash(batch, row)
        return [self._hashes[index] for index in self.indices]


def _hash(batch: LabelledBatch, row: int) -> tuple[str, str]:
    content = digest_tensors(
        (f"{position:03}", value[row]) for position, value in enumerate(batch.inputs)
    )
    label = "" if batch.labels is None else digest_tensors([("label", batch.labels[row])])
    return content, label


def overlap(a: Samples, b: Samples) -> int:
    """Return how many different samples stand in both, by content."""
    return len(a.fingerprints() & b.fingerprints())
