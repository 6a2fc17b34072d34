"""Integrated gradients and rows taken away: sums are complete, the network is the model's own."""

from __future__ import annotations

from dataclasses import asdict

import builders
import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attribution import Probe, integrated_gradients
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

BARS = builders.bars(900, seed=3)
HORIZON = 30
FULL = FlashConfig(dim=16, layers=2, heads=2, window=60, mask="full")
SPARSE = InformerConfig(dim=16, layers=2, heads=2, window=64)


def informer() -> WindowedForecaster:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        weights = InformerNetwork(SPARSE).state_dict()
    card = models.card()
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(SPARSE).items()}
    card["architecture"] = listed
    card["model"]["kind"] = "informer"
    model = build(card, weights)
    assert isinstance(model, WindowedForecaster)
    return model


def classic() -> WindowedForecaster:
    model = build(models.card(FULL), models.network(FULL).state_dict())
    assert isinstance(model, WindowedForecaster)
    return model


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe(models.forecaster(), BARS, horizon=HORIZON)


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6),
    st.integers(1, 15),
    st.integers(8, 12),
)
@settings(deadline=None)
def test_contributions_to_a_polynomial_add_up_exactly(
    values: list[float], degree: int, nodes: int
) -> None:
    inputs = torch.tensor(values, dtype=torch.float64)

    def answer(x: Tensor) -> Tensor:
        product: Tensor = x.sum() ** degree + 3.0
        return product

    added = integrated_gradients(answer, inputs, nodes=nodes)
    wanted = float(answer(inputs) - answer(torch.zeros_like(inputs)))
    assert float(added.sum()) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_contributions_to_a_linear_answer_are_its_terms() -> None:
    weights = torch.tensor([[2.0, -3.0], [0.5, 0.0]])
    inputs = torch.tensor([[1.0, 4.0], [-2.0, 9.0]])
    added = integrated_gradients(lambda x: (weights * x).sum(), inputs, nodes=1)
    torch.testing.assert_close(added, (weights * inputs).double())


@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_the_probe_says_what_the_streaming_forecaster_says(encoding: str) -> None:
    forecaster = models.forecaster(
        FlashConfig(dim=16, layers=3, heads=2, window=50, encoding=encoding), temperature=1.7
    )
    forecaster.warm(BARS[0].instrument, BARS[:-1])
    forecast = forecaster.step(BARS[-1])
    assert forecast is not None
    for at, horizon in enumerate(forecast.horizons):
        figures = Probe(forecaster, BARS, horizon=horizon).figures()
        scale = forecast.stdev_return[at]
        assert figures.mean_return == pytest.approx(forecast.mean_return[at], abs=1e-4 * scale)
        lean = forecast.p_up[at] - forecast.p_down[at]
        assert figures.lean == pytest.approx(lean, abs=1e-4)


@pytest.mark.parametrize("make", [informer, classic])
def test_the_probe_says_what_a_windowed_forecaster_says(make: object) -> None:
    assert callable(make)
    forecaster = make()
    forecaster.warm(BARS[0].instrument, BARS[:-1])
    forecast = forecaster.step(BARS[-1])
    at = forecast.horizons.index(HORIZON)
    probe = Probe(forecaster, BARS, horizon=HORIZON)
    figures = probe.figures()
    assert figures.mean_return == pytest.approx(forecast.mean_return[at], rel=1e-4)
    assert figures.lean == pytest.approx(forecast.p_up[at] - forecast.p_down[at], abs=1e-4)
    assert len(probe.rows) == forecaster.model.network.config.window


def test_more_nodes_close_the_gap(probe: Probe) -> None:
    coarse, fine = probe.contributions(2), probe.contributions(32)
    moved = abs(fine.forecast - fine.neutral)
    assert abs(fine.gap) < 1e-4 * moved
    assert abs(fine.gap) < abs(coarse.gap)


def test_neutral_rows_say_the_same_whatever_the_bars_were() -> None:
    probe = Probe(models.forecaster(), BARS, horizon=HORIZON)
    other = Probe(models.forecaster(), BARS[:-7], horizon=HORIZON)
    means = [
        probe.without(range(len(probe.rows))).mean_return / probe.scale for probe in (probe, other)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


def test_older_bars_than_the_context_do_not_count() -> None:
    short = Probe(models.forecaster(), BARS[-models.forecaster().context :], horizon=HORIZON)
    assert short.figures() == Probe(models.forecaster(), BARS, horizon=HORIZON).figures()


def test_too_few_bars_are_refused() -> None:
    with pytest.raises(DataInvalid, match=r"looks back on 627 bars, not 626"):
        Probe(models.forecaster(), BARS[-626:], horizon=HORIZON)


def test_a_decided_bar_without_finite_features_is_refused() -> None:
    absurd = [*BARS[:-2], *(replace(bar, close=0) for bar in BARS[-2:])]
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(DataInvalid, match="are not finite"),
    ):
        Probe(models.forecaster(), absurd, horizon=HORIZON)


def test_shares_of_features_are_slopes_times_values_of_the_bars_that_were_looked_at() -> None:
    net = models.forecaster()
    probe = Probe(net, BARS, horizon=HORIZON)
    rollout = np.zeros(len(probe.rows))
    rollout[-1] = 1.0
    shares = np.array(list(probe.shares(rollout).values()))
    rows, place = torch.from_numpy(probe.rows), net.horizons.index(HORIZON)
    places = [bar.open_time_ms // bar.interval_ms for bar in BARS[-len(rows) :]]

    @torch.no_grad()
    def mean(feature: int, step: float) -> float:
        changed = rows.clone()
        changed[-1, feature] += step
        return float(net.model.network(changed[None], torch.tensor(places)).mean[0, -1, place])

    slopes = [(mean(at, 0.01) - mean(at, -0.01)) / 0.02 for at in range(rows.shape[1])]
    moved = np.abs(probe.rows[-1] * np.array(slopes))
    assert shares.sum() == pytest.approx(1.0)
    assert shares == pytest.approx(moved / moved.sum(), abs=0.01)
