"""Training of the language model: its schedule, and that an interrupted run loses nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeopt.models.zoo import train_text
from edgeopt.models.zoo.byte_lm import ByteLM
from edgeopt.models.zoo.train import store
from edgeopt.models.zoo.train_text import Schedule, initialize, train

SHORT = Schedule(steps=4, batch=2, window=32, warmup=2)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_text, "perplexity", lambda model: math.nan)


def test_a_resumed_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(0, SHORT).state_dict()
    checkpoint, save = tmp_path / "checkpoint.pt", train_text._save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        if args[2] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_text, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(0, SHORT, checkpoint, save_every=0.0)
    resumed = train(0, SHORT, checkpoint).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    other = train(1, SHORT).state_dict()
    assert not torch.equal(other["embed.weight"], whole["embed.weight"])


def test_training_lowers_the_loss_and_leaves_no_hook(capsys: pytest.CaptureFixture[str]) -> None:
    model = train(0, Schedule(steps=12, batch=4, window=32, warmup=2, dropout=0.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert float(line.split("loss ")[1].split()[0]) < math.log(256) - 1
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    rates = [SHORT.rate_at(step) for step in range(4)]
    assert rates == pytest.approx([1e-3, 2e-3, 2e-3, (0.05 + 0.95 * 0.5) * 2e-3])
    assert Schedule().rate_at(Schedule().steps) == pytest.approx(0.05 * Schedule().rate)


def test_branches_into_the_residual_stream_start_smaller() -> None:
    torch.manual_seed(0)
    model = ByteLM()
    initialize(model)
    for name, value in model.named_parameters():
        if value.dim() == 2:
            small = name.endswith(("o_proj.weight", "down_proj.weight"))
            wanted = 0.02 / math.sqrt(8) if small else 0.02
            assert float(value.detach().std()) == pytest.approx(wanted, rel=0.03)


def test_weights_are_stored_in_float16_and_a_tied_one_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = ByteLM(width=32, depth=1, heads=2, kv_heads=1, hidden=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    store(model, tmp_path / "weights" / "model.safetensors")
    stored = load_file(tmp_path / "weights" / "model.safetensors")
    assert set(stored) == set(before) - {"head.weight"}
    assert {value.dtype for value in stored.values()} == {torch.float16}
    for name, value in model.state_dict().items():  # what was stored, in float32
        assert torch.equal(value, before[name].half().float())
