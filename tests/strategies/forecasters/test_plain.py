"""The plain forecaster: a network without attention, whose memory is its window alone."""

from __future__ import annotations

import builders
import msgspec
import numpy as np
import pytest
import torch

from tracepaper.strategies.api.model import EXPLAINED
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.forecasters.windowed import PlainForecaster
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.lstm import LstmConfig, LstmNetwork
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

NAME = "linear:BTCUSDT"
WINDOW = 40
CONTEXT = WINDOW + rows.schema("v2-1m").lookback - 1
BARS = builders.bars(CONTEXT + 60, seed=5)
CARD = {
    "model": {"kind": "lstm", "id": "0123456789ab"},
    "architecture": {"dim": 12, "layers": 2, "window": WINDOW},
    "features": {"schema_id": "v2-1m"},
}


def forecaster() -> PlainForecaster:
    torch.manual_seed(2)
    weights = LstmNetwork(LstmConfig(dim=12, layers=2, window=WINDOW)).state_dict()
    made = build(CARD, {name: 3 * tensor for name, tensor in weights.items()})
    assert isinstance(made, PlainForecaster)
    return made


def stepped(made: PlainForecaster, bars: list[Bar]) -> list[Forecast | None]:
    return [made.step(bar) for bar in bars]


def near(first: Forecast | None, second: Forecast | None) -> bool:
    assert first is not None
    assert second is not None
    said, expected = ([*forecast.mean_return, *forecast.p_up] for forecast in (first, second))
    return bool(np.allclose(said, expected, rtol=1e-4, atol=0))


def test_it_says_what_it_gives_and_no_more() -> None:
    made: Forecaster = forecaster()
    assert made.measures == MEASURES - set(EXPLAINED)
    assert (made.context, made.backend) == (CONTEXT, "recurrence")
    answers = [made.step(bar) for bar in BARS[:CONTEXT]]
    assert answers[-2] is None
    assert answers[-1] is not None
    assert answers[-1].explanation is None
    assert answers[-1].model_id == "0123456789ab"


def test_one_warmed_with_its_context_equals_one_that_has_run_longer() -> None:
    running, warmed = forecaster(), forecaster()
    long = stepped(running, BARS)
    warmed.warm(NAME, BARS[-CONTEXT - 1 : -1])
    assert warmed.step(BARS[-1]) == long[-1]
    assert long[-1] != long[-2]


def test_many_windows_at_once_are_answered_as_bar_by_bar() -> None:
    one, many = forecaster(), forecaster()
    bars = BARS[: CONTEXT + 20]
    assert all(map(near, stepped(one, bars)[CONTEXT - 1 :], many.scan(bars)[CONTEXT - 1 :]))


def test_a_corrupted_future_moves_no_earlier_answer() -> None:
    spoiled = [msgspec.structs.replace(bar, close=bar.low) for bar in BARS[CONTEXT + 5 :]]
    one, other = forecaster().scan(BARS), forecaster().scan(BARS[: CONTEXT + 5] + spoiled)
    assert all(map(near, one[CONTEXT - 1 : CONTEXT + 5], other[CONTEXT - 1 : CONTEXT + 5]))
    assert not near(one[CONTEXT + 5], other[CONTEXT + 5])


def test_bars_of_a_close_are_answered_together() -> None:
    other = builders.bars(CONTEXT + 1, seed=9, instrument_id="linear:ETHUSDT")
    alone, both = forecaster(), forecaster()
    alone.warm(NAME, BARS[:CONTEXT])
    both.warm(NAME, BARS[:CONTEXT])
    both.warm("linear:ETHUSDT", other[:CONTEXT])
    first, second = both.predict_many([BARS[CONTEXT], other[CONTEXT]])
    assert near(first, alone.step(BARS[CONTEXT]))
    assert second is not None
    with pytest.raises(InvariantBroken, match="one of each"):
        both.predict_many([other[CONTEXT], other[CONTEXT]])
