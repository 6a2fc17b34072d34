"""At what size an edge is gone: the law of the root, what is refused, what is shown."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edges import COINS, Told, Tossed, run_of, walks
from exchange_client import candles as made_candles
from killed_replays import killed
from msgspec import structs
from pages import said_in
from scenarios import SCENARIOS
from test_recovery import Process, configured, events

from tracepaper import Action, Signal, Strategy, buy, sell
from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.capacity import (
    SIZES,
    Capacity,
    capacity,
    capacity_document,
    half_gone,
    sized,
)
from tracepaper.replay.checks.fragility import Days, Left
from tracepaper.replay.document.charts import Chart
from tracepaper.replay.report.participation import fill_shares, participations
from tracepaper.replay.run import Run, open_run
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader, resolve
from tracepaper.strategies.api.context import BarContext, Orders
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Quote

ROOT = "impact by the root"


def of(run: Run[Any], impact_bp: int | None = None) -> Capacity:
    exact = None if impact_bp is None else Decimal(impact_bp)
    with run._custom_classes():  # noqa: SLF001 - the value behind the document
        return capacity(run.database, run.run_id, impact_bp=exact)


def last(path: Path) -> str:
    return resolve(path, "last").run_id


def told(folder: Path, **options: Any) -> Run[Any]:
    return run_of(Told, walks(1, COINS[:2], drift=0.004), folder / "told.db", **options)


def test_twice_the_impact_takes_half_of_the_edge_at_a_quarter_of_the_size(tmp_path: Path) -> None:
    run = told(tmp_path)
    once, twice = of(run, 300), of(run, 600)
    assert once.half is not None
    assert twice.half is not None
    (size, error), (quarter, _) = once.half, twice.half
    assert error is not None
    assert 0 < error < size
    assert quarter == pytest.approx(size / 4, rel=0.1)
    assert f"is gone at {size:,.3g} ± " in once.sentence
    assert f"an account of {size * 100_000:,.0f}" in once.sentence
    profits = {run.size: run.profit for run in once.sizes}
    recorded = run.equity["equity"]
    assert profits[0] == pytest.approx(float(recorded[-1]) - 100_000)
    assert once.sizes[0].mean_day is not None
    assert once.sizes[0].mean_day[0] == pytest.approx(run.summary["mean_day"])
    means = [1e4 * run.mean_day[0] for run in once.sizes if run.mean_day is not None]
    assert means[2:] == sorted(means[2:], reverse=True)
    assert once.held_back == []
    document = capacity_document(once)
    (chart,) = (part for part in document.parts if isinstance(part, Chart))
    assert "half of the edge" in str(chart)
    read = run.capacity(600).document
    assert read["half_gone"]["value"] == pytest.approx(quarter)
    assert read["participation"]["rows"][0]["count"] == sum(
        row["count"] for row in read["participation"]["rows"][1:]
    )


def test_the_default_impact_is_the_volatility_of_a_bar_or_the_runs_own(tmp_path: Path) -> None:
    free = of(told(tmp_path))
    assert free.source == "the standard deviation of a bar's return"
    assert free.impact_bp == pytest.approx(72, abs=2)  # of .6 % noise and .4 % drift
    own = SCENARIOS[ROOT].recorded()
    result = capacity(own, last(own))
    assert (result.impact_bp, result.source) == (9.0, "execution.impact_bp of the run")
    same = next(run for run in result.sizes if run.size == 1)
    with Reader.open(own) as reader:
        fills = RunColumns(reader, last(own)).views.rows("v_fills")
    assert same.count == len(fills)


def days(returns: np.ndarray[Any, np.dtype[np.float64]]) -> Days:
    return Days(returns, np.arange(returns.size))


def test_half_is_found_where_the_root_says_and_its_error_is_that_of_the_days() -> None:
    """Impact takes c √size from each day, so half of the mean m is gone at (m ÷ 2c)²."""
    draws = np.random.default_rng(3).normal(10.0, 8.0, (400, 200)) / 1e4
    halves = []
    for returns in draws:
        runs = [Left("", "", days=days(returns), size=0, first=1.0)]
        runs += [Left("", "", days=days(returns - 1e-4 * size**0.5), size=size, first=size)
                 for size in SIZES]  # fmt: skip
        half = half_gone(runs)
        assert half is not None
        assert half[0] == pytest.approx((1e4 * returns.mean() / 2) ** 2)
        assert half[1] is not None
        halves.append((half[0], half[1]))
    values, errors = np.array(halves).T
    assert np.median(errors) == pytest.approx(values.std(), rel=0.25)


def test_too_few_days_no_edge_and_no_fill_say_so(tmp_path: Path) -> None:
    noise = of(run_of(Tossed, walks(3, COINS[:2]), tmp_path / "noise.db"))
    assert noise.sentence.startswith("There is no edge to lose")
    assert noise.half is None
    short = [each[:48] for each in walks(1, COINS[:2], drift=0.01)]
    few = of(run_of(Told, short, tmp_path / "short.db"), 1_000)
    assert few.too_few
    assert "(too few days)" in few.sentence
    assert few.half is None or few.half[1] is None
    never = of(run_of(Told, [each[:1] for each in short], tmp_path / "never.db"))
    assert never.sentence == "The run never traded, so no size of it can be judged."
    assert capacity_document(never).parts


def flat(volumes: list[int]) -> list[Any]:
    rows = [(100_000, 100_500, 99_500, 100_000, volume) for volume in volumes]
    return [made_candles(rows, symbol="AAAUSDT", interval_ms=3_600_000)]


def test_candles_without_volume_are_refused_and_one_of_them_is_counted(tmp_path: Path) -> None:
    silent = run_of(Told, flat([0] * 72), tmp_path / "silent.db")
    with pytest.raises(DataInvalid, match="has a volume, so no size can be judged"):
        of(silent)
    volumes = [90_000] * 72
    volumes[13] = 0  # in which it turns
    some = run_of(Told, flat(volumes), tmp_path / "some.db")
    assert of(some).participation[0].unknown == 1
    with pytest.raises(ConfigInvalid, match="above 0 and at most 1000"):
        of(some, 2_000)


class Lots(Strategy):
    """Orders of its own quantities, whatever the account has."""

    def decide(self, now: BarContext) -> Orders | Signal:
        hour = now.exact.open_time_ms // 3_600_000 % 24
        if hour % 12:
            return Signal(Action.HOLD, "until the drift turns")
        return Orders(((sell if hour else buy)(0.2),), "its own")


def test_a_size_that_does_not_trade_its_multiple_is_named(tmp_path: Path) -> None:
    result = of(run_of(Lots, walks(1, COINS[:1], drift=0.004), tmp_path / "lots.db"))
    assert [run.size for run in result.held_back] == [*SIZES[1:]]
    text = str(capacity_document(result).parts)
    assert "quantities that the strategy names itself" in text
    assert "at 1 times the size" in result.sentence


def test_a_run_in_progress_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS["crossing"]
    data = MarketData(scenario.candles())
    cut = killed(
        lambda database: build(scenario.config(), data, started_at_ms=0, database=database),
        tmp_path, monkeypatch, bars=40,
    )  # fmt: skip
    assert len(capacity(cut, last(cut)).sizes) == 1 + len(SIZES)


def test_a_run_by_quotes_pays_beyond_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    config = configured("sma_cross", FillModel.QUOTE)
    shown = [
        structs.replace(event, bid_size=3_000, ask_size=3_000)
        if isinstance(event, Quote)
        else event
        for event in events(60, quotes=True)
    ]
    Process(path, config, FillModel.QUOTE).through(shown)
    result = capacity(path, last(path), impact_bp=Decimal(50))
    free, same, *larger = result.sizes
    assert free.count
    assert same.profit == free.profit  # each order is within the shown size
    assert larger[-1].profit is not None
    assert free.profit is not None
    assert larger[-1].profit < 1_024 * free.profit
    assert result.held_back == []


def test_money_and_sizes_are_multiplied_wherever_they_stand() -> None:
    config = load(
        None,
        {
            "account": {"cash": "1000"},
            "sizing": {"mode": "notional", "notional": "500"},
            "risk": {"max_notional": "700"},
        },
    )
    changes = sized(config, 4, Decimal(5))
    assert changes["account"] == {"cash": "4000"}
    assert changes["sizing"]["notional"] == "2000"
    assert changes["risk"] == {"max_notional": "2800"}
    assert changes["execution"] == {"beyond_best": "square_root", "impact_bp": "5"}
    assert sized(config, 0, Decimal(5))["execution"]["impact_bp"] == "0"


def test_participation_is_the_share_of_the_candle_that_was_open() -> None:
    path = SCENARIOS[ROOT].recorded()
    with Reader.open(path) as reader:
        columns = RunColumns(reader, last(path))
        fills = columns.views.rows("v_fills")
        (every,) = participations([fill_shares(columns, fills)])
        bars = columns.bars(fills[0]["instrument"])
    volumes = dict(zip(bars["open_time_ms"].tolist(), bars["volume"].tolist(), strict=True))
    hour = 3_600_000
    traded = [volumes[fill["filled_ms"] // hour * hour] for fill in fills]
    shares = [fill["quantity"] / of for fill, of in zip(fills, traded, strict=True) if of]
    assert every.unknown == len(fills) - len(shares) > 0
    assert every.most == pytest.approx(max(shares))
    assert every.median == pytest.approx(np.median(shares))
    run = open_run("last", path)
    assert run.table("participation")["count"].to_list() == [len(fills)]


def test_the_command_counts_its_runs_first_and_its_page_has_the_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = SCENARIOS["crossing"].recorded()
    report = ["report", f"{path}#{last(path)}"]
    documents = []
    for jobs in ([], ["--jobs", "2"]):
        assert invoke([*report, "--capacity", "--impact-bp", "5", "--json", *jobs]) == 0
        out, err = capsys.readouterr()
        assert err.startswith(f"{1 + len(SIZES)} runs again from the record")
        documents.append(json.loads(out))
    assert documents[0] == documents[1]
    assert documents[0]["impact_bp"] == 5.0
    page = tmp_path / "page.html"
    assert invoke([*report, "--stress", "--capacity", "--html", str(page)]) == 0
    said = said_in(page)
    assert "Profit against size" in said
    assert "Without the best" in said
