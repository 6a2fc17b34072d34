"""Relevance in place of where attention flowed: signed, the same however it is asked, and alone."""

from __future__ import annotations

from dataclasses import replace

import builders
import numpy as np
import pytest
import torch
from models import SMALL, AnyConfig, card, weights
from msgspec import structs

from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.attribution import Probe, attending
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig
from tracepaper.strategies.networks.lstm import LstmConfig
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import BLOCK_BARS, Explanation, Forecast

torch.set_num_threads(1)
NETWORKS: dict[str, AnyConfig] = {
    "flash": replace(SMALL, window=40),
    "full": FlashConfig(dim=16, layers=2, heads=2, window=80, mask="full"),
    "informer": InformerConfig(dim=16, layers=2, heads=2, window=80),
}
BARS = builders.bars(1_600, seed=5)


def forecaster(name: str, *, mode: str = "step", relevance: bool = True) -> Forecaster:
    config = NETWORKS[name]
    return build(
        card(config), weights(config), RunOptions(mode=mode, by_relevance=relevance, horizon=30)
    )


def explanations(answers: list[Forecast | None]) -> list[Explanation]:
    return [
        answer.explanation
        for answer in answers
        if answer is not None and answer.explanation is not None
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_a_scan_and_a_warm_start_agree_and_gates_measure_as_before(name: str) -> None:
    model = forecaster(name)
    bars = BARS[: model.context + 6]
    stepped = explanations([model.step(bar) for bar in bars])
    assert len({row.buckets for row in stepped}) == len(stepped) == 7
    warmed = forecaster(name)
    warmed.warm(bars[0].instrument, bars[2:-3])
    again = explanations([warmed.step(bar) for bar in bars[-3:]])
    assert [row.buckets for row in again] == [row.buckets for row in stepped[-3:]]
    rollouts = forecaster(name, relevance=False)
    plain = explanations([rollouts.step(bar) for bar in bars])
    stored = {"buckets": b"", "older_mass": None, "l1_error": None}
    assert [structs.replace(row, **stored) for row in stepped] == [
        structs.replace(row, **stored) for row in plain
    ]
    scanned = explanations(forecaster(name, mode="scan").scan(bars))
    assert [row.buckets for row in scanned] == [row.buckets for row in stepped]


@pytest.mark.parametrize("name", NETWORKS)
def test_shares_are_what_the_bars_of_a_block_add_with_its_sign(name: str) -> None:
    model = forecaster(name)
    bars = BARS[: model.context]
    (row,) = explanations([model.step(bar) for bar in bars])
    shares = np.append(weights_of(row.buckets), row.older_mass or 0.0)
    assert np.abs(shares).sum() == pytest.approx(1.0, abs=1e-6)
    network = attending(model)
    assert network is not None
    added = Probe(network, bars, horizon=30).relevance().sum(axis=1)
    blocks = np.array([bar.open_time_ms // bar.interval_ms // BLOCK_BARS for bar in bars])
    age = blocks[-1] - blocks[-len(added) :]
    sums = np.bincount(age, added, minlength=len(shares))
    assert shares == pytest.approx(sums / np.abs(sums).sum(), abs=1e-5)


def test_a_model_that_does_not_attend_is_rejected() -> None:
    lstm = LstmConfig(dim=16, layers=2, window=40)
    with pytest.raises(ConfigInvalid, match="kind lstm has no attention to explain"):
        build(card(lstm), weights(lstm), RunOptions(by_relevance=True, horizon=30))
