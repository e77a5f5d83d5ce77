"""torch's own attention modules through whole builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgeopt


class Attention(nn.Module):
    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.mix = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.mix(x, x, x, need_weights=self.need_weights)
        return self.head(mixed.mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Attention(need_weights=False),
        lambda: Attention(need_weights=True),
        Encoder,
    ],
    ids=["attention", "attention with weights", "encoder layer"],
)
def test_attention_modules_build_and_are_proven(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert callable(make)
    x = torch.randn(96, 6, 64)
    report = edgeopt.build(
        make().eval(), x[:2], profile="host", recipe="int8", calibration=x[:64], evaluate=x[64:],
        latency=False, drift=False, out=tmp_path / "bundle",
    ).report  # fmt: skip
    (accuracy,) = report.accuracy
    assert accuracy.snr_db is not None
    assert accuracy.snr_db > 30
    (proof,) = report.proof
    assert proof.exact
    int8_macs = report.artifacts[0].int8_macs
    assert int8_macs is not None
    assert int8_macs > 0.9
