"""Tiny models and contexts that many tests share. Everything else is built where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.devices.profile import DeviceProfile, Sparsity, Target
from edgeopt.ir.calls import Batch
from edgeopt.passes import by_name
from edgeopt.pipeline.compiler_pass import Pass
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.reference import FloatReference
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.plan import Plan
from edgeopt.quant.spec import Role

X86 = "onnxruntime-x86"
TENSORRT = "tensorrt"


class SmallCNN(nn.Module):
    """A residual, a depthwise convolution, ReLUs, a max pool, a global pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.expand = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.stem(x))
        z = self.expand(self.relu(self.depthwise(y)))
        y = self.pool(y + z)
        return self.head(self.gap(y).flatten(1))


class Attention(nn.Module):
    """Packed qkv, two heads, fused attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class TiedHead(nn.Module):
    """A language model's head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(tokens)))


def seeded(kind: type[nn.Module], *args: Any) -> nn.Module:
    """Return a model in eval mode with weights from a fixed seed."""
    torch.manual_seed(0)
    return kind(*args).eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Return normal numbers from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(*inputs: Tensor) -> Any:
    """Return calibration data: one batch for each input."""

    def stream() -> Iterator[Batch]:
        for x in inputs:
            yield Batch((x,))

    return stream


def context(
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    rules: str = X86,
    sparsity: Sparsity | None = None,
    module: nn.Module | None = None,
    **changes: Any,
) -> PassContext:
    """Return a context of a made-up device; calibration is the example unless given."""
    target = Target("here", "onnx", "onnxruntime", rules)
    profile = DeviceProfile("made-up", "A device", "int8", (target,), sparsity=sparsity)
    if "calibration" not in changes:
        changes["calibration"] = lambda: iter([Batch(args, dict(kwargs or {}))])
    return PassContext(
        profile=profile,
        target=target,
        example_args=args,
        example_kwargs=dict(kwargs or {}),
        reference=FloatReference(module) if module is not None else None,
        **changes,
    )


def passes(*names: str | Pass[Any]) -> tuple[Pass[Any], ...]:
    """Return passes by name, with default options."""
    return tuple(by_name(n)() if isinstance(n, str) else n for n in names)


def run(module: nn.Module, ctx: PassContext, *names: str | Pass[Any]) -> ModelState:
    """Run passes, fully verified, from the module on."""
    return Pipeline(passes(*names)).run(ModelState(module=module), ctx)


def go_on(state: ModelState, ctx: PassContext, *names: str | Pass[Any]) -> ModelState:
    """Run more passes on a state."""
    already = tuple(record.name for record in state.history)
    return Pipeline(
        passes(*names), start=state.stage, start_phase=state.phase, already=already
    ).run(state, ctx)


def float_operators(plan: Plan) -> dict[str, str]:
    """Return the operators that could be integer and stay float: address without port -> why."""
    lines = [r for r in plan if r.role is Role.WEIGHT and r.spec is None and r.reason]
    return {line.address.rpartition(".")[0]: line.reason for line in lines}


QUANTIZE = ("capture", "plan", "calibrate", "quantize")
"""From a module to a quantized graph."""
