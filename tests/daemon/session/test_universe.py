"""A universe is chosen by a rule at set times; symbols that are not chosen open no position."""

from __future__ import annotations

import asyncio
import dataclasses
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MINUTE, START_MS, bar, instrument, present
from bybit_server import SteppedClock
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from killed_replays import resumed
from recordings import record
from records import check_record, rows
from several_live import SPEED, check_parity, trading
from storage_cases import undecided

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.run_row import preflight
from tracepaper.daemon.session.universe import (
    Universe,
    age_days,
    change_of,
    choose,
    known_candidates,
    listed_symbols,
    new_candidates,
    next_choice_ms,
    read_symbol_list,
)
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Category, Event, RunKind, UniverseChange

DAY = 86_400_000
CROSSES = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False, "shadows": ("ungated",)}
NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")


def listed(
    symbol: str, turnover: int = 100, volatility: str = "0.05", days: int = 10
) -> TradedSymbol:
    return TradedSymbol(symbol, "USDT", Decimal(turnover), Decimal(volatility), (100 - days) * DAY)


def chosen(
    symbols: list[TradedSymbol], names: tuple[str, ...] | None = None, **rule: Any
) -> list[str]:
    change = choose(UniverseRule(**rule), symbols, count=rule["top"], now_ms=100 * DAY, names=names)
    return [symbol.symbol for symbol in change.chosen]


# ---------------------------------------------------------------- the rule


def test_the_best_by_the_measure_are_chosen_and_ties_go_by_symbol() -> None:
    listings = [listed("C", 5), listed("B", 7, "0.01"), listed("A", 5, "0.02")]
    assert chosen(listings, top=2) == ["B", "A"]
    assert chosen(listings, top=2, by="volatility") == ["C", "A"]


def test_each_limit_leaves_out_what_is_beyond_it() -> None:
    listings = [
        listed("A"),
        listed("B", turnover=99),
        listed("C", days=9),
        listed("D", volatility="0.2"),
    ]
    assert chosen(listings, top=9, min_turnover="100") == ["A", "C", "D"]
    assert chosen(listings, top=9, min_age_days=10) == ["A", "D", "B"]
    assert chosen(listings, top=9, max_volatility="0.1") == ["A", "C", "B"]
    assert chosen(listings, top=9, min_volatility="0.1") == ["D"]
    assert chosen(listings, top=9, names=("B", "X")) == ["B"]
    assert chosen(listings, top=9, names=()) == []
    assert chosen(listings, top=9, min_volatility="0.2", max_volatility="0.2") == ["D"]
    assert chosen(listings, top=9, min_volatility="0.05", max_volatility="0.05") == ["A", "C", "B"]
    assert [age_days(listed("A", days=days), 100 * DAY) for days in (0, 1, -1)] == [0, 1, -1]
    unknown = [TradedSymbol("A", "USDT", Decimal(1), Decimal("0.1"), 0)]
    assert chosen(unknown, top=9, min_age_days=1) == []
    assert chosen(unknown, top=9) == ["A"]


def test_a_universe_that_is_empty_says_so_in_one_sentence() -> None:
    change = change_of(
        UniverseRule(top=2, min_turnover=Decimal(1000)),
        [instrument("AAAUSDT"), instrument("GONEUSDT")],
        [listed("AAAUSDT")],
        now_ms=100 * DAY,
    )
    assert change.chosen == ()
    assert change.reason == (
        "none of 1 symbols passes market.universe, so no position is opened until the next choice; "
        "loosen its limits or its list"
    )
    assert change.candidates == (("linear:AAAUSDT", "100", "0.05", 10),)


def test_a_choice_is_by_the_rounded_figures_in_its_event() -> None:
    traded = TradedSymbol("AAAUSDT", "USDT", Decimal("100.45"), Decimal("0.0100004"), 90 * DAY)
    for limit, is_chosen in (("100.4", False), ("100", True)):
        rule = UniverseRule(top=1, min_turnover=Decimal(limit), min_volatility=Decimal("0.01"))
        change = change_of(rule, [instrument("AAAUSDT")], [traded], now_ms=100 * DAY)
        assert bool(change.chosen) is is_chosen
        assert change.candidates == (("linear:AAAUSDT", "100", "0.01", 10),)


def test_the_next_choice_is_at_the_next_stated_time() -> None:
    rule = UniverseRule(top=1, at=("12:00", "00:05"))
    assert rule.at == ("00:05", "12:00")
    minute = 60_000
    assert next_choice_ms(rule, 0) == 5 * minute
    assert next_choice_ms(rule, 5 * minute) == 12 * 60 * minute
    assert next_choice_ms(rule, 12 * 60 * minute) == DAY + 5 * minute


def test_limits_may_meet() -> None:
    rule = {"top": 20, "candidates": 20, "min_volatility": "0.1", "max_volatility": "0.1"}
    universe_rule = present(load(None, {"market": {"universe": rule}}).market.universe)
    assert universe_rule.top == universe_rule.candidates


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"top": 201}, "top = 201 cannot be used"),
        ({"top": 20, "candidates": 10}, "raise candidates or lower top"),
        ({"top": 1, "at": ["24:00"]}, "Times of day, UTC"),
        ({"top": 1, "min_volatility": "0.5", "max_volatility": "0.1"}, "not above max_volatility"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_in_one_sentence(
    table: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load(None, {"market": {"universe": table}})
    assert sentence in str(refused.value)
    assert str(refused.value).count("\n") == 0


def test_a_universe_decides_a_run() -> None:
    with_rule = load(None, {"market": {"universe": {"top": 1}}})
    assert with_rule.sha256() != load(None).sha256()
    assert (
        load(None, {"market": {"universe": '{"top": 1}'}}) == with_rule
    )  # as in an environment variable


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "names no symbol"),
        (b"\xff\xfe", "cannot be read"),
        (b"BTCUSDT,ETHUSDT\n", "has 'BTCUSDT,ETHUSDT', which is no symbol; write one a line."),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=sentence):
        read_symbol_list(file)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_symbol_list(tmp_path / "absent.txt")


def test_a_list_is_read_in_any_usual_form(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    for begin in ("", "\ufeff"):  # some editors write a byte-order mark
        file.write_text(f"{begin}btcusdt # the first\r\n\nETH/USDT\nBTCUSDT\n", encoding="utf-8")
        assert read_symbol_list(file) == ("BTCUSDT", "ETHUSDT")


def test_a_list_lies_beside_the_configuration_that_names_it(tmp_path: Path) -> None:
    model = '[strategy]\nname = "sma_cross"\n[model]\ncheckpoint = "none"\n'
    rule = '[market.universe]\ntop = 1\nfile = "list.txt"\n'
    (tmp_path / "paper.toml").write_text(model + rule)
    (tmp_path / "list.txt").write_text("ETHUSDT\n")
    config = load(tmp_path / "paper.toml")
    assert listed_symbols(config) == ("ETHUSDT",)
    preflight(config, tmp_path / "run.db")
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ConfigInvalid, match="names no symbol"):
        preflight(config, tmp_path / "run.db")


# ---------------------------------------------------------------- a replay


def walk(
    seed: int, symbol: str, bars: int, *, volume: int = 1, interval_ms: int = MINUTE
) -> Candles:
    series = made_candles(walk_rows(bars, seed=seed), symbol=symbol, interval_ms=interval_ms)
    return series if volume == 1 else _times(series, volume)


def _times(candles: Candles, volume: int | IntArray) -> Candles:
    turnover = None if candles.turnover is None else candles.turnover * volume
    return dataclasses.replace(candles, volume=candles.volume * volume, turnover=turnover)


def replayed(
    path: Path, candles: list[Candles], rule: dict[str, Any], interval: str = "1", **options: Any
) -> None:
    config = load(
        None,
        {
            "market": {
                "symbols": [candle.symbol for candle in candles],
                "universe": rule,
                "interval": interval,
            },
            "strategy": CROSSES,
            "sizing": {"mode": "notional", "notional": "1000"},
            "account": {"cash": "1000000"},
        },
    )
    record(path, config, candles, **options)


def choices(path: Path) -> list[UniverseChange]:
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        return [
            step.event for step in reader.steps(run_id) if isinstance(step.event, UniverseChange)
        ]


@pytest.mark.parametrize("on_leave", ["reduce", "close"])
def test_only_what_is_chosen_opens_and_what_leaves_is_reduced_or_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_leave: str
) -> None:
    """The second symbol's turnover is the largest on the first day, and the first's on the next.

    The run is stopped amid them, and goes on.
    """
    monkeypatch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 8)
    bars, hour_ms = 60, 60 * MINUTE
    data = [walk(seed, name, bars, interval_ms=hour_ms) for seed, name in enumerate(NAMES)]
    day = np.where(np.arange(bars) < 30, 1, 10_000)
    data[0], data[1] = _times(data[0], day), _times(data[1], 100)
    path = tmp_path / "run.db"
    rule = {"top": 1, "candidates": 2, "at": [f"{hour:02d}:00" for hour in range(24)]}
    replayed(path, data, rule | {"on_leave": on_leave}, interval="60", stop_after=50)
    resumed(path, MarketData(data))
    changes = choices(path)
    assert [row.market_ms for row in changes] == [
        changes[0].market_ms + hour_ms * at for at in range(61)
    ]
    assert changes[0].chosen == ()  # no bar had closed
    best = [change.chosen for change in changes[1:]]
    assert set(best) == {("linear:BBBUSDT",), ("linear:AAAUSDT",)}
    turned = best.index(("linear:AAAUSDT",))
    assert best == [("linear:BBBUSDT",)] * turned + [("linear:AAAUSDT",)] * (len(best) - turned)
    left_ms = changes[1 + turned].market_ms
    refused = rows(
        path,
        "SELECT instrument, open_time_ms + 3600000 >= "
        f"{left_ms}, count(*) FROM v_decisions WHERE refused_by = 'risk.universe' GROUP BY 1, 2",
    )
    assert {name for name, _, _ in refused} == {f"linear:{name}" for name in NAMES}
    fills = rows(path, f"SELECT instrument, min(filled_ms), max(filled_ms >= {left_ms}) FROM "
                 "v_fills GROUP BY 1")  # fmt: skip
    assert [name for name, _, _ in fills] == ["linear:AAAUSDT", "linear:BBBUSDT"]
    assert fills[0][1] >= left_ms
    closed = rows(path, "SELECT count(*) FROM v_fills WHERE reason = 'left the universe'")
    assert closed == [(int(on_leave == "close"),)]
    shadows = rows(path, "SELECT DISTINCT instrument FROM v_shadow_fills ORDER BY 1")
    assert shadows == [("linear:AAAUSDT",), ("linear:BBBUSDT",)]
    assert check_record(path) == 3 * bars


# ---------------------------------------------------------------- live


async def test_live_choices_are_events_that_a_restart_and_a_replay_repeat(tmp_path: Path) -> None:
    data = tuple(walk(seed, name, 60, volume=1 + seed) for seed, name in enumerate(NAMES))
    served = ExchangeSettings(candles=data, manual=True, start=20, speed=SPEED)
    names = tmp_path / "list.txt"
    names.write_text("AAAUSDT\nCCCUSDT\n")
    every = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 5)]
    rule = {"top": 1, "candidates": 2, "at": every, "file": str(names)}
    market = {"universe": rule, "gather_ms": 10_000}
    both = {"AAAUSDT", "CCCUSDT"}
    path = tmp_path / "run.db"
    async with EmbeddedExchange(served) as exchange:
        async with trading(exchange, path, market=market, strategy=CROSSES) as live:
            await live.listening(6)
            for _ in range(6):
                await live.close_bar(both)
            await live.until(lambda: len(choices_in(live.steps)) == 2)
            names.write_text("AAAUSDT\n")
            for _ in range(5):
                await live.close_bar(both)
            await live.until(lambda: len(choices_in(live.steps)) == 3)
        names.unlink()
        async with trading(exchange, path, market=market, strategy=CROSSES) as again:
            await again.listening(6)
            for _ in range(5):
                await again.close_bar(both)
            await again.until(lambda: len(choices_in(again.steps)) == 1)
            for _ in range(3):
                await again.close_bar(both)
    changes = choices(path)
    assert [change.chosen for change in changes] == [
        *[("linear:CCCUSDT",)] * 2, ("linear:AAAUSDT",), (),
    ]  # fmt: skip
    assert "cannot be read" in changes[-1].reason
    assert rows(path, "SELECT count(*) FROM v_runs") == [(1,)]
    assert rows(path, "SELECT DISTINCT instrument FROM v_decisions ORDER BY 1") == [
        ("linear:AAAUSDT",), ("linear:CCCUSDT",),
    ]  # fmt: skip
    outside = rows(
        path, "SELECT DISTINCT instrument FROM v_decisions WHERE refused_by = 'risk.universe'"
    )
    assert ("linear:AAAUSDT",) in outside
    check_parity(path, tmp_path)


def choices_in(steps: list[Any]) -> list[UniverseChange]:
    return [step.event for step in steps if isinstance(step.event, UniverseChange)]


class Lists:
    """An exchange that lists one symbol."""

    async def listed(self, _: Category) -> list[TradedSymbol]:
        return [listed("AAAUSDT")]


async def test_a_choice_by_a_clock_that_is_behind_is_not_due_once_more_and_its_list_is_read(
    tmp_path: Path,
) -> None:
    due_ms = 100 * DAY + 5 * 60_000
    clock = SteppedClock(due_ms - 200)
    names = tmp_path / "list.txt"
    names.write_text("AAAUSDT\n")
    config = load(None, {"market": {"universe": {"top": 1, "file": str(names)}}})
    rule = present(config.market.universe)
    parts: Any = (config, rule, [instrument("AAAUSDT")], Lists(), None, clock)
    universe = Universe(*parts, database=tmp_path / "no.db", resumed=None)
    first = await universe.choose()
    assert (first.market_ms, first.chosen) == (due_ms - 200, ("linear:AAAUSDT",))
    universe.due_ms = due_ms
    names.write_text("BBBUSDT\n")  # the list is read at each choice
    again = await universe.choose()
    assert (again.market_ms, again.chosen) == (due_ms, ())
    assert next_choice_ms(UniverseRule(top=1), again.market_ms) == due_ms + DAY


class Markets:
    """An exchange with symbols of two quote currencies."""

    async def listed(self, _: Category) -> list[TradedSymbol]:
        coin = listed("AAAUSDC", turnover=900)
        return [coin._replace(quote="USDC"), listed("BBBUSDT", turnover=5), listed("CCCUSDT")]


async def test_candidates_are_those_of_the_quote_currency() -> None:
    exchange: Any = Markets()
    for quote, names in (("USDT", ("CCCUSDT", "BBBUSDT")), ("USDC", ("AAAUSDC",))):
        rule = {"top": 1, "candidates": 3, "quote": quote}
        config = load(None, {"market": {"universe": rule}})
        assert await new_candidates(config, exchange, 100 * DAY) == names


def test_another_rule_takes_candidates_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    data = [walk(seed, name, 20) for seed, name in enumerate(NAMES)]
    rule: dict[str, Any] = {"top": 1, "candidates": 3, "at": ["00:05", "00:15"]}
    until_ms = int(data[0].open_time_ms[9])
    replayed(path, data, rule, until_ms=until_ms)
    assert {choice.market_ms <= until_ms for choice in choices(path)} == {True}

    def names_by(**changed: Any) -> tuple[str, ...]:
        config = load(None, {"market": {"universe": rule | changed}})
        return present(known_candidates(config, RunKind.REPLAY, path))

    assert names_by() == NAMES
    assert names_by(min_turnover="5") == names_by(at=["00:06"]) == ()


async def turns() -> None:
    """Run the loop longer than a choice without a real exchange takes."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_bar_that_closes_when_a_choice_is_due_begins_it_and_one_before_does_not(
    tmp_path: Path,
) -> None:
    due_ms, events = START_MS // DAY * DAY + DAY + 5 * MINUTE, list[Event]()

    async def submit(event: Event) -> int:
        events.append(event)
        return 1

    config = load(None, {"market": {"universe": {"top": 1}}})
    rule = present(config.market.universe)
    parts: Any = (config, rule, [instrument("AAAUSDT")], Lists(), submit, SteppedClock(due_ms))
    universe = Universe(*parts, database=tmp_path / "no.db", resumed=None)
    universe.due_ms = due_ms
    closing = bar(open_time_ms=due_ms - MINUTE)
    async with universe.in_background(lambda: None):
        for early in (
            undecided(1, bar(open_time_ms=due_ms - 2 * MINUTE)),
            undecided(2, closing, accepted=False),  # a revision
        ):
            universe.observe(early)
            await turns()
            assert events == []
        universe.observe(undecided(3, closing))
        await turns()
        assert [event.market_ms for event in events] == [due_ms]
        universe.observe(undecided(4, events[0]))
        assert universe.due_ms == due_ms + DAY


async def test_a_run_without_any_candidate_does_not_begin(tmp_path: Path) -> None:
    data = (walk(0, "AAAUSDT", 60),)
    served = ExchangeSettings(candles=data, manual=True, start=20, speed=SPEED)
    rule = {"top": 1, "candidates": 2, "min_age_days": 9_000}
    async with EmbeddedExchange(served) as exchange:
        with pytest.raises(ConfigInvalid, match="No run begins: none of 1 symbols passes"):
            async with trading(exchange, tmp_path / "run.db", market={"universe": rule}) as live:
                await live.listening(3)
    assert rows(tmp_path / "run.db", "SELECT count(*) FROM v_runs") == [(0,)]


@pytest.mark.parametrize(("names", "warned"), [("DOGEUSDT XRPUSDT", True), ("BBB XRPUSDT", False)])
def test_a_list_without_a_symbol_of_the_run_is_a_warning_of_it(
    tmp_path: Path, names: str, warned: bool
) -> None:
    path, listed_in = tmp_path / "run.db", tmp_path / "list.txt"
    listed_in.write_text(names.replace(" ", "\n"))
    candles = [walk(1, "AAA", 300), walk(2, "BBB", 300)]
    replayed(path, candles, {"top": 1, "file": str(listed_in)})
    ((warnings,),) = rows(path, "SELECT warnings FROM v_runs")
    sentence = (
        "names no symbol of the run (AAA, BBB), so no position is opened; it begins with DOGEUSDT"
    )
    assert (sentence in (warnings or "")) is warned
