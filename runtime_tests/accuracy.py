"""Accuracy of an exported file, paired with the float reference."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from edgeopt.data import LabelledBatch, Samples, overlap
from edgeopt.errors import CheckFailed, ConfigError, ModelError
from edgeopt.ir.calls import Batch
from edgeopt.pipeline.reference import FloatReference
from edgeopt.results.measurements import AccuracyResult
from edgeopt.runtime_tests.metrics import Metric, Outputs, answers, resolve_metric

Array = np.ndarray[Any, Any]
Run = Callable[[tuple[Array, ...]], Sequence[Array]]

RESAMPLES = 4000
CONFIDENCE = 0.95
MAX_BYTES = 512 << 20
RESAMPLE_CELLS = 4_000_000


class ReferenceOutputs:
    """The float reference's outputs over samples, computed once for all artifacts.

    Outputs are kept as float32 until they take `max_bytes`; those beyond are computed anew each
    time, so memory stays bounded and nothing fails.

    Attributes:
        samples: What is judged.
        batch: Samples a batch; the reference may take them in smaller pieces.
    """

    def __init__(
        self,
        reference: FloatReference,
        samples: Samples,
        *,
        batch: int = 32,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.samples = samples
        self.batch = batch
        self._reference = reference
        self._room = max_bytes
        self._kept: list[list[Array]] = []

    def pairs(self) -> Iterator[tuple[LabelledBatch, list[Array]]]:
        """Iterate over all batches with the reference's outputs, flat in pytree order."""
        for position, batch in enumerate(self.samples.batches(self.batch)):
            if position < len(self._kept):
                yield batch, self._kept[position]
                continue
            outputs = self._computed(batch)
            size = sum(value.nbytes for value in outputs)
            if position == len(self._kept) and size <= self._room:
                self._kept.append(outputs)
                self._room -= size
            yield batch, outputs

    def _computed(self, batch: LabelledBatch) -> list[Array]:
        """Run the reference, in pieces that stay in cache where every output has a row a sample."""
        pieces: list[list[Array]] = []
        start = 0
        for size in _piece_sizes(batch.size, batch.cached_size):
            found = self._call(batch.part(start, start + size))
            if any(not value.ndim or len(value) != size for value in found):
                return self._call(batch)
            pieces.append(found)
            start += size
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _call(self, batch: LabelledBatch) -> list[Array]:
        return [
            value.detach().cpu().to(torch.float32).numpy()
            for value in self._reference.outputs(Batch(batch.args, batch.kwargs))
        ]


def _piece_sizes(count: int, most: int) -> list[int]:
    """Divide a batch into pieces of at least 2 samples, not all of one size.

    An output of fixed size may have as many rows as one piece, not as many as two different ones.
    A piece of 1 is left out, since models squeeze: `[1, 1000]` becomes `[1000]`.
    """
    step = max(3, most)
    if count <= step + 2:
        return [count]
    sizes = [step + 1, *[step] * ((count - step - 1) // step)]
    left = count - sum(sizes)
    if left == 1:
        sizes[-1] -= 1
        left = 2
    return [*sizes, left] if left else sizes


def judge(
    artifact: str,
    runtime: str,
    run: Run,
    reference: ReferenceOutputs,
    metric: str | Callable[..., Any] | Metric | None,
    *,
    beside: Sequence[Run] = (),
    batch: int | None = None,
    warning: str = "",
    seed: int = 0,
    method: str = "forward",
) -> AccuracyResult:
    """Run a file on the reference's samples and judge its answers, paired sample by sample.

    Args:
        artifact: Its name.
        runtime: Name and version of what runs it.
        run: Runs the file once: inputs in the model's order (positional ones first) to outputs in
            the model's order.
        reference: The float model's outputs.
        metric: As `resolve_metric` takes it.
        beside: The same file in more sessions, for calls side by side with `run`.
        batch: The file's fixed batch size; the last call is filled up by repeating its last
            sample. None: any size.
        warning: What else is to be said, for instance `overlap_warning`.
        seed: Of the bootstrap.
        method: The program's method.

    Raises:
        CheckFailed: If the file's outputs have other shapes than the model's.
        ConfigError: If the metric does not fit outputs and labels.
    """
    judged = resolve_metric(metric)
    drift = _Drift()
    tally = _Tally(judged)
    for data, want in reference.pairs():
        got = _outputs((run, *beside), data, batch, want, artifact)
        drift.add(want, got)
        tally.add(want, got, data)
    notes = [warning, *drift.notes(), *tally.notes()]
    value = reference_value = drop = low = high = None
    if judged is not None and tally.scored:
        reference_value, value, drop, low, high = tally.result(seed)
    return AccuracyResult(
        artifact=artifact,
        runtime=runtime,
        metric="snr" if judged is None else judged.name,
        unit="dB" if judged is None else judged.drop_unit,
        reference=reference_value,
        value=drift.snr_db() if judged is None else value,
        drop=drop,
        drop_low=low,
        drop_high=high,
        agreement=tally.agreement(),
        snr_db=drift.snr_db(),
        cosine=drift.cosine(),
        samples=reference.samples.count,
        method=method,
        warning="; ".join(note for note in notes if note),
    )


def overlap_warning(calibration: Samples | None, evaluation: Samples | None) -> str:
    """Say how many samples stand in both, found by content; empty if none."""
    if calibration is None or evaluation is None:
        return ""
    shared = overlap(calibration, evaluation)
    if not shared:
        return ""
    return (
        f"{shared} of {evaluation.count} evaluation samples are calibration samples too, so the "
        "drop is flattered"
    )


def paired_interval(
    reference: Array, candidate: Array, metric: Metric, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the drop by a paired bootstrap over samples (percentiles).

    Resampling rows is drawing how often each distinct pair of rows occurs (multinomial), which
    is what is done. Where a sample is only right or wrong and hardly any differ, the bootstrap's
    interval is too narrow (empty if none differs), so one pair lost and one pair won is added
    before, in the manner of Agresti and Min (2005).

    Args:
        reference: The float model's columns `[N, k]`.
        candidate: The file's columns `[N, k]`.
        metric: What they mean.
        seed: Of the draw.
    """
    width = reference.shape[1]
    rows = np.concatenate([reference, candidate], axis=1)
    if metric.binary:
        answered = float(reference[:, 1].mean())
        extra = np.array([[answered, answered, 0, answered], [0, answered, answered, answered]])
        rows = np.concatenate([rows, extra])
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    total = int(counts.sum())
    generator = np.random.default_rng(seed)
    chunk = max(1, RESAMPLE_CELLS // len(distinct))
    drops = []
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        with np.errstate(invalid="ignore"):  # an infinite loss times a count of 0
            means = generator.multinomial(total, counts / total, size=size) @ distinct / total
        drops.append(metric.drop(metric.value(means[:, :width]), metric.value(means[:, width:])))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drops), (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def _side_by_side(
    runs: Sequence[Run], parts: Sequence[tuple[Array, ...]], size: int
) -> list[Sequence[Array]]:
    """Run each part, filled up to the size, in whichever session is free; keep their order."""
    free: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in runs:
        free.put(run)

    def call(part: tuple[Array, ...]) -> Sequence[Array]:
        missing = size - len(part[0])
        if missing:
            part = tuple(np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for v in part)
        run = free.get()
        try:
            return run(part)
        finally:
            free.put(run)

    if len(runs) == 1:
        return [call(part) for part in parts]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(call, parts))


def _outputs(
    runs: Sequence[Run], data: LabelledBatch, batch: int | None, want: Outputs, artifact: str
) -> list[Array]:
    """Run one batch of the reference's, in calls of the file's own size."""
    inputs = tuple(value.numpy() for value in data.inputs)
    size = batch or data.size
    starts = range(0, data.size, size)
    calls = [tuple(value[start : start + size] for value in inputs) for start in starts]
    pieces: list[list[Array]] = []
    for given, outputs in zip(calls, _side_by_side(runs, calls, size), strict=True):
        real = len(given[0])
        found = [np.asarray(value) for value in outputs]
        pieces.append([v[:real] if v.ndim and len(v) == size else v for v in found])
    if len({len(piece) for piece in pieces}) != 1 or len(pieces[0]) != len(want):
        raise CheckFailed(
            f"{artifact}: {len(pieces[0])} outputs, the float model gives {len(want)}"
        )
    joined = []
    for position, expected in enumerate(want):
        parts = [piece[position] for piece in pieces]
        whole = _joined(parts, expected, f"{artifact}: output {position}")
        if whole.shape != expected.shape:
            raise CheckFailed(
                f"{artifact}: output {position} is {list(whole.shape)}, the float model gives "
                f"{list(expected.shape)}"
            )
        joined.append(whole)
    return joined


def _joined(parts: list[Array], expected: Array, what: str) -> Array:
    """Join the calls of one batch; an output without a batch dimension stands in each of them."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].shape != expected.shape:
        return np.concatenate(parts)
    if not all(np.array_equal(part, parts[0], equal_nan=True) for part in parts):
        raise ModelError(
            f"{what} has no batch dimension and differs from call to call, so it cannot be judged; "
            "return one row a sample, or leave it out"
        )
    return parts[0]


class _Drift:
    """Running sums for SNR and cosine over all outputs."""

    def __init__(self) -> None:
        self._signal = self._noise = self._cosines = 0.0
        self._rows = self._broken = 0

    def add(self, want: Outputs, got: Outputs) -> None:
        for expected, found in zip(want, got, strict=True):
            r = expected.reshape(len(expected) if expected.ndim else 1, -1).astype(np.float64)
            o = found.reshape(r.shape).astype(np.float64)
            broken: Array = np.logical_not(np.isfinite(o).all(axis=1))
            self._broken += int(broken.sum())
            self._signal += float((r * r).sum())
            self._noise += math.inf if broken.any() else float(((r - o) ** 2).sum())
            o = np.where(broken[:, None], 0.0, o)
            norms = np.linalg.norm(r, axis=1) * np.linalg.norm(o, axis=1)
            # Where a norm is 0 there is no angle: 1 if both are, 0 otherwise.
            same = (r == o).all(axis=1).astype(np.float64)
            cosines = np.where(norms > 0, (r * o).sum(axis=1) / np.where(norms > 0, norms, 1), same)
            self._cosines += float(cosines.sum())
            self._rows += len(r)

    def snr_db(self) -> float:
        if self._noise == 0.0:
            return math.inf
        if self._signal == 0.0 or math.isinf(self._noise):
            return -math.inf
        return 10.0 * math.log10(self._signal / self._noise)

    def cosine(self) -> float:
        return self._cosines / self._rows

    def notes(self) -> list[str]:
        return [f"outputs of {self._broken} samples hold NaN or Inf"] if self._broken else []


class _Tally:
    """The metric's columns, and how often both models answer the same."""

    def __init__(self, metric: Metric | None) -> None:
        self._metric = metric
        self._reference: list[Array] = []
        self._candidate: list[Array] = []
        self._whole: list[tuple[Outputs, Outputs, LabelledBatch]] = []
        self._whole_bytes = 0
        self._agreeing: list[float] = []
        self._classes = 0

    @property
    def scored(self) -> bool:
        return bool(self._reference or self._whole)

    def add(self, want: Outputs, got: Outputs, data: LabelledBatch) -> None:
        metric = self._metric
        if metric is None:
            return
        if metric.name in ("top1", "perplexity"):
            same = answers(want[0]) == answers(got[0])
            self._agreeing += same.reshape(len(same), -1).mean(axis=1).tolist()
            self._classes = want[0].shape[-1]
        if self._whole:
            self._keep(want, got, data)
            return
        reference = metric.columns(want, data)
        if isinstance(reference, float):
            self._keep(want, got, data)
            return
        candidate = metric.columns(got, data)
        if reference is None or candidate is None:
            return
        if isinstance(candidate, float):
            raise ConfigError(f"metric {metric.name}: one number once, one a sample another time")
        self._reference.append(reference)
        self._candidate.append(candidate)

    def _keep(self, want: Outputs, got: Outputs, data: LabelledBatch) -> None:
        assert self._metric is not None  # only called with one
        self._whole.append((want, got, data))
        self._whole_bytes += sum(value.nbytes for value in (*want, *got))
        if self._whole_bytes > 2 * MAX_BYTES:
            raise ConfigError(
                f"metric {self._metric.name}: one number for all samples needs all outputs in "
                f"memory, over {MAX_BYTES >> 19} MiB; return one number a sample"
            )

    def agreement(self) -> float | None:
        return 100.0 * float(np.mean(self._agreeing)) if self._agreeing else None

    def notes(self) -> list[str]:
        if self._metric is None:
            return []
        if not self.scored:
            return [
                f"{self._metric.name} not judged: the evaluation data have no whole-number labels"
            ]
        if self._whole:
            return [f"no interval: {self._metric.name} gives one number for all samples"]
        if self._metric.name != "top1":
            return []
        columns = np.concatenate(self._reference)
        reached, count = float(self._metric.value(columns.mean(axis=0))), columns[:, 1].sum()
        chance = 1 / self._classes
        if reached / 100 > chance + 3 * math.sqrt(chance * (1 - chance) / max(count, 1)):
            return []
        return [
            f"the float model itself reaches {reached:.1f} points, no better than chance: check "
            "the labels' order and the preprocessing"
        ]

    def result(self, seed: int) -> tuple[float, float, float, float | None, float | None]:
        """Return the reference's value, the file's, the drop and its interval."""
        metric = self._metric
        assert metric is not None  # the caller checked `scored`
        if self._whole:
            data = _join([entry[2] for entry in self._whole])
            scores = []
            for side in (0, 1):
                calls = (entry[side] for entry in self._whole)
                outputs = [np.concatenate(parts) for parts in zip(*calls, strict=True)]
                scores.append(np.asarray(metric.columns(outputs, data), dtype=np.float64))
            drop = float(metric.drop(scores[0], scores[1]))
            return float(scores[0]), float(scores[1]), drop, None, None
        reference = np.concatenate(self._reference)
        candidate = np.concatenate(self._candidate)
        values = [metric.value(columns.mean(axis=0)) for columns in (reference, candidate)]
        if not np.isfinite(values[0]):
            raise ConfigError(f"metric {metric.name}: NaN or Inf on the float model's outputs")
        low, high = paired_interval(reference, candidate, metric, seed)
        return float(values[0]), float(values[1]), float(metric.drop(*values)), low, high


def _join(batches: Sequence[LabelledBatch]) -> LabelledBatch:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return LabelledBatch(
        tuple(torch.cat(values) for values in zip(*(b.inputs for b in batches), strict=True)),
        {},
        torch.cat(labels) if labels else None,
    )
