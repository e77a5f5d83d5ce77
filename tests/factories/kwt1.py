"""KWT-1, a keyword transformer for 12 speech commands: `kwt1.py:kwt1`.

Weights, audio front end and four clips are those of the asset folder `kwt1-speech` (its SOURCE.md
gives the structure). Four clips become many: shifted in time, at other loudness, mixed with noise.
Those of the three clips that say what they are judge; the noise, which is no command, calibrates.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

LABELS = (
    "_silence_", "_unknown_", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
)  # fmt: skip
SPOKEN = {"yes": 2, "no": 3, "silence": 0}
"""Clip -> its label."""
RATE_HZ = 16000
VARIANTS = 24
"""Of each clip, to calibrate with, and as many others to judge on."""


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class KWT1(nn.Module):
    """Classify float MFCC [B, 98, 40] -> logits [B, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(40, 64)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 64))
        self.pos_embed = nn.Parameter(torch.zeros(1, 99, 64))
        layer = nn.TransformerEncoderLayer(
            64, 1, 256, dropout=0.0, activation=_gelu, layer_norm_eps=1e-6, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(64, 12)

    def forward(self, mfcc: Tensor) -> Tensor:
        x = self.proj(mfcc)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.encoder(x)[:, 0])


def front_end(waves: Tensor, folder: Path) -> Tensor:
    """Return MFCC [N, 98, 40] of waves [N, 16000] in -1..1."""
    table = load_file(folder / "frontend.safetensors")
    frames = waves.unfold(1, 480, 160) * table["window"]
    real, imaginary = frames @ table["dft_real"].T, frames @ table["dft_imag"].T
    magnitude = torch.sqrt(real**2 + imaginary**2)
    mel = torch.log(torch.clamp(magnitude @ table["mel"].T, min=table["floor"]))
    return (mel @ table["dct"].T - table["norm_sub"]) * table["norm_mul"]


def clip(folder: Path, name: str) -> Tensor:
    """Return one clip as a wave [16000]."""
    with wave.open(str(folder / f"{name}_1000ms.wav")) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return torch.from_numpy(data.astype(np.float32) / 32768.0)


def variants(folder: Path, names: Sequence[str], seed: int) -> Tensor:
    """Return MFCC of each clip shifted by up to 50 ms, at other loudness, with other noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = clip(folder, "noise")
    waves = []
    for name in names:
        original = clip(folder, name)
        for _ in range(VARIANTS):
            shift, place = torch.randint(0, RATE_HZ // 10, (2,), generator=generator).tolist()
            loudness, level = torch.rand(2, generator=generator).tolist()
            moved = torch.roll(original, shift - RATE_HZ // 20)
            mixed = moved * (0.5 + loudness) + torch.roll(noise, place) * 0.1 * level
            waves.append(mixed.clamp(-1.0, 1.0))
    return front_end(torch.stack(waves), folder)


def kwt1() -> dict[str, Any]:
    """Return the trained model with its data."""
    folder = assets() / "kwt1-speech"
    module = KWT1().eval()
    module.load_state_dict(load_file(folder / "kwt1.safetensors"))
    calibration = variants(folder, [*SPOKEN, "noise"], seed=0)
    evaluation = variants(folder, [*SPOKEN], seed=1)
    answers = torch.tensor(list(SPOKEN.values())).repeat_interleave(VARIANTS)
    return {
        "module": module,
        "example_args": calibration[:2],
        "output_names": ("logits",),
        "labels": LABELS,
        "calibration": calibration,
        "evaluation": (evaluation, answers),
        "metric": "top1",
    }
