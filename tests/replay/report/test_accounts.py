from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import present
from command_line import Cli
from hypothesis import given
from hypothesis import strategies as st
from page_cases import shown_of
from pages import said_in
from records import rows
from report_cases import BTC, SOL, build_report_of, cross, replayed

from tracepaper import Action, BarContext, Signal, Strategy, sweep
from tracepaper.replay.api import backtest
from tracepaper.replay.page import runs
from tracepaper.replay.report import benchmarks
from tracepaper.replay.report.record import Bars
from tracepaper.replay.report.report import BUY_AND_HOLD, Report
from tracepaper.replay.report.terminal import summary_document
from tracepaper.replay.run import Run
from tracepaper.replay.run_columns import Floats
from tracepaper.replay.sweep.executor import InThisProcess
from tracepaper.replay.sweep.result import luck
from tracepaper.replay.sweep.space import FIGURES
from tracepaper.strategies.types.decisions import Liquidity

part = st.lists(st.integers(1, 3), min_size=1, max_size=4).flatmap(
    lambda sizes: st.sampled_from([1, -1]).map(
        lambda side: np.array(sizes, dtype=np.float64) * side
    )
)

PRICES = ("open", "high", "low", "close")


def gains(bars: Bars, held: Floats, traded: Floats, cost_rate: float) -> Floats:
    """Return the profit in each bar of positions *held* from its open, after trades of *traded*."""
    before = np.concatenate(([0.0], held[:-1]))
    last_close = np.concatenate((bars.open[:1], bars.close[:-1]))
    earned: Floats = (
        before * (bars.open - last_close)
        + held * (bars.close - bars.open)
        - traded * bars.open * cost_rate
        - before * last_close * bars.funding
    )
    return earned


def taken(cost: Floats) -> benchmarks.ChangeTerms:
    """Return the terms of changes that all were taken at opens, at this *cost*."""
    return benchmarks.ChangeTerms(cost, np.zeros(cost.size), np.zeros(cost.size))


def test_the_run_rebuilt_from_its_positions_is_the_account_it_stored(
    cross_report: Report, pair_report: Report, funded_report: Report
) -> None:
    """The last run pays funding on the position before each settlement."""
    for report in (cross_report, pair_report, funded_report):
        record = report.record
        equity = np.full(record.times_ms.size + 1, record.account.equity[0])
        for name, held in record.account.held.items():
            traded = np.abs(np.diff(held, prepend=0.0))
            earned = gains(record.bars[name], held, traded, record.cost_rate)
            closes_ms = record.bar_times.closes_of(record.bars[name].open_time_ms)
            closed = np.searchsorted(closes_ms, record.times_ms, side="right")
            equity += np.append(0.0, earned.cumsum())[np.append(0, closed)]
        assert equity == pytest.approx(record.account.equity, abs=1e-6)


def test_buy_and_hold_is_bought_after_the_first_decidable_bar_with_its_fee(
    cross_report: Report,
) -> None:
    record = cross_report.record
    bars = record.bars["linear:BTCUSDT"]
    first = record.config.strategy.slow - 1  # whose close completes the slow average
    assert record.decisions.refused_by[first - 1] == "warm"
    assert record.decisions.refused_by[first] == ""
    quantity = 1_000_000 / (bars.open[first + 1] * 1.00055)
    held = benchmarks.buy_and_hold(record)
    assert (held[: first + 2] == 1_000_000).all()
    assert held[first + 2 :] == pytest.approx(quantity * bars.close[first + 1 :])
    account = cross_report.accounts[-1]
    assert account.name == BUY_AND_HOLD
    assert account.performance.total_return == pytest.approx(held[-1] / 1e6 - 1)


class Opposed(Strategy):
    """Is always short of Bitcoin, and long of everything else."""

    warmup = 1

    def decide(self, now: BarContext) -> Signal:
        """Return the same side at every bar."""
        is_short = "BTC" in now.instrument.symbol
        return Signal(Action.SHORT if is_short else Action.LONG, "always")


@pytest.mark.parametrize("data", [(BTC,), (BTC, SOL)], ids=["short", "short and long"])
def test_buy_and_hold_at_the_run_s_exposure_has_its_sign_in_every_symbol(
    data: tuple[Path, ...], tmp_path: Path
) -> None:
    """An account that only holds is level with it, up to the drift of its exposure."""
    config = {"sizing": {"mode": "notional", "notional": 20_000, "rebalance": "0.9"}}
    database = tmp_path / "run.db"
    with backtest(Opposed, list(data), config=config, db=database) as run:
        summary, accounts = run.summary, {row["account"]: row for row in run.report()["accounts"]}
    by_symbol = present(benchmarks.mean_exposures(build_report_of(database).record))
    assert by_symbol["linear:BTCUSDT"] < -0.1
    assert all(share > 0.1 for name, share in by_symbol.items() if "BTC" not in name)
    own, held = summary["return"], summary["held_return"]
    assert held == pytest.approx(own, rel=0.1)
    total = sum(by_symbol.values())
    assert accounts["buy and hold at its own exposure"]["return"] == held
    assert accounts["this run"]["mean_exposure"] == pytest.approx(total)
    shown = {account.title: account for account in runs.accounts(shown_of(database))}
    assert shown["this run"].mean_exposure == pytest.approx(total)


def test_an_account_below_zero_names_the_day_and_its_lowest_equity_everywhere(
    tmp_path: Path, cli: Cli
) -> None:
    """For twenty days a short position owes more than there is; at the end it has gained."""
    days = np.arange(90)
    price = np.where((days >= 30) & (days < 50), 220.0, np.where(days > 84, 90.0, 100.0))
    opens_ms = 1_704_067_200_000 + 86_400_000 * days
    frame = pd.DataFrame({"open_time": opens_ms, **dict.fromkeys(PRICES, price), "volume": 1.0})
    frame.to_csv(candles := tmp_path / "BTCUSDT.csv", index=False)
    config = {
        "sizing": {"mode": "fixed", "quantity": "1000"},
        "gate": {"plausible": "10000"},
    }
    database, page = tmp_path / "run.db", tmp_path / "run.html"
    with backtest(Opposed, candles, config=config, db=database) as run:
        assert run.summary["return"] == pytest.approx(0.1, abs=0.01)
        assert run.summary["below_zero_ms"] == 1_704_067_200_000 + 31 * 86_400_000
        assert run.summary["lowest_equity"] == pytest.approx(-20_055)
        yearly = ("mean_day", "cagr", "volatility", "sharpe", "sortino", "calmar")
        assert all(run.summary[key] is None for key in yearly)
        run.save(page)
        sentence, *_ = repr(run).splitlines()
    assert "below zero from 2024-02-01 00:00 UTC; its lowest equity was -20,055.00" in sentence
    shown = shown_of(database)
    printed = (
        " ".join(cli.out("report", "--db", database).split()),
        said_in(page),
        runs.run(shown).below_zero,
        *(getattr(part, "text", "") for part in summary_document(database, shown.run_id).parts),
    )
    assert [sentence in each for each in printed[:3]] == [True] * 3
    assert sentence in printed[3:]
    (own, *_) = cli.json("report", "--db", database)["accounts"]
    assert (own["below_zero_ms"], own["cagr"]) == (1_706_745_600_000, None)
    space = {"sizing.quantity": ["1000"]}
    swept = sweep(Opposed, candles, space, "return", config=config, executor=InThisProcess())
    assert sum(sentence in line for line in luck(swept)) == 1


class Held(Strategy):
    """Is always long."""

    warmup = 1

    def decide(self, _: BarContext) -> Signal:
        """Return the same side at every bar."""
        return Signal(Action.LONG, "always")


def test_a_benchmark_that_lost_everything_is_none(tmp_path: Path) -> None:
    """Three times the money in a coin that loses three quarters, then gains fivefold."""
    path = np.interp(np.arange(1_440), [100, 120, 700, 800], [100.0, 28.0, 28.0, 148.0]).round(2)
    opens_ms = 1_735_689_600_000 + 3_600_000 * np.arange(1_440)
    frame = pd.DataFrame({"open_time": opens_ms, **dict.fromkeys(PRICES, path), "volume": 1e5})
    config = {"market": {"interval": "60"}, "sizing": {"mode": "equity", "fraction": "3"}}
    with backtest(Held, {"XYZUSDT": frame}, config=config, db=tmp_path / "run.db") as run:
        assert run.summary["held_return"] is None
        assert run.summary["buy_and_hold_return"] == pytest.approx(0.48, abs=0.01)
        sentence = "had nothing left at 2025-01-05T"
        assert sentence in repr(run)
        assert any(sentence in each for each in build_report_of(tmp_path / "run.db").sentences)


def test_episodes_are_the_stretches_of_one_sign() -> None:
    episodes = benchmarks.episodes(np.array([0.0, 1, 2, 0, -1, -1, 3, 0]), taken(np.arange(8) / 10))
    assert episodes.sizes.tolist() == [2, 2, 1]
    assert episodes.counts.tolist() == [3, 2, 2]
    assert episodes.offset.tolist() == [0, 1, 2, 0, 2, 0, 1]
    assert episodes.delta.tolist() == [1, 1, -2, -1, 1, 3, -3]
    # A change has the cost of its bar.
    assert episodes.terms[:, 0].tolist() == [0.1, 0.2, 0.3, 0.4, 0.6, 0.6, 0.7]
    assert benchmarks.episodes(np.zeros(3), taken(np.zeros(3))).sizes.size == 0


@given(st.lists(part, min_size=1, max_size=6), st.integers(0, 30), st.integers(0, 99))
def test_placed_positions_keep_side_size_and_length_and_never_overlap(
    parts: list[np.ndarray[tuple[int], np.dtype[np.float64]]], free: int, seed: int
) -> None:
    bars = sum(part.size for part in parts) + free
    padded = np.concatenate([np.append(part, 0.0) for part in parts])
    chance = np.random.default_rng(seed)
    at, delta, _ = benchmarks.place(benchmarks.episodes(padded, taken(padded)), bars, chance)
    held = np.bincount(at, weights=delta, minlength=bars).cumsum()
    assert held.size == bars
    assert np.count_nonzero(held) == bars - free
    assert sorted(np.abs(held).tolist()) == sorted(
        [0.0] * free + [abs(size) for part in parts for size in part.tolist()]
    )
    turned = sum(float(np.abs(np.diff(part, prepend=0.0, append=0.0)).sum()) for part in parts)
    # What is still open after the last bar has not been sold.
    assert np.abs(delta).sum() == pytest.approx(turned - abs(held[-1]))


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=5, max_size=40), st.data())
def test_changes_earn_what_the_positions_between_them_earn(
    positions: list[float], data: st.DataObject
) -> None:
    held = np.array(positions)
    prices = np.array(data.draw(st.lists(st.floats(1, 9), min_size=held.size, max_size=held.size)))
    rates = np.array(
        data.draw(
            st.lists(st.sampled_from([0.0, 0.01, -0.02]), min_size=held.size, max_size=held.size)
        )
    )
    places = np.arange(held.size)
    bars = Bars(places, 60_000 * places, prices, prices, prices, prices[::-1].copy(), rates)
    delta = np.diff(held, prepend=0.0)
    earned = gains(bars, held, np.abs(delta), 0.001).cumsum()
    at = np.flatnonzero(delta)
    terms = np.column_stack(taken(np.full(at.size, 0.001)))
    floats = benchmarks.value_at(bars, at, delta[at], np.arange(held.size + 1), terms)
    assert floats == pytest.approx(np.concatenate(([0.0], earned)), abs=1e-9)


def test_every_place_is_as_likely_as_any_other() -> None:
    chance = np.random.default_rng(5)
    episodes = benchmarks.episodes(np.array([1.0, 1, 1, 0]), taken(np.zeros(4)))
    starts = [int(benchmarks.place(episodes, 8, chance)[0][0]) for _ in range(3_000)]
    counts = np.bincount(starts, minlength=6)
    assert counts.size == 6
    assert counts.min() > 400  # 500 expected, five standard deviations are 102


def test_random_timings_repeat_and_have_as_many_positions_as_the_run(cross_report: Report) -> None:
    record = cross_report.record
    marks = np.array([0, 700, 1_500])
    random_timings = present(benchmarks.random_timings(record, record.account, marks, count=20))
    two = present(benchmarks.random_timings(record, record.account, marks, count=20))
    assert random_timings.median.tolist() == two.median.tolist()
    changes = np.flatnonzero(np.diff(np.sign(record.account.held["linear:BTCUSDT"]))).size
    assert random_timings.positions == changes  # long and short: every change of side opens one
    assert (random_timings.low <= random_timings.median).all()
    assert (random_timings.median <= random_timings.high).all()
    assert random_timings.low[0] == random_timings.high[0] == 1_000_000


def test_a_shadow_at_the_only_possible_places_earns_what_the_run_earned(
    cross_report: Report,
) -> None:
    """One position over all warm bars fits at one place only."""
    record = cross_report.record
    bars = record.bars["linear:BTCUSDT"]
    held = np.zeros(bars.open.size)
    held[20:] = 1.0  # the twentieth bar is the first that is decided warm
    traded = np.abs(np.diff(held, prepend=0.0))
    equity = 1e6 + gains(bars, held, traded, record.cost_rate).sum()
    ledger = type(record.account)(
        "all", np.array([1e6, equity]), {"linear:BTCUSDT": held}, (), (), 0.0, 0.0, 0.0
    )
    random_timings = present(benchmarks.random_timings(record, ledger, np.array([0]), count=3))
    assert random_timings.final_median == pytest.approx(equity)
    assert random_timings.beaten == 0.5, "as good as chance, for chance has no other place"


STEPS = 6
"""Prices within a bar of a drawn market; its first is the open, its last the close."""


def traded(
    kind: str, prices: Floats, first: int, chance: np.random.Generator
) -> Iterator[tuple[int, float, float]]:
    """Yield (bar, change of the position, price) of trades of a *kind* without information.

    *prices* [bar, step] are those of a drawn market, traded from the bar *first* on. A limit is
    filled at its price once the market has gone through it; a stop at the price that met it.
    """
    held = 0.0
    for bar in range(first, len(prices)):
        side = -held or chance.choice([-1.0, 1.0])
        start = prices[bar, 0]
        if kind == "takers" and chance.random() < 0.3:
            yield bar, side, start
        elif kind != "takers":
            far = start * (1.0 + 0.0008 * side * (1 if kind == "stops" else -1))
            beyond = (prices[bar] - far) * (far - start) > 0
            if not beyond.any():
                continue
            yield bar, side, prices[bar, beyond.argmax()] if kind == "stops" else far
        else:
            continue
        held += side


@pytest.mark.parametrize("kind", ["takers", "makers", "stops"])
def test_an_account_without_information_beats_half_of_its_random_timings(
    cross_report: Report, kind: str
) -> None:
    """However its orders are filled: a maker is not condemned for what meets its limits."""
    record = cross_report.record
    (name, bars), *_ = record.bars.items()
    liquidity = Liquidity.MAKER if kind == "makers" else Liquidity.TAKER
    rate = record.maker_rate if kind == "makers" else record.cost_rate
    beaten = []
    for seed in range(40):
        chance = np.random.default_rng(seed)
        walk = chance.normal(0.0, 0.0004, bars.open.size * STEPS).cumsum()
        prices = 1e4 * np.exp(walk).reshape(-1, STEPS)
        drawn = replace(
            bars, open=prices[:, 0], high=prices.max(1), low=prices.min(1), close=prices[:, -1]
        )
        trades = list(traded(kind, prices, record.warm_from[name] + 1, chance))
        delta, equity = np.zeros(bars.open.size), 1e6
        for at, change, price in trades:
            delta[at] += change
            equity -= change * price + abs(change) * price * rate
        equity += delta.sum() * prices[-1, -1]
        fills = tuple(
            {"instrument": name, "filled_ms": int(bars.open_time_ms[at]), "liquidity": liquidity,
             "price": price, "quantity_text": f"{abs(change):.1f}"}
            for at, change, price in trades
        )  # fmt: skip
        ledger = type(record.account)(
            "all", np.array([1e6, equity]), {name: delta.cumsum()}, fills, (), 0.0, 0.0, 0.0
        )
        market = replace(record, bars={name: drawn})
        timings = present(benchmarks.random_timings(market, ledger, np.array([0]), count=30))
        beaten.append(timings.beaten)
    # A share between 0 and 1 that is even has a deviation of 0.29: that of 40 of them is 0.046.
    assert np.mean(beaten) == pytest.approx(0.5, abs=0.14)


# ---------------------------------------------------------------- margin


MARGIN = '\nmargin = "isolated"\nleverage = "10"\n'


@pytest.mark.parametrize(("config", "held"), [(cross() + MARGIN, True), (cross(), False)])
def test_the_account_says_margin_leverage_and_liquidation_price(
    config: str, held: bool, tmp_path: Path, cli: Cli
) -> None:
    database = replayed(tmp_path, config, "--data", BTC, "--to", "2025-05-04T18:00")
    query = "SELECT margin, liquidation_price_text FROM v_positions ORDER BY sequence DESC LIMIT 1"
    ((margin, price),) = rows(database, query)
    assert (margin is not None) is held
    page = tmp_path / "run.html"
    account, *others = cli.json("report", "--db", database, "--html", page)["accounts"]
    leverage = 10.0 if held else None
    assert (account["margin_used"], account["leverage"], account["liquidation_price"]) == (
        margin,
        leverage,
        price,
    )
    assert all(of["margin_used"] is None for of in others)
    ((run_id,),) = rows(database, "SELECT run_id FROM v_runs")
    assert Run(database, run_id).summary["end"] == account["end"]
    assert "liquidation_price" not in FIGURES, "no sweep is judged by it"
    text = cli.out("report", "--db", database)
    assert ("liquidated at" in text) is held
    assert ("liquidated at" in said_in(page)) is held
