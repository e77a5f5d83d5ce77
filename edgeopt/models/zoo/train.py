"""Train the zoo's models: `python -m edgeopt.models.zoo.train vit` writes the float16 weights.

The language model is trained in `edgeopt.models.zoo.train_text`, the classifiers here. Those marked
sparse-aware get weights that 2:4 pruning hardly hurts: in the second half of the training the
forward pass sees the weights under their 2:4 magnitude mask, gradients pass straight through, and
pruned weights decay (SR-STE, Zhou et al., ICLR 2021, equation 7). The stored weights are dense.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.models.weights import load_weights
from edgeopt.models.zoo import digits, train_text
from edgeopt.models.zoo.mobilenet import MobileNet
from edgeopt.models.zoo.vit import VisionTransformer

RECIPES = {
    # name: model, image size, epochs, learning rate, dropout-free weight decay, sparse-aware
    "vit": (VisionTransformer, 40, 90, 1e-3, 0.05, True),
    "mobilenet": (MobileNet, 32, 60, 4e-3, 0.01, False),
}
LANGUAGE_MODEL = "bytelm"


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 12 degrees, scale by 10 %, shift by 10 % and shear a little."""
    count = len(images)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, scale, shear = uniform(0.21), 1 + uniform(0.1), uniform(0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * scale, (shear - sin) * scale, uniform(0.2)], 1),
            torch.stack([sin * scale, cos * scale, uniform(0.2)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + 0.05 * torch.randn(moved.shape, generator=generator)


class _SparseStraightThrough(torch.autograd.Function):
    """Apply the 2:4 magnitude mask; pass the gradient on, plus decay of what was masked."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, decay: float) -> Tensor:
        groups = weight.reshape(len(weight), -1, 4)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(2, groups.abs().topk(2, dim=2).indices, True)
        mask = kept.reshape(weight.shape)
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return grad + ctx.decay * ~mask * weight, None


class _SparseWeight(nn.Module):
    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, weight: Tensor) -> Tensor:
        return _SparseStraightThrough.apply(weight, self.decay)


def _sparse_linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features % 8 == 0]


def train(name: str, seed: int, epochs: int | None = None) -> nn.Module:
    """Train one zoo model on the training split and return it in eval mode."""
    factory, image_size, default_epochs, rate, decay, sparse = RECIPES[name]
    epochs = epochs or default_epochs
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = factory()
    images, labels = digits.load("train", image_size)
    held_out = digits.load("test", image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.15)
    started = time.monotonic()
    for epoch in range(epochs):
        if sparse and epoch == epochs // 2:
            for linear in _sparse_linears(model):
                nn.utils.parametrize.register_parametrization(linear, "weight", _SparseWeight(2e-4))
        model.train()
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            logits = model(_augment(images[chosen], generator))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(
                f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f} held-out top-1 "
                f"{100 * accuracy(model, *held_out):.2f} % ({time.monotonic() - started:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    if sparse:
        for linear in _sparse_linears(model):
            stored: Any = linear.parametrizations
            dense = stored.weight.original.detach().clone()
            nn.utils.parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
            linear.weight = nn.Parameter(dense)
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers, in [0, 1]."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def store(model: nn.Module, path: Path) -> None:
    """Write the weights as float16, a tied one once, and put them back rounded."""
    known: dict[tuple[int, torch.Size], str] = {}
    tensors = {}
    for key, value in model.state_dict().items():
        if known.setdefault((value.data_ptr(), value.shape), key) == key:
            stored = value.half() if value.is_floating_point() else value
            tensors[key] = stored.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    load_weights(model, tensors, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted((*RECIPES, LANGUAGE_MODEL)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of a classifier")
    parser.add_argument("--steps", type=int, help="of the language model")
    parser.add_argument("--checkpoint", type=Path, help="resume the language model from here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    args = parser.parse_args()
    path = args.out / f"{args.name}.safetensors"
    if args.name == LANGUAGE_MODEL:
        if args.epochs is not None:
            parser.error("--epochs: the language model counts --steps")
        schedule = train_text.Schedule()
        if args.steps is not None:
            schedule = dataclasses.replace(schedule, steps=args.steps)
        model: nn.Module = train_text.train(args.seed, schedule, args.checkpoint)
        store(model, path)
        python = platform.python_version()
        figure = f"perplexity {train_text.perplexity(model):.3f} (text of Python {python})"
    else:
        if args.steps is not None or args.checkpoint is not None:
            parser.error("--steps and --checkpoint: classifiers count --epochs and do not resume")
        model = train(args.name, args.seed, args.epochs)
        store(model, path)
        held_out = digits.load("test", RECIPES[args.name][1])
        figure = f"top-1 {100 * accuracy(model, *held_out):.2f} %"
    print(f"{args.name}: held-out {figure}")


if __name__ == "__main__":
    main()
