"""Train the zoo's language model on the reference text inside CPython."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.models.zoo import text
from edgeopt.models.zoo.byte_lm import Attention, ByteLM, SwiGLU


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the model is trained: AdamW, linear warm-up, then a cosine down to 5 % of the rate.

    Attributes:
        steps: Optimizer steps.
        batch: Windows a step.
        window: Bytes a window; its start is drawn at random.
        rate: Peak learning rate.
        warmup: Steps until it is reached.
        decay: Weight decay of the matrices.
        dropout: Of each residual branch, while training: the text is read some 30 times.
    """

    steps: int = 5000
    batch: int = 8
    window: int = 256
    rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.1
    dropout: float = 0.15

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def initialize(model: ByteLM) -> None:
    """Draw the weights: N(0, 0.02), branches into the residual stream divided by sqrt(2 depth)."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(
                parameter, std=0.02 / math.sqrt(2 * len(model.blocks)) if into_residual else 0.02
            )


def train(
    seed: int, schedule: Schedule, checkpoint: Path | None = None, save_every: float = 120.0
) -> ByteLM:
    """Train on the training split and return the model in eval mode.

    Each step draws from a seed of its own, so a run resumed from `checkpoint` ends in the same
    weights as one that was not interrupted. It is written every `save_every` seconds.
    """
    torch.manual_seed(seed)
    model = ByteLM()
    initialize(model)
    corpus = text.load("train").long()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay
    )
    first = _resume(model, optimizer, checkpoint)
    hooks = [
        module.register_forward_hook(_dropout(schedule.dropout))
        for module in model.modules()
        if isinstance(module, Attention | SwiGLU)
    ]
    started = saved = time.monotonic()
    model.train()
    for step in range(first, schedule.steps):
        torch.manual_seed(seed + 1_000_003 * (step + 1))
        starts = torch.randint(len(corpus) - schedule.window, (schedule.batch,))
        windows = corpus[starts[:, None] + torch.arange(schedule.window + 1)]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 199 or step == schedule.steps - 1:
            print(
                f"step {step + 1}/{schedule.steps} loss {loss.item():.3f} held-out perplexity "
                f"{perplexity(model):.3f} ({time.monotonic() - started:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
        if checkpoint is not None and time.monotonic() - saved >= save_every:
            _save(model, optimizer, step + 1, checkpoint)
            saved = time.monotonic()
    for hook in hooks:
        hook.remove()
    return model.eval()


def perplexity(model: nn.Module, window: int = 96) -> float:
    """Return the perplexity a byte over all held-out windows."""
    training = model.training
    model.eval()
    tokens, labels = text.windows("evaluation", window)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(t).flatten(0, 1), y.flatten(), reduction="sum")
            for t, y in zip(tokens.split(32), labels.split(32), strict=True)
        ]
    model.train(training)
    return math.exp(float(torch.stack(losses).sum()) / labels.numel())


def _dropout(p: float) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return F.dropout(output, p, module.training)

    return hook


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    stored = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    return int(stored["step"])


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, checkpoint: Path) -> None:
    part = checkpoint.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, part)
    os.replace(part, checkpoint)
