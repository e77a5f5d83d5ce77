"""Greedy text: the most likely token, whatever runs the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeopt.errors import ConfigError, ModelError
from edgeopt.runtime_tests.generate import greedy

VOCABULARY = 11


class Counting:
    """A causal model that says the sum of all tokens so far, plus one; it keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert tokens.dtype == np.int64
        self.seen.append(tokens[0].tolist())
        said = (np.cumsum(tokens, axis=1) + 1) % VOCABULARY
        return np.eye(VOCABULARY, dtype=np.float32)[said]


def test_each_token_follows_from_all_before() -> None:
    assert greedy(Counting(), [2, 3], 4, window=8) == [6, 1, 2, 4]


def test_text_stands_left_in_the_window_and_is_cut_at_its_left() -> None:
    model = Counting()
    assert greedy(model, [1, 2, 3], 3, window=4) == [7, 3, 5]
    assert model.seen == [[1, 2, 3, 0], [1, 2, 3, 7], [2, 3, 7, 3]]


def test_no_token_asked_for_is_no_call() -> None:
    model = Counting()
    assert greedy(model, [1], 0, window=4) == []
    assert model.seen == []


def test_the_first_of_equal_logits_wins() -> None:
    assert greedy(lambda tokens: np.zeros((1, 4, 7)), [5], 2, window=4) == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "count", "window", "words"),
    [([], 1, 4, "the prompt is empty"), ([1], -1, 4, "cannot add -1"), ([1], 1, 0, "window of 0")],
)
def test_a_call_that_cannot_be_meant_is_refused(
    prompt: list[int], count: int, window: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        greedy(Counting(), prompt, count, window)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.zeros((1, 7)), r"logits \[1, 7\] for tokens \[1, 4\]"),
        (np.zeros((1, 3, 7)), r"logits \[1, 3, 7\]"),
        (np.full((1, 4, 7), np.nan), "token 1 hold NaN"),
    ],
    ids=["no positions", "another window", "NaN"],
)
def test_logits_that_are_none_are_refused(logits: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        greedy(lambda tokens: logits, [1], 2, window=4)


def test_what_stands_right_of_the_text_may_be_anything() -> None:
    logits = np.zeros((1, 4, 7))
    logits[0, 1:] = np.inf
    logits[0, 0, 3] = 1.0
    assert greedy(lambda tokens: logits, [1], 1, window=4) == [3]
