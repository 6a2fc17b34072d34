"""Auxiliary heads (tails, drawdown, regimes, path): labels, losses, and planted signals."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import learning
import numpy as np
import pytest
import torch
from msgspec import structs
from scipy import stats

from tracepaper.replay.explain.auxiliary_heads import auxiliary_tables
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.networks import network_forecasts
from tracepaper.replay.learning.fit import FitOptions, heads_fit
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.heads import (
    coverage,
    head_figures,
    head_sentences,
    levelled,
    levels_of,
    likeliest,
)
from tracepaper.replay.learning.judge.metrics import (
    EWMA,
    HEAD_LOSSES,
    MetricView,
    average_odds,
    breach_rows,
)
from tracepaper.replay.learning.losses import AUXILIARY_LOSSES
from tracepaper.replay.learning.samples import EVERY_HEAD, targets
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.replay.learning.windows import Epochs, predict
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.forecasters.outputs import head_forecasts
from tracepaper.strategies.networks.architecture import Heads, Outputs
from tracepaper.strategies.networks.trading import TradingConfig, TradingNetwork, by_names
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    PATH_LEVELS,
    SHARES,
    Forecast,
    path_steps,
)

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
HEADS = frozenset({"tails", "drawdown", "regimes", "path", "runup"})
HORIZONS = (5, 30)


# --- labels


def test_only_a_network_that_has_the_head_learns_its_label() -> None:
    usual = {"returns", "direction", "variance"}
    assert set(targets(learning.panel(700), HORIZONS)) == usual
    assert set(targets(learning.panel(700), HORIZONS, EVERY_HEAD | HEADS)) == usual | {
        "drawdown",
        "path",
        "runup",
    }


def test_drawdown_and_path_are_those_of_the_closes_until_the_horizon() -> None:
    panel = learning.panel(900)
    labels = {name: of[0] for name, of in targets(panel, HORIZONS, EVERY_HEAD | HEADS).items()}
    logs, sigma = np.log(panel.price[0]), panel.unit[0]
    for row in (600, 733, 850):
        for column, horizon in enumerate(HORIZONS):
            ahead, unit = logs[row : row + horizon + 1], sigma[row]
            falls = [a - b for i, a in enumerate(ahead) for b in ahead[i:]]
            wanted = max(falls) / (unit * horizon**0.5)
            assert labels["drawdown"][row, column] == pytest.approx(wanted, rel=1e-5)
            rises = [b - a for i, a in enumerate(ahead) for b in ahead[i:]]
            wanted = max(rises) / (unit * horizon**0.5)
            assert labels["runup"][row, column] == pytest.approx(wanted, rel=1e-5)
            steps = [-(-horizon * quarter // 4) for quarter in (1, 2, 3, 4)]
            assert path_steps(horizon) == tuple(steps)
            moves = [(logs[row + s] - logs[row]) / (unit * s**0.5) for s in steps]
            assert labels["path"][row, column].tolist() == pytest.approx(moves, rel=1e-4)
    assert (labels["drawdown"][600:870] >= 0).all()
    np.testing.assert_array_equal(labels["path"][..., -1], labels["returns"])


# --- heads and losses


def random_outputs(seed: int = 0, rows: int = 50) -> Outputs:
    torch.manual_seed(seed)
    heads = Heads(6, 2, 0, allocation=False, risk=True, regimes=4, path=True, runup=True)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 3 else 1.0))
        outputs: Outputs = heads.double()(torch.randn(1, rows, 6).double())
    return outputs


def test_further_heads_keep_their_order_whatever_they_learn() -> None:
    outputs = random_outputs()
    assert outputs.tails is not None
    assert outputs.drawdown is not None
    assert outputs.regimes is not None
    assert outputs.path is not None
    rare, usual = outputs.tails[..., 0, :], outputs.tails[..., 1, :]
    assert outputs.tails.shape == (1, 50, 2, 2, 2, 2)
    assert float(outputs.tails.min()) > 0
    for at_risk, shortfall in (rare.unbind(-1), usual.unbind(-1)):
        assert bool((shortfall >= at_risk).all())
    assert bool((rare >= usual).all())
    assert bool((outputs.drawdown.diff(dim=-1) >= 0).all())
    assert float(outputs.drawdown.min()) > 0
    assert bool((outputs.path.diff(dim=-1) >= 0).all())
    shares, means, _ = outputs.regimes.unbind(-2)
    assert torch.allclose(shares.exp().sum(-1), torch.ones(1, 50, 2).double())
    assert bool((means.diff(dim=-1) > 0).all())
    assert torch.equal(means[:, :1], means[:, -1:])  # levels are the same at every bar


def test_further_heads_follow_the_volatility_and_leave_its_gradient_alone() -> None:
    heads = Heads(6, 1, 0, allocation=False, risk=True, path=True)
    state = torch.randn(1, 3, 6)
    first = heads(state)
    with torch.no_grad():
        heads.project.bias[heads.widths[0] + 1 + 1 + 3] += 0.4  # the log variance
    second = heads(state)
    grown = torch.exp(0.5 * (second.log_variance - first.log_variance))
    assert float(grown.detach().min()) > 1.2
    ratio = second.tails / first.tails
    assert torch.allclose(ratio, grown[..., None, None, None].expand_as(ratio))
    assert torch.allclose(second.drawdown / first.drawdown, grown[..., None].expand(1, 3, 1, 2))
    (second.tails.sum() + second.drawdown.sum() + second.path.sum()).backward()
    assert heads.project.weight.grad is not None
    assert float(heads.project.weight.grad[heads.widths[0] + 1 + 1 + 3].abs().max()) == 0.0


@pytest.mark.parametrize("share", SHARES)
def test_the_joint_loss_is_least_at_the_value_at_risk_and_the_shortfall(share: float) -> None:
    drawn = torch.from_numpy(stats.t.ppf((np.arange(100_000) + 0.5) / 100_000, 5))
    edge = stats.t.isf(share, 5)
    beyond = stats.t.pdf(edge, 5) / share * (5 + edge**2) / 4
    at = SHARES.index(share)

    def loss(at_risk: float, shortfall: float) -> float:
        tails = torch.ones(len(drawn), 2, 2, 2, dtype=torch.float64) * torch.tensor([1.0, 2.0])
        tails[:, 0, at] = torch.tensor([at_risk, shortfall])
        return float(AUXILIARY_LOSSES["tails"].function(tails, {"returns": drawn}).mean())

    least = loss(edge, beyond)
    for factor in (0.93, 1.07):
        assert loss(edge * factor, beyond) > least
        assert loss(edge, beyond * factor) > least


def test_the_losses_agree_with_their_formulas() -> None:
    outputs = random_outputs(1)
    rng = np.random.default_rng(2)
    value, fell, moves = (rng.normal(size=(1, 50, 2, *more)) for more in ((), (), (4,)))
    variance = rng.gamma(2.0, size=(1, 50, 2))
    labels = {
        "returns": torch.from_numpy(value), "variance": torch.from_numpy(variance),
        "drawdown": torch.from_numpy(np.abs(fell)), "path": torch.from_numpy(moves),
        "runup": torch.from_numpy(np.abs(fell)),
    }  # fmt: skip
    terms = {
        name: AUXILIARY_LOSSES[name].function(getattr(outputs, name), labels).numpy()
        for name in HEADS
    }
    tails, regimes, path = (
        part.numpy() for part in (outputs.tails, outputs.regimes, outputs.path) if part is not None
    )
    wanted = np.zeros((1, 50, 2))
    for side, sign in enumerate((-1, 1)):
        for at, share in enumerate(SHARES):
            v, e = tails[..., side, at, 0], tails[..., side, at, 1]
            wanted += np.maximum(sign * value - v, 0) / (share * e) + v / e + np.log(e) - 1
    np.testing.assert_allclose(terms["tails"], wanted / 4, rtol=1e-5)
    shares, means, shapes = (np.exp(regimes[..., at, :]) for at in range(3))
    each = stats.gamma.pdf(variance[..., None], shapes, scale=means / shapes)
    np.testing.assert_allclose(terms["regimes"], -np.log((shares * each).sum(-1)), rtol=1e-6)
    missed = moves[..., None] - path
    level = np.array(PATH_LEVELS)
    pinball = np.where(missed > 0, level * missed, (level - 1) * missed)
    np.testing.assert_allclose(terms["path"], pinball.mean((-2, -1)), rtol=1e-5)
    missed = np.abs(fell)[..., None] - outputs.drawdown.numpy()  # type: ignore[union-attr]
    level = np.array(DRAWDOWN_LEVELS)
    pinball = np.where(missed > 0, level * missed, (level - 1) * missed)
    np.testing.assert_allclose(terms["drawdown"], pinball.mean(-1), rtol=1e-5)
    missed = np.abs(fell)[..., None] - outputs.runup.numpy()  # type: ignore[union-attr]
    pinball = np.where(missed > 0, level * missed, (level - 1) * missed)
    np.testing.assert_allclose(terms["runup"], pinball.mean(-1), rtol=1e-5)


# --- what is learnt of a planted market


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return candles whose volatility grows and shrinks fivefold within each hour."""
    folder = tmp_path_factory.mktemp("planted")
    path = learning.write_csv(learning.learnable(6 * learning.DAY_BARS + 720), folder)
    cut = learning.split(4.0, 4.5, 5.5)
    return Dataset.read([str(path)], lambda _: cut, (5,))


@pytest.fixture(scope="module")
def trained(material: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TradingNetwork:
    names = schema("v2-1m").names
    section = {"dim": 16, "heads": 2, "layers": 2, "window": 33, "horizons": [5], "regimes": 2}
    section["runup"] = True
    # Without the time of the day, of which there are too few days to learn anything true.
    parted = by_names({"modalities": ["price", "volume"]}, names)
    config = TradingConfig.read({**section, "features": len(names), **parted})
    torch.manual_seed(1)
    network = TradingNetwork(config)
    assert network.auxiliary_heads == HEADS
    dataset = replace(material, heads=EVERY_HEAD | network.auxiliary_heads)
    options = FitOptions(
        steps=60, batch=4, length=256, learning_rate=8e-3, validate_every=20, average=0.9
    )
    fit = heads_fit(
        network,
        dataset.samples(Part.TRAIN),
        dataset.samples(Part.VALIDATION),
        options,
    )
    fit.run(lambda _: None)
    network.load_state_dict(fit.best)
    return network.eval()


def answers(trained: TradingNetwork, material: Dataset, part: Part) -> Forecasts:
    return network_forecasts(trained, replace(material, stored={}), part)


@pytest.fixture(scope="module")
def judged(trained: TradingNetwork, material: Dataset) -> Forecasts:
    levels = levels_of(answers(trained, material, Part.CALIBRATION))
    return levelled(answers(trained, material, Part.TEST), levels)


def wild(forecasts: Forecasts) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return whether the planted volatility of the next bars is above its median."""
    minute = (forecasts.keys >> 32) % 60 + 3
    return np.asarray(np.sin(2 * np.pi * minute / 60) > 0)


@pytest.mark.long
def test_the_tails_follow_a_planted_volatility(judged: Forecasts) -> None:
    tails, is_wild = judged.value("tails"), wild(judged)
    five = tails[:, 0, 1, 0]
    assert np.median(five[is_wild]) > 1.4 * np.median(five[~is_wild])
    for chosen in (is_wild, ~is_wild):
        rows = judged.where(chosen)
        for row in islice(breach_rows(rows, rows.value("tails").astype(np.float64)), 1, None, 2):
            assert 0.02 < row["realised"].value < 0.09
            assert 0.75 < row["shortfall"].value < 1.3
    # One that ignores the hour is passed too often where it is wild: the same test says so.
    rows = judged.where(is_wild)
    flat = np.full_like(rows.value("tails"), np.median(five) * 0.7)
    assert [row["kupiec_p"] < 0.01 for row in breach_rows(rows, flat)][1]


def test_drawdown_and_path_cover_what_came(judged: Forecasts) -> None:
    for name in ("drawdown", "runup"):
        below = [pair.value for pair in coverage(judged, name).values()]
        assert below[0] == pytest.approx(0.5, abs=0.1)
        assert below[1] == pytest.approx(0.9, abs=0.05)
    inside = coverage(judged, "path")
    assert list(inside) == ["inside_2", "inside_3", "inside_4", "inside_5"]
    assert [pair.value for pair in inside.values()] == pytest.approx([0.9] * 4, abs=0.05)


def test_regimes_tell_planted_calm_from_wild(judged: Forecasts) -> None:
    is_wild, calm = wild(judged), likeliest(judged) == 0
    assert 0.15 < calm.mean() < 0.85
    assert is_wild[~calm].mean() > is_wild[calm].mean() + 0.4
    variance = judged.labels["variance"]
    assert variance[~calm].mean() > 2 * variance[calm].mean()
    terms = HEAD_LOSSES["regimes"].terms
    usual = judged.with_fields(MODEL, **average_odds(MetricView(judged)))
    assert terms(MetricView(judged)).mean() < terms(MetricView(usual)).mean() - 0.1


def test_the_figures_say_what_is_better_and_the_sentences_follow(
    judged: Forecasts,
) -> None:
    figures = head_figures(judged)
    main = figures["5"]
    # EWMA lags the hour, so a network that knows the hour beats it, and the figures say so.
    assert main["tails"]["less_ewma"][0] < 0
    assert main["drawdown"]["less_ewma"][0] < 0
    assert 0.0 <= main["tails"]["long_5"][0] <= 0.1
    lines = head_sentences(figures, horizon=5, days=30)
    assert lines[0].startswith("The loss exceeded its value at risk of 5 % at 5 bars on ")
    assert head_sentences(figures, horizon=30, days=30) == []
    level = {
        "5": {"path": {"less_ewma": [-0.01, 0.02]}, "regimes": {"less_average_odds": [1, 0.1]}}
    }
    assert "path level" in head_sentences(level, horizon=5, days=30)[0]
    assert "worse than constant ones" in head_sentences(level, horizon=5, days=30)[1]
    assert "level with constant ones" in head_sentences(level, horizon=5, days=29)[1]


def test_levels_make_the_calibration_slice_itself_right(
    trained: TradingNetwork, material: Dataset
) -> None:
    raw = answers(trained, material, Part.CALIBRATION)
    rows = levelled(raw, levels_of(raw))
    for name in (MODEL, EWMA):
        values = {head: rows.value(head, name) for head in ("tails", "drawdown", "path")}
        for at, sign in enumerate((-1, 1)):
            lost = sign * rows.labels["returns"]
            for place, share in enumerate(SHARES):
                limit, expected = values["tails"][:, at, place].T
                beyond = lost > limit
                assert beyond.mean() == pytest.approx(share, abs=0.002)
                assert lost[beyond].sum() / expected[beyond].sum() == pytest.approx(1, abs=0.05)
        below = (rows.labels["drawdown"][:, None] <= values["drawdown"]).mean(0)
        assert below == pytest.approx(DRAWDOWN_LEVELS, abs=0.002)
        low, _, high = values["path"].transpose(2, 0, 1)
        inside = (rows.labels["path"] >= low) & (rows.labels["path"] <= high)
        assert inside.mean(0) == pytest.approx([0.9] * 4, abs=0.003)


def test_one_decision_says_as_returns_what_was_judged_in_units(
    trained: TradingNetwork, material: Dataset, judged: Forecasts
) -> None:
    levels = levels_of(answers(trained, material, Part.CALIBRATION))
    (segment,) = material.segments
    place = 700
    row = int(np.flatnonzero(segment.keys == judged.keys[place])[0])
    window = slice(row - trained.config.window + 1, row + 1)
    x, sigma = torch.from_numpy(segment.values[window])[None], float(segment.sigma[row])
    with torch.inference_mode():
        outputs = trained.explain(x, torch.arange(x.shape[1])).outputs
    every = head_forecasts(outputs, np.array([sigma]), (5,), levels)
    assert every is not None
    (heads,) = every
    forecast = Forecast((5,), (0.0,), (1.0,), (0.3,), (0.4,), (0.3,), (1.0,), heads=heads)
    rows = {table.key: np.array(table.rows)[:, 1:] for table in auxiliary_tables(forecast)}
    values = {head: judged.value(head)[place].astype(float) for head in HEADS}
    unit = sigma * 5**0.5
    tails = rows["tails"][:, 2:].astype(float)
    np.testing.assert_allclose(tails, unit * values["tails"].reshape(4, 2), rtol=1e-4)
    assert rows["tails"][:2, :2].tolist() == [["long", "0.01"], ["long", "0.05"]]
    falls = rows["extremes"][: len(values["drawdown"]), 2].astype(float)
    np.testing.assert_allclose(falls, unit * values["drawdown"], rtol=1e-4)
    bars = np.array([2, 3, 4, 5])
    assert rows["paths"][:, 0].tolist() == bars.tolist()
    wanted = sigma * np.sqrt(bars)[:, None] * values["path"]
    np.testing.assert_allclose(rows["paths"][:, 1:], wanted, atol=1e-8)
    _, odds, spread = rows["regimes"].T
    np.testing.assert_allclose(odds, np.exp(values["regimes"][0]), rtol=1e-4)
    np.testing.assert_allclose(spread, unit * np.exp(0.5 * values["regimes"][1]), rtol=1e-4)
    assert auxiliary_tables(structs.replace(forecast, heads=None)) == ()


def test_windows_and_chunks_carry_the_labels_of_every_step(material: Dataset) -> None:
    samples = replace(material, heads=EVERY_HEAD | HEADS).samples(Part.TRAIN)
    chunk = next(Epochs(samples, length=700, batch=2, seed=1).stream())
    window = next(Epochs(samples, length=9, batch=3, seed=1, last_row=True).stream())
    assert chunk.labels["path"].shape == (2, 700, 1, 4)
    assert window.labels["path"].shape == (3, 1, 1, 4)
    assert chunk.pieces(1)[1].labels["path"].equal(chunk.labels["path"][1:])
    segment: Segment = samples[0].segment
    row = int(window.positions[0, -1]) - int(segment.open_time_ms[0]) // segment.interval_ms
    wanted = samples[0].labels["path"][0, row]
    assert window.labels["path"][0, 0].numpy() == pytest.approx(wanted)


def test_the_quantiles_of_a_head_are_judged_by_the_levels_of_its_network(
    material: Dataset,
) -> None:
    names, levels = schema("v2-1m").names, (0.1, 0.5, 0.9)
    section = {"dim": 16, "heads": 2, "layers": 2, "window": 33, "horizons": [5]}
    config = TradingConfig.read(
        {**section, "features": len(names), **by_names({}, names), "quantiles": list(levels)}
    )
    torch.manual_seed(3)
    network = TradingNetwork(config).eval()
    forecasts = answers(network, material, Part.TEST)
    assert forecasts.levels == levels
    quantiles = forecasts.value("quantiles")
    assert (quantiles[:, 0] < quantiles[:, 2]).all()
    place = 500
    (segment,) = material.segments
    (row,) = np.flatnonzero(segment.keys == forecasts.keys[place])
    alone = predict(network, segment, np.array([row]))
    assert alone["quantiles"][0, 0].tolist() == pytest.approx(quantiles[place].tolist(), rel=1e-4)
