"""Candles of several symbols on common closes, their labels, and the returns of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, learnable, split, write_csv

from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.dataset import Dataset, close_by_close
from tracepaper.replay.learning.estimators.cross_sectional import (
    COVARIANCE_BARS,
    FEE,
    ClosesPart,
    CrossAssetModel,
    decided,
    portfolio_decisions,
    portfolio_returns,
    predicted,
    rule_weights,
)
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.judge.forecasts import MODEL
from tracepaper.replay.learning.judge.metrics import rank_correlations
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.samples import EVERY_HEAD, correlations, gains, relative_return
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import first_position
from tracepaper.strategies.allocation import WeightRule
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.cross_asset import (
    JOINT,
    CrossAssetConfig,
    CrossAssetNetwork,
    correlations_of,
)

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
DAYS = 4
SPLIT = split(1.7, 2.4, 3.1)


def candles(symbol: str, *, days: float = DAYS) -> Candles:
    return learnable(round(days * DAY_BARS), seed=SYMBOLS.index(symbol), symbol=symbol)


def aligned(parts: list[Candles], folder: Path) -> Dataset:
    paths = [str(write_csv(part, folder)) for part in parts]
    return close_by_close(Dataset.read(paths, lambda _: SPLIT, HORIZONS), lambda _: SPLIT)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return aligned([candles(symbol) for symbol in SYMBOLS], tmp_path_factory.mktemp("aligned"))


def network(*, attention: str = "factorised", allocation: bool = False) -> CrossAssetNetwork:
    torch.manual_seed(0)
    config = CrossAssetConfig(
        symbols=SYMBOLS,
        dim=8,
        layers=1,
        heads=2,
        window=24,
        horizons=HORIZONS,
        every=30,
        attention=attention,
        allocation=allocation,
    )
    return CrossAssetNetwork(config)


def test_a_relative_return_is_one_less_the_mean_of_all(material: Dataset) -> None:
    panel = material.panels[0]
    row, bars = panel.first + 100, HORIZONS[1]
    relative = relative_return(panel.price, panel.unit, bars)
    moves = [float(np.log(close[row + bars] / close[row])) for close in panel.price]
    for asset, sigma in enumerate(panel.unit[:, row].tolist()):
        excess = moves[asset] - sum(moves) / len(moves)
        assert relative[asset, row] == pytest.approx(excess / (sigma * bars**0.5), rel=1e-5)
    assert np.isnan(relative[:, -1]).all()


def test_every_symbol_has_the_same_times(material: Dataset) -> None:
    (panel,) = material.panels
    times = [segment.open_time_ms for segment in panel.segments]
    assert all(np.array_equal(times[0], other) for other in times[1:])
    assert len(panel) == DAYS * DAY_BARS


def test_a_close_that_one_symbol_lacks_is_used_by_none(tmp_path: Path) -> None:
    whole, lacking = candles("AAAUSDT"), candles("BBBUSDT")
    rows = np.delete(np.arange(len(lacking)), 2_000)
    dataset = aligned([whole, lacking[rows]], tmp_path)
    assert len(dataset.panels) == 2
    times = np.concatenate([s.segments[0].open_time_ms[s.first :] for s in dataset.panels])
    assert lacking.open_time_ms[2_000] not in times
    used = len(times)
    [unused] = dataset.notes
    assert f"Of 5,760 closes {5_760 - used:,} are not used" in unused
    assert unused.endswith("features there; their bars are AAAUSDT 5,760, BBBUSDT 5,759.")


def test_streams_of_unequal_length_are_cut_to_the_shorter(tmp_path: Path) -> None:
    dataset = aligned([candles("AAAUSDT"), candles("BBBUSDT", days=3.5)], tmp_path)
    assert len(dataset.panels[0]) == round(3.5 * DAY_BARS)
    assert dataset.notes[0].endswith("their bars are AAAUSDT 5,760, BBBUSDT 5,040.")


def test_symbols_without_a_common_close_are_refused(tmp_path: Path) -> None:
    late = learnable(2_000, symbol="BBBUSDT", start=DAYS * DAY_BARS)
    with pytest.raises(DataInvalid, match="no close at which all of AAAUSDT, BBBUSDT have a bar"):
        aligned([candles("AAAUSDT"), late], tmp_path)


def test_one_symbol_is_not_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="at least two symbols; give those of a second"):
        aligned([candles("AAAUSDT")], tmp_path)


@pytest.mark.parametrize("attention", ["factorised", JOINT])
def test_many_closes_are_answered_as_each_window_alone(attention: str, material: Dataset) -> None:
    model, panel = network(attention=attention).eval(), material.panels[0]
    rows = panel.first + np.array([40, 41, 90])
    answers = predicted(model, panel, rows)
    field = model.config.receptive_field
    for at, row in enumerate(rows.tolist()):
        with torch.inference_mode():
            x = torch.from_numpy(panel.values(row - field + 1, row + 1))[None]
            positions = first_position(panel.segments[0], row - field + 1) + torch.arange(field)
            alone = model(x, torch.arange(3), positions)
        assert np.allclose(
            answers.heads["relative"][:, at], alone.relative[0, :, -1].numpy(), atol=1e-5
        )
        for asset, head in enumerate(answers.each):
            assert np.allclose(head["mean"][at], alone.each.mean[0, asset, -1].numpy(), atol=1e-5)


def test_what_is_earned_after_a_part_is_not_learnt_from_in_it(material: Dataset) -> None:
    """No gain of a chunk reaches past the part's end, even of the last decisions."""
    part = replace(material, heads=EVERY_HEAD | {"gain"}).samples(Part.TRAIN)
    model = network(allocation=True)
    taking = ClosesPart(part, model, length=600)
    last = taking.taken(list(taking.chunks.spread(4, 2))[-1])
    panel, stop = part[0].panel, part[0].stop
    of_batch, gained = decided(last, model.config)
    rows = of_batch[-1].numpy() + stop - 600
    closes = panel.segments[0].close_time_ms
    assert (closes[rows] % (30 * 60_000) == 0).all()
    inside = closes[np.minimum(rows + 30, len(panel) - 1)] <= SPLIT.train_until_ms
    assert not inside.all()  # else nothing is shown
    assert np.array_equal(gained[-1].abs().sum(dim=0).numpy() > 0, inside)
    moved = gains(panel.price, 30)[:, rows[inside]]
    assert np.allclose(gained[-1].numpy()[:, inside], moved, atol=1e-6)


def test_weights_earn_their_gains_less_what_they_trade(material: Dataset) -> None:
    part = material.samples(Part.TEST)
    decisions = portfolio_decisions(part, every=30, field=10)
    decision = decisions[0]
    closes = decision.panel.segments[0].close_time_ms[decision.rows]
    assert (closes % (30 * 60_000) == 0).all()
    assert decision.rows[0] >= decision.panel.first + COVARIANCE_BARS
    weights = np.random.default_rng(0).uniform(-0.3, 0.3, decision.gains.shape)
    returns = portfolio_returns(decisions, {MODEL: lambda *_: weights})
    held, net = np.zeros(3), dict.fromkeys(returns.day.tolist(), 0.0)
    for at, day in enumerate(decision.days.tolist()):
        traded = np.abs(weights[:, at] - held).sum()
        earned = float((weights[:, at] * decision.gains[:, at]).sum())
        net[day] += earned - FEE * traded
        held = weights[:, at] * (1.0 + decision.gains[:, at]) / (1.0 + earned)
    assert returns.value("net").tolist() == pytest.approx(list(net.values()), rel=1e-9)
    assert returns.labels["decisions"].sum() == len(decision.rows)


def test_rules_weigh_by_what_has_closed(material: Dataset) -> None:
    part = material.samples(Part.TEST)[0]
    rows = np.array([part.rows[300], part.rows[400]])
    even = rule_weights(WeightRule.EQUAL)(part.panel, rows)
    assert np.allclose(even, 1 / 3, atol=1e-6)
    before = rule_weights(WeightRule.INVERSE)(part.panel, rows[:1])
    for segment in part.panel.segments:  # what comes later is no part of it
        segment.close[rows[0] + 1 :] *= 1.5
    after = rule_weights(WeightRule.INVERSE)(part.panel, rows[:1])
    for segment in part.panel.segments:
        segment.close[rows[0] + 1 :] /= 1.5
    assert np.array_equal(before, after)


def test_a_rank_correlation_is_by_close() -> None:
    expected = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 5.0], [3.0, 1.0, 5.0]])
    realised = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, 0.9]])
    assert rank_correlations(expected, realised).tolist() == [1.0, -1.0, 0.0]


def led_by_volatility(bars: int) -> list[Candles]:
    """Return three symbols that move together when volatile and independently otherwise."""
    rng = np.random.default_rng(5)
    is_wild = np.sin(2 * np.pi * np.arange(bars) / 240) > 0
    shared = rng.normal(size=bars)
    series = []
    for symbol in SYMBOLS:
        noise = rng.normal(size=bars)
        moves = np.where(is_wild, 2e-3 * (0.95 * shared + 0.3 * noise), 2e-4 * noise)
        close = np.round(1e8 * np.exp(np.cumsum(moves))).astype(np.int64)
        before = np.concatenate([close[:1], close[:-1]])
        high, low = np.maximum(before, close), np.minimum(before, close)
        plain = learnable(bars, symbol=symbol)
        series.append(replace(plain, open=before, high=high, low=low, close=close))
    return series


def test_a_head_of_correlations_learns_what_goes_with_them(tmp_path: Path) -> None:
    dataset = aligned(led_by_volatility(DAYS * DAY_BARS)[:2], tmp_path)  # two assets have one pair
    recipe = recipe_of(
        {
            "model": {"kind": "crossasset"},
            "architecture": {
                "dim": 8, "layers": 1, "heads": 2, "window": 16, "horizons": [5, 30], "factors": 2,
            },
            "training": {
                "steps": 40, "length": 256, "batch": 4, "threads": 1, "validate_every": 20,
                "learning_rate": 0.01, "average": 0.9,
            },
        }
    )  # fmt: skip
    fitted = recipe.kind.fit(dataset, recipe, FitRun(tmp_path / "fit"))
    assert isinstance(fitted, CrossAssetModel)
    network = fitted.model.network
    panel, realised = dataset.panels[0], correlations(dataset.panels[0].price, 30)
    usual = realised[:, dataset.samples(Part.TRAIN)[0].rows].mean(axis=1, keepdims=True)
    rows = dataset.samples(Part.TEST)[0].rows
    loadings = predicted(network, panel, rows).heads["loadings"]
    forecast = correlations_of(torch.from_numpy(loadings)[None])[0, :, :, 1].numpy()
    error, mean = (np.nanmean((each - realised[:, rows]) ** 2) for each in (forecast, usual))
    assert error < 0.7 * mean
