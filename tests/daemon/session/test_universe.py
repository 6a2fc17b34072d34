"""The symbols of a new account are chosen by a rule, and every later start takes the same."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MINUTE
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from killed_replays import resumed
from records import check_record, rows
from several_live import SPEED, check_parity, trading

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.run_row import preflight
from tracepaper.daemon.session.universe import (
    age_days,
    choose,
    listed_symbols,
    new_symbols,
    read_symbol_list,
)
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Watch
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.backtest.universe import with_chosen
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Category

DAY = 86_400_000
HOUR = 60 * MINUTE
CROSSES = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")


def listed(
    symbol: str, turnover: int = 100, volatility: str = "0.05", days: int = 10
) -> TradedSymbol:
    return TradedSymbol(symbol, "USDT", Decimal(turnover), Decimal(volatility), (100 - days) * DAY)


def chosen(
    symbols: list[TradedSymbol], names: tuple[str, ...] | None = None, **rule: Any
) -> list[str]:
    return [*choose(UniverseRule(**rule), symbols, now_ms=100 * DAY, names=names)]


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
    assert chosen(listings, top=9, min_volatility="0.2", max_volatility="0.2") == ["D"]
    assert chosen(listings, top=9, min_volatility="0.05", max_volatility="0.05") == ["A", "C", "B"]
    assert [age_days(listed("A", days=days), 100 * DAY) for days in (0, 1, -1)] == [0, 1, -1]
    unknown = [TradedSymbol("A", "USDT", Decimal(1), Decimal("0.1"), 0)]
    assert chosen(unknown, top=9) == ["A"]
    for nothing in ({"names": ()}, {"min_age_days": 1}):
        with pytest.raises(ConfigInvalid, match=r"^None of 1 symbols passes market\.universe; "):
            chosen(unknown, top=9, **nothing)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"top": 201}, "top = 201 cannot be used"),
        ({"top": 1, "at": ["00:05"]}, "has no key"),
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


def test_symbols_are_named_or_chosen(tmp_path: Path) -> None:
    rule = "[market.universe]\ntop = 1\n"
    (tmp_path / "paper.toml").write_text(f'[market]\nsymbols = ["BTCUSDT"]\n{rule}')
    with pytest.raises(ConfigInvalid, match=r"paper\.toml sets market\.symbols, and .*; leave one"):
        load(tmp_path / "paper.toml")
    assert load(None, {"market": {"universe": {"top": 1}}}).sha256() != load(None).sha256()
    assert load(None, {"market": {"universe": '{"top": 1}'}}).market.universe is not None


# ---------------------------------------------------------------- a list


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


def walk(seed: int, symbol: str, bars: int, *, interval_ms: int = MINUTE) -> Candles:
    return made_candles(walk_rows(bars, seed=seed), symbol=symbol, interval_ms=interval_ms)


def times(candles: Candles, volume: int | IntArray) -> Candles:
    turnover = None if candles.turnover is None else candles.turnover * volume
    return dataclasses.replace(candles, volume=candles.volume * volume, turnover=turnover)


def market(bars: int = 60) -> list[Candles]:
    """Return hours of three symbols: the last two trade most on the first day, then the first."""
    first, second, third = (
        walk(seed, name, bars, interval_ms=HOUR) for seed, name in enumerate(NAMES)
    )
    day = np.where(np.arange(bars) < 24, 1, 10_000)
    return [times(first, day), times(second, 100), times(third, 50)]


def spec_of(data: list[Candles], path: Path, **options: Any) -> RunSpec:
    given: dict[str, dict[str, Any]] = {
        "market": {"universe": {"top": 2}},
        "strategy": CROSSES,
        "sizing": {"mode": "notional", "notional": "1000"},
        "account": {"cash": "1000000"},
    }
    return RunSpec(candles=tuple(data), config=given, database=path, **options)


def test_a_backtest_trades_what_was_best_before_its_first_bar(tmp_path: Path) -> None:
    data, path = market(), tmp_path / "run.db"
    from_ms = int(data[0].open_time_ms[24])
    make_run(spec_of(data, path, start=str(from_ms)))
    assert rows(path, "SELECT DISTINCT instrument FROM v_bars ORDER BY 1") == [
        ("linear:BBBUSDT",), ("linear:CCCUSDT",),
    ]  # fmt: skip
    assert rows(path, "SELECT count(*) > 0 FROM v_fills") == [(1,)]
    check_record(path)


def best(data: list[Candles], hour: int, **rule: Any) -> tuple[str, ...]:
    """Return the symbols that are chosen of *data* when that *hour* begins."""
    config = load(None, {"market": {"universe": {"top": 1, **rule}}})
    from_ms = int(data[0].open_time_ms[hour])
    return with_chosen(config, MarketData(data), from_ms).market.symbols


def test_a_choice_knows_the_24_hours_before_it_and_nothing_else() -> None:
    first, second, third = market()

    def most(*hours: int) -> Candles:
        return times(third, np.where(np.isin(np.arange(60), hours), 10**8, 1))

    assert best([first, second, third], 24) == ("BBBUSDT",)
    assert best([first, second, most(23)], 24) == ("CCCUSDT",)
    assert best([first, second, most(*range(24, 60))], 24) == ("BBBUSDT",)
    assert best([first, second, most(25)], 48) == ("CCCUSDT",)
    assert best([first, second, most(23)], 48) == ("AAAUSDT",)
    assert best([first, second[24:]], 24) == ("AAAUSDT",)  # of the other nothing is known
    twice = times(third, 3)
    assert best([first, second, twice[:12], twice[12:]], 24) == ("CCCUSDT",)  # one symbol's files
    assert best([first, second], 48, min_age_days=2) == ("AAAUSDT",)  # since the first candle


def test_a_backtests_volatility_is_by_the_last_price() -> None:
    def of(symbol: str, *closes: int) -> Candles:
        moved = walk(0, symbol, 24, interval_ms=HOUR)
        ones, close = np.ones(24, np.int64), np.repeat(closes, 12)
        return dataclasses.replace(moved, high=220 * ones, low=100 * ones, close=close)

    data = [
        of("AAAUSDT", 200, 110),
        of("BBBUSDT", 110, 200),
        walk(0, "CCCUSDT", 30, interval_ms=HOUR),
    ]
    assert best(data[::-1], 24, by="volatility") == ("AAAUSDT",)


def test_a_stopped_backtest_goes_on_with_its_symbols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 8)
    data, paths = market(), (tmp_path / "whole.db", tmp_path / "cut.db")
    spec = spec_of(data, paths[0], start=str(data[0].open_time_ms[24]))
    make_run(spec)
    bars = [0]
    watch = Watch(lambda _replay: nullcontext(bars.append), lambda: bars[-1] >= 30)
    assert not make_run(dataclasses.replace(spec, database=paths[1]), watch).tally.finished
    resumed(paths[1], MarketData(data))
    decisions = "SELECT instrument, open_time_ms, action, reason FROM v_decisions ORDER BY 1, 2"
    assert rows(paths[1], decisions) == rows(paths[0], decisions) != []
    check_record(paths[1])


def test_a_backtest_in_which_nothing_is_known_before_its_first_bar_says_when_to_begin(
    tmp_path: Path,
) -> None:
    data = market()
    with pytest.raises(ConfigInvalid, match=r"begin later, such as by --from 20\d\d-") as refused:
        make_run(spec_of(data, tmp_path / "run.db"))
    assert str(refused.value).count("\n") == 0
    assert not (tmp_path / "run.db").exists()


# ---------------------------------------------------------------- live


async def test_later_starts_take_the_symbols_of_the_first_until_market_is_another(
    tmp_path: Path,
) -> None:
    """The third symbol trades most until the first run begins, and least after it.

    The exchange has all bars of the warm-up: a hole before them is asked for again in real time.
    """
    grown = np.where(np.arange(120) < 70, 1, 1_000)
    first, second, third = (walk(seed, name, 120) for seed, name in enumerate(NAMES))
    data = times(first, grown), times(second, grown * 2), times(third, 50)
    served = ExchangeSettings(candles=data, manual=True, start=65, speed=SPEED)
    path, names = tmp_path / "run.db", tmp_path / "list.txt"
    names.write_text("AAAUSDT\nCCCUSDT\n")
    rule = {"top": 1, "file": str(names)}
    async with EmbeddedExchange(served) as exchange:
        for _ in range(2):  # at the second start the first symbol is the best by far
            async with trading(exchange, path, market={"universe": rule}, strategy=CROSSES) as live:
                await live.listening(3)
                for _ in range(6):
                    await live.close_bar({"CCCUSDT"})
            names.unlink(missing_ok=True)  # a later start does not read it
        assert rows(path, "SELECT count(*) FROM v_runs") == [(1,)]
        check_parity(path, tmp_path)
        async with trading(
            exchange, path, market={"universe": {"top": 1}}, strategy=CROSSES
        ) as live:
            await live.listening(3)
            await live.close_bar({"BBBUSDT"})
    assert rows(
        path, "SELECT instrument FROM v_decisions GROUP BY run_id, 1 ORDER BY min(open_time_ms)"
    ) == [("linear:CCCUSDT",), ("linear:BBBUSDT",)]


class Markets:
    """An exchange with symbols of two quote currencies."""

    async def listed(self, _: Category) -> list[TradedSymbol]:
        coin = listed("AAAUSDC", turnover=900)
        return [coin._replace(quote="USDC"), listed("BBBUSDT", turnover=5), listed("CCCUSDT")]


async def test_what_is_chosen_has_the_quote_currency() -> None:
    exchange: Any = Markets()
    for quote, names in (("USDT", ("CCCUSDT", "BBBUSDT")), ("USDC", ("AAAUSDC",))):
        config = load(None, {"market": {"universe": {"top": 3, "quote": quote}}})
        assert await new_symbols(config, exchange, 100 * DAY) == names


async def test_a_run_for_which_nothing_passes_does_not_begin(tmp_path: Path) -> None:
    data = (walk(0, "AAAUSDT", 60),)
    served = ExchangeSettings(candles=data, manual=True, start=20, speed=SPEED)
    rule = {"top": 1, "min_age_days": 9_000}
    async with EmbeddedExchange(served) as exchange:
        with pytest.raises(ConfigInvalid, match="None of 1 symbols passes"):
            async with trading(exchange, tmp_path / "run.db", market={"universe": rule}) as live:
                await live.listening(3)
    assert rows(tmp_path / "run.db", "SELECT count(*) FROM v_runs") == [(0,)]
