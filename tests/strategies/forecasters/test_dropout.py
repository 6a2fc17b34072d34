"""Passes with dropout: their spread, by hand; the same from a step, a scan and a warm start."""

from __future__ import annotations

import struct
from dataclasses import replace

import builders
import numpy as np
import pytest
import torch
from builders import present
from models import SMALL, AnyConfig, card, weights
from msgspec import structs

from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig
from tracepaper.strategies.networks.lstm import LstmConfig
from tracepaper.strategies.types.decisions import Forecast

torch.set_num_threads(1)
PASSES = 5
NETWORKS: dict[str, AnyConfig] = {
    "flash": replace(SMALL, window=20, dropout=0.2),
    "full": FlashConfig(dim=16, layers=2, heads=2, window=40, mask="full", dropout=0.2),
    "informer": InformerConfig(dim=16, layers=2, heads=2, window=40, dropout=0.2),
    "lstm": LstmConfig(dim=16, layers=2, window=40, dropout=0.2),
}


def forecaster(name: str, passes: int = PASSES, mode: str = "step") -> Forecaster:
    config = NETWORKS[name]
    return build(card(config), weights(config), RunOptions(mode=mode, dropout_passes=passes))


def without(forecast: Forecast | None) -> Forecast | None:
    return None if forecast is None else structs.replace(forecast, heads=None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_a_scan_and_a_warm_start_agree_in_every_bit(name: str) -> None:
    model = forecaster(name)
    bars = builders.bars(model.context + 12, seed=5)
    other = forecaster(name, 0)
    plain = [other.step(bar) for bar in bars]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    stepped = [model.step(bar) for bar in bars]
    assert torch.equal(torch.get_rng_state(), state)
    assert [without(row) for row in stepped] == plain
    spreads = [row.heads.dropout_spread for row in stepped if row is not None and row.heads]
    assert len(spreads) == 13
    assert len(set(spreads)) == 13
    scanned = forecaster(name, mode="scan").scan(bars)
    assert [heads(row) for row in scanned] == [heads(row) for row in stepped]
    warmed = forecaster(name)
    warmed.warm(bars[0].instrument, bars[4:-4])
    assert [heads(warmed.step(bar)) for bar in bars[-4:]] == [heads(row) for row in stepped[-4:]]


def heads(forecast: Forecast | None) -> bytes:
    return b"" if forecast is None or forecast.heads is None else forecast.heads.dropout_spread


@pytest.mark.parametrize("name", NETWORKS)
def test_the_spread_is_the_deviation_of_the_means_of_masks_drawn_by_the_bars_time(
    name: str,
) -> None:
    model = forecaster(name)
    bars = builders.bars(model.context, seed=8)
    answer = present([model.step(bar) for bar in bars][-1])
    schema, network = rows.schema("v2-1m"), model.model.network  # type: ignore[attr-defined]
    assert isinstance(network, Network)
    assert not any(module.training for module in network.modules())
    block = rows.compute(schema, rows.columns(bars))
    window = torch.from_numpy(block.values[-network.config.receptive_field :])
    first = bars[-1].open_time_ms // bars[-1].interval_ms - len(window) + 1
    for module in network.dropping():
        module.train()
    torch.manual_seed(bars[-1].open_time_ms)
    with torch.no_grad():
        means = network(
            torch.stack([window] * PASSES), torch.arange(first, first + len(window))
        ).mean[:, -1]
    means = means.numpy().astype(np.float64)
    centre = sum(means) / PASSES
    variance = sum((mean - centre) ** 2 for mean in means) / (PASSES - 1)
    wanted = np.sqrt(variance) * block.sigma[-1] * np.sqrt(answer.horizons)
    assert (wanted > 0).all()
    spreads = [answer.dropout_spread(at) for at in range(len(answer.horizons))]
    assert spreads == pytest.approx(wanted.tolist(), rel=1e-4)


def test_two_instruments_of_one_group_are_asked_each_by_itself() -> None:
    model, alone = forecaster("flash"), forecaster("flash")
    first = builders.bars(model.context + 2, seed=1)
    second = [
        structs.replace(bar, instrument="linear:ETHUSDT")
        for bar in builders.bars(model.context + 2, seed=2)
    ]
    both = [model.predict_many(pair) for pair in zip(first, second, strict=True)]
    answers = [alone.step(bar) for bar in second]
    assert [heads(pair[1]) for pair in both] == [heads(row) for row in answers]
    assert heads(both[-1][0]) != heads(both[-1][1])


def test_a_checkpoint_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="dropout_passes is for a network that was trained"):
        build(card(SMALL), weights(SMALL), RunOptions(dropout_passes=2))
    assert "dropout_spread" not in build(card(SMALL), weights(SMALL)).measures
    assert "dropout_spread" in forecaster("lstm").measures


def test_what_is_recorded_without_passes_is_what_was_recorded_before_there_were_any() -> None:
    model = forecaster("flash")
    answer = present([model.step(bar) for bar in builders.bars(model.context, seed=8)][-1])
    assert answer.heads is not None
    assert len(answer.heads.stored()) == 8
    assert len(structs.replace(answer.heads, dropout_spread=b"").stored()) == 6
    assert struct.unpack("<f", answer.heads.dropout_spread[:4])[0] == answer.dropout_spread(0)
