"""Task metrics: from outputs and labels to a number, and to how much of it was lost."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeopt.data import LabelledBatch
from edgeopt.errors import ConfigError, nearest
from edgeopt.userfile import load_function, split_spec

Array = np.ndarray[Any, Any]
Outputs = Sequence[Array]

IGNORED_LABEL = -100
NAMES = ("top1", "perplexity", "none")


@dataclasses.dataclass(frozen=True)
class Metric:
    """How answers are judged.

    A metric is a function of the means of some columns, one row a sample. So a resampled data set
    is judged without running anything again.

    Attributes:
        name: `top1`, `perplexity`, or the user's function.
        unit: Of `value`; empty where it has none.
        columns: Outputs and their batch -> float64 `[B, k]`; None where labels are lacking. A
            single number instead judges all samples together.
        value: Means of the columns `[..., k]` -> values `[...]`.
        lower_is_better: The direction.
        relative: The drop is `value / reference - 1` in percent; else a difference.
        binary: Each sample is right or wrong, so few samples differ and intervals are widened.
    """

    name: str
    unit: str
    columns: Callable[[Outputs, LabelledBatch], Array | float | None]
    value: Callable[[Array], Array]
    lower_is_better: bool = False
    relative: bool = False
    binary: bool = False

    @property
    def drop_unit(self) -> str:
        """Unit of the drop."""
        return "%" if self.relative else self.unit

    def drop(self, reference: Array, value: Array) -> Array:
        """Return the loss; positive is worse, and a value that is not finite is infinitely so."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            loss = 100.0 * (value / reference - 1.0) if self.relative else value - reference
            loss = loss if self.lower_is_better else -loss
        return np.where(np.isfinite(value), loss, np.inf)


def resolve_metric(spec: str | Callable[..., Any] | Metric | None) -> Metric | None:
    """Return a metric by name; None stands for drift only.

    Args:
        spec: `top1`, `perplexity`, `none`, `FILE.py:FUNCTION` (which runs the file's code), or
            the function itself. It is called with the outputs of some samples (a list of arrays
            `[B, ...]`), their labels (`[B, ...]` or None) and, if it takes a parameter `inputs`,
            their inputs (a list of arrays), and returns one number a sample, or one number for all
            of them. Higher is better unless it has a true attribute
            `lower_is_better`; an attribute `unit` is printed after the values.

    Raises:
        ConfigError: If there is no such metric.
    """
    if spec is None or spec == "none":
        return None
    if isinstance(spec, Metric):
        return spec
    if callable(spec):
        return _user_metric(spec, getattr(spec, "__name__", "metric"))
    if spec == "top1":
        return Metric("top1", "points", _top1_columns, _percent, binary=True)
    if spec == "perplexity":
        return Metric(
            "perplexity", "", _perplexity_columns, _perplexity, lower_is_better=True, relative=True
        )
    user = split_spec(spec)
    if user is None:
        raise ConfigError(f"metric {spec!r}: use FILE.py:FUNCTION or a name{nearest(spec, NAMES)}")
    return _user_metric(load_function(*user, error=ConfigError), user[1])


def answers(logits: Array) -> Array:
    """Return the class of each row `[..., C]`, -1 where a logit is NaN or Inf."""
    finite = np.isfinite(logits).all(axis=-1)
    return np.where(finite, logits.argmax(axis=-1), -1)


def _top1_columns(outputs: Outputs, batch: LabelledBatch) -> Array | None:
    """Return right answers and answers, summed over a sample's positions."""
    if batch.labels is None or batch.labels.is_floating_point():
        return None
    logits, labels = outputs[0], batch.labels.numpy()
    if logits.shape[:-1] != labels.shape:
        raise ConfigError(
            f"top1: outputs {list(logits.shape)} and labels {list(labels.shape)}; it takes "
            "[B, classes] and [B]"
        )
    counted = labels != IGNORED_LABEL
    if counted.any() and int(labels[counted].max()) >= logits.shape[-1]:
        raise ConfigError(
            f"top1: label {int(labels[counted].max())}, the model has {logits.shape[-1]} classes; "
            "check the labels of the evaluation data"
        )
    right = (answers(logits) == labels) & counted
    rows = (right.reshape(len(labels), -1), counted.reshape(len(labels), -1))
    return np.stack([row.sum(axis=1) for row in rows], axis=1).astype(np.float64)


def _percent(means: Array) -> Array:
    return 100.0 * means[..., 0] / np.maximum(means[..., 1], np.finfo(np.float64).tiny)


def _perplexity_columns(outputs: Outputs, batch: LabelledBatch) -> Array | None:
    """Return the summed negative log-likelihood and the number of tokens.

    Labels `[B, T]` are the tokens that the positions shall predict (-100: not counted). Without
    labels the first input holds the tokens, and each position predicts the next one.
    """
    logits = outputs[0].astype(np.float64)
    if batch.labels is not None:
        labels = batch.labels.numpy()
    else:
        labels, logits = batch.inputs[0].numpy()[:, 1:], logits[:, :-1]
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or labels.dtype.kind != "i":
        raise ConfigError(
            f"perplexity: outputs {list(outputs[0].shape)} and labels {list(labels.shape)}; it "
            "takes [B, T, vocabulary] and whole numbers [B, T]"
        )
    counted = labels != IGNORED_LABEL
    chosen = np.where(counted, labels, 0)
    top = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        total = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        loss = total - np.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    # A sum that is not finite makes the perplexity infinite, as it should.
    loss = np.where(np.isfinite(loss), loss, np.inf)
    return np.stack([np.where(counted, loss, 0.0).sum(axis=1), counted.sum(axis=1)], axis=1)


def _perplexity(means: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(means[..., 0] / np.maximum(means[..., 1], np.finfo(np.float64).tiny))


def _user_metric(function: Callable[..., Any], name: str) -> Metric:
    try:
        takes_inputs = "inputs" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        takes_inputs = False

    def columns(outputs: Outputs, batch: LabelledBatch) -> Array | float:
        labels = None if batch.labels is None else batch.labels.numpy()
        more = {"inputs": [value.numpy() for value in batch.inputs]} if takes_inputs else {}
        found = function(list(outputs), labels, **more)
        try:
            scores = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConfigError(
                f"metric {name}: returned {type(found).__name__}, no number"
            ) from None
        if scores.ndim == 0:
            return float(scores)
        if scores.shape != (batch.size,):
            raise ConfigError(
                f"metric {name}: returned {list(scores.shape)} for {batch.size} samples; return "
                "one number a sample, or one for all"
            )
        return scores[:, None]

    def value(means: Array) -> Array:
        return means[..., 0]

    return Metric(
        name,
        str(getattr(function, "unit", "")),
        columns,
        value,
        lower_is_better=bool(getattr(function, "lower_is_better", False)),
    )
