"""Greedy text from a language model, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeopt.errors import ConfigError, ModelError

Array = np.ndarray[Any, Any]
Step = Callable[[Array], Array]
"""int64 tokens [1, window] -> logits [1, window, vocabulary]: torch, an exported file, ..."""


def greedy(step: Step, prompt: Sequence[int], count: int, window: int) -> list[int]:
    """Continue a prompt by the most likely token, `count` times.

    The whole text is run again for each token, so any causal model with one fixed shape will do:
    the tokens stand at the left of the window, and what pads it at the right is never seen. A text
    longer than the window is cut to its last `window` tokens, whose positions begin at 0 again. Of
    equal logits the first token wins.

    Args:
        step: Runs the model.
        prompt: At least one token.
        count: Tokens to add.
        window: The length that the model takes.

    Returns:
        The new tokens.

    Raises:
        ConfigError: If the prompt is empty, or a number is out of range.
        ModelError: If the logits are misshapen, or NaN or Inf.
    """
    if not prompt:
        raise ConfigError("generate: the prompt is empty; give at least one token")
    if count < 0 or window < 1:
        raise ConfigError(f"generate: cannot add {count} tokens in a window of {window}")
    text = list(prompt)
    for _ in range(count):
        seen = text[-window:]
        tokens = np.zeros((1, window), np.int64)
        tokens[0, : len(seen)] = seen
        logits = np.asarray(step(tokens))
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ModelError(
                f"generate: logits {list(logits.shape)} for tokens {list(tokens.shape)}; the model "
                "gives [1, window, vocabulary]"
            )
        last = logits[0, len(seen) - 1]
        if not np.isfinite(last).all():
            raise ModelError(f"generate: the logits of token {len(text)} hold NaN or Inf")
        text.append(int(last.argmax()))
    return text[len(prompt) :]
