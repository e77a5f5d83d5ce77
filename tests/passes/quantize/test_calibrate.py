"""`calibrate` measures every planned value, and refuses data that would spoil it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeopt.errors import ConfigError, DataError, PreconditionError
from edgeopt.ir.calls import Batch
from edgeopt.passes.quantize.calibrate import Calibrate, CalibrateConfig
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.statistics import EdgeStatistics
from tests.small_models import SmallCNN, batches, context, normal, run, seeded

MODEL = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def calibrated(
    *data: Tensor, config: CalibrateConfig | None = None, module: nn.Module | None = None
) -> ModelState:
    ctx = context(data[0], calibration=batches(*data))
    module = module if module is not None else seeded(lambda: MODEL)
    return run(module, ctx, "capture", "plan", Calibrate(config))


def measured(state: ModelState) -> dict[str, EdgeStatistics]:
    """Return the statistics by address."""
    assert state.plan is not None
    assert state.statistics is not None
    names = {str(row.edge): row.address for row in state.plan}
    return {names[edge]: s for edge, s in state.statistics.edges["forward"].items()}


def test_ranges_are_those_of_all_batches_together() -> None:
    first, second = normal(3, 4), 2 * normal(5, 4, seed=2)
    state = calibrated(first, second)
    both = torch.cat([first, second])
    hidden = torch.relu(MODEL[0](both)).detach()
    found = measured(state)
    assert set(found) == {"input:input#0.out", "1:relu#0.out"}
    row = found["input:input#0.out"]
    assert (row.minimum, row.maximum) == (float(both.min()), float(both.max()))
    assert (row.low, row.high) == (row.minimum, row.maximum)
    assert row.samples == 8 * 4
    # another batch size may add the four products in another order: an ulp or two
    assert found["1:relu#0.out"].maximum == pytest.approx(float(hidden.max()), rel=1e-6)
    assert state.statistics is not None
    assert state.statistics.batches == 2
    assert set(state.history[-1].changes) == set(found)


def test_the_graph_and_its_outputs_stay_as_they_are() -> None:
    state = calibrated(normal(3, 4))
    assert state.history[-1].drift_db == float("inf")


def test_a_percentile_clips_both_ends_and_says_how_many_ranges() -> None:
    x = normal(2000, 4)
    state = calibrated(x, config=CalibrateConfig("percentile", 98.0))
    row = measured(state)["input:input#0.out"]
    low, high = np.percentile(x.numpy(), [1.0, 99.0])
    # one bin of 2048 over twice the largest magnitude, and the gap to the next sample
    width = 2 * float(x.abs().max()) / 2048 + 0.01
    assert row.low == pytest.approx(low, abs=width)
    assert row.high == pytest.approx(high, abs=width)
    assert row.minimum < row.low < row.high < row.maximum
    assert state.history[-1].notes[-1] == "2 of 2 ranges are clipped by the percentile"


def test_a_range_that_still_grows_is_told() -> None:
    small, large = normal(4, 4), 3 * normal(4, 4)
    assert calibrated(large, small).history[-1].notes == ()
    (note,) = calibrated(small, large).history[-1].notes
    assert note.startswith("more samples would still widen ranges; the second half of the data")
    assert "input:input#0.out (200 %)" in note


def test_a_value_that_is_always_zero_is_told() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[0].bias.fill_(-100.0)
    state = calibrated(normal(4, 4), module=module)
    assert state.history[-1].notes == ("always zero on the calibration data: 1:relu#0.out",)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_value_in_any_batch_is_refused_by_address(
    method: str, value: float, place: int
) -> None:
    data = [normal(3, 4, seed=seed) for seed in range(3)]
    example = data[0].clone()
    data[place] = data[place].clone()
    data[place][1, 2] = value
    ctx = context(example, calibration=batches(*data))
    with pytest.raises(DataError, match=r"input:input#0\.out took NaN or Inf on the calibration"):
        run(seeded(lambda: MODEL), ctx, "capture", "plan", Calibrate(CalibrateConfig(method)))


def test_empty_data_is_refused() -> None:
    ctx = context(normal(3, 4), calibration=batches())
    with pytest.raises(DataError, match="the calibration data hold no sample"):
        run(seeded(lambda: MODEL), ctx, "capture", "plan", "calibrate")


def test_missing_data_is_refused_before_anything_runs() -> None:
    ctx = context(normal(3, 4), calibration=None)
    called: list[str] = []

    class Told(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            called.append("forward")
            return super().forward(x)

    with pytest.raises(PreconditionError, match=r"calibrate: needs calibration data; pass --calib"):
        run(nn.Sequential(Told(4, 4)).eval(), ctx, "capture", "plan", "calibrate")
    assert called == []


def test_data_is_streamed_and_read_once() -> None:
    alive: list[int] = []

    def stream() -> Any:
        for seed in range(3):
            alive.append(seed)
            yield Batch((normal(2, 4, seed=seed),))

    ctx = context(normal(2, 4), calibration=stream)
    run(seeded(lambda: MODEL), ctx, "capture", "plan", "calibrate")
    assert alive == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "entropy"}, "method is minmax or percentile, not 'entropy'"),
        ({"percentile": 50.0}, "percentile is above 50 and at most 100, not 50.0"),
        ({"percentile": 100.1}, "percentile is above 50 and at most 100, not 100.1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrateConfig(**options)


def test_a_percentile_of_100_is_the_whole_range() -> None:
    x = normal(3, 3, 8, 8)
    whole = calibrated(x, module=seeded(SmallCNN))
    same = calibrated(x, module=seeded(SmallCNN), config=CalibrateConfig("percentile", 100.0))
    assert measured(whole) == measured(same)
