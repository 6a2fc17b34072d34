"""Replays whose orders a recorded book fills: verified, resumed, compared, never seen too early."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import programs
import pytest
from depth_cases import FIRST_MS, header, walk, write
from queue_cases import Say, book, gap, played, send, shows, trade
from recordings import run_into
from records import check_record, rows
from seeded_events import MINUTE_MS, SeededMarket, by_book, seeded_market
from several_strategies import configured as several

from tracepaper.daemon.config.loading import Config
from tracepaper.replay.archive import read_candles
from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.archive.events import EventsFile, EventsWriter
from tracepaper.replay.backtest.book_feed import EventsSource, FillSource
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.strategies.api.context import buy
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import SILENT_MS
from tracepaper.strategies.units import iso


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    return seeded_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    return seeded_market(tmp_path_factory.mktemp("holed"), minutes=12, gap=(4, 7))


def built(
    path: Path,
    market: SeededMarket,
    config: Config | None = None,
    *,
    events: Sequence[FillSource] | None = None,
    depth: Sequence[RecordedDepth] = (),
    **keys: Any,
) -> Replay:
    data = MarketData(
        [read_candles(str(market.candles), category="linear")],
        events=[EventsSource(market.events)] if events is None else events,
        depth=depth,
    )
    return build(config or by_book(), data, started_at_ms=1, database=path, **keys)


def replayed(path: Path, market: SeededMarket, config: Config | None = None, **keys: Any) -> str:
    return run_into(path, built(path, market, config, **keys))


FILLS = (
    "SELECT filled_ms, side, price_text, quantity_text, liquidity, model FROM v_fills ORDER BY 1"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, market: SeededMarket) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.db"
    replayed(path, market)
    return path


def test_the_queue_model_and_the_latencies_decide_what_is_filled(
    tmp_path: Path, whole: Path, market: SeededMarket
) -> None:
    by_model = {"RiskAdverse": rows(whole, FILLS)}
    tried: dict[str, dict[str, Any]] = {
        "PowerProb": {"queue_model": "PowerProbQueueModel"},
        "exponent": {"queue_model": "PowerProbQueueModel", "queue_exponent": 1},
        "latency": {"latency_ms": 5_000},
        "response": {"response_ms": 59_000},
    }
    for name, keys in tried.items():
        path = tmp_path / f"{name}.db"
        replayed(path, market, by_book(**keys))
        by_model[name] = rows(path, FILLS)
        check_record(path)
    assert len({str(fills) for fills in by_model.values()}) == len(by_model)


def test_a_book_fills_several_strategies_on_cross_margin(
    tmp_path: Path, market: SeededMarket
) -> None:
    config = several(
        ("a", "b"),
        ("0.5", "0.5"),
        account={"cash": "100000", "margin": "cross", "leverage": "10"},
        execution={"model": "book"},
        market={"symbols": ["BTCUSDT"], "interval": "1"},
    )
    path = tmp_path / "run.db"
    replayed(path, market, config)
    check_record(path)
    assert {model for *_, model in rows(path, FILLS)} == {"book"}
    assert {name for (name,) in rows(path, "SELECT shadow FROM v_shadow_fills")} == {"a", "b"}


# ---------------------------------------------------------------- holes


def test_a_hole_is_said_and_held_and_nothing_is_lost(tmp_path: Path, holed: SeededMarket) -> None:
    path = tmp_path / "a.db"
    replayed(path, holed)
    warnings = rows(path, "SELECT warnings FROM v_runs")[0][0]
    assert "the book of linear:BTCUSDT has 1 gaps of 180.5 s in all: nothing is filled" in warnings
    begin_ms = FIRST_MS + 4 * 60_000
    end_ms = begin_ms + 3 * 60_000
    fills = rows(path, FILLS)
    assert any(row[0] < begin_ms for row in fills)
    assert any(row[0] > end_ms for row in fills)
    assert [row for row in fills if begin_ms <= row[0] < end_ms] == []
    causes = rows(
        path, "SELECT json_extract(content, '$.cause') AS c FROM v_events WHERE kind = 'book'"
    )
    assert [cause for (cause,) in causes if cause] == ["stopped", "disconnected"]
    assert rows(path, "SELECT count(*) FROM v_decisions")[0][0] == 12
    check_record(path)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    folder = tmp_path_factory.mktemp("silent")
    return seeded_market(folder, minutes=12, gap=(4, 7), is_silent=True)


SILENCE = (FIRST_MS + 4 * MINUTE_MS - 500 + SILENT_MS, FIRST_MS + 7 * MINUTE_MS)


def test_a_book_that_went_silent_is_a_gap_and_holds_every_order(
    tmp_path: Path, silent: SeededMarket
) -> None:
    path = tmp_path / "a.db"
    replayed(path, silent)
    warnings = rows(path, "SELECT warnings FROM v_runs")[0][0]
    assert "the book of linear:BTCUSDT has 1 gaps of 120.5 s in all: nothing is filled" in warnings
    fills = [row[0] for row in rows(path, FILLS)]
    begin_ms, end_ms = SILENCE
    assert any(end_ms - 3 * MINUTE_MS <= at_ms <= begin_ms for at_ms in fills)
    assert [at_ms for at_ms in fills if begin_ms < at_ms < end_ms] == []
    assert any(at_ms >= end_ms for at_ms in fills)
    causes = rows(
        path, "SELECT json_extract(content, '$.cause') AS c FROM v_events WHERE kind = 'book'"
    )
    assert [cause for (cause,) in causes if cause] == ["stopped", "silent"]
    check_record(path)


WHOLE = book(0, {99: 10}, {101: 10, 102: 10})
LAST_MS = SILENT_MS  # the book of second 0 stands until then


@pytest.mark.parametrize(
    ("name", "script", "fills"),
    [
        ("stands for a minute", [WHOLE, send(LAST_MS, buy(4)), trade(90_000, "Buy", 101, 1)],
         [(LAST_MS, "buy", 101, 4, "T")]),
        ("and no longer", [WHOLE, send(LAST_MS + 1, buy(4)), trade(90_000, "Buy", 101, 1)], []),
        ("until it is heard again",
         [WHOLE, send(LAST_MS + 1, buy(14)), trade(62_000, "Buy", 101, 1),
          shows(65_000, asks={102: 3})],
         [(65_000, "buy", 101, 10, "T"), (65_000, "buy", 102, 3, "T")]),
        ("what was taken stays taken",
         [WHOLE, send(10, buy(4)), shows(20), send(90_000, buy(7)), shows(95_000)],
         [(10, "buy", 101, 4, "T"), (95_000, "buy", 101, 6, "T"), (95_000, "buy", 102, 1, "T")]),
        ("trades of a silent book fill nothing",
         [WHOLE, send(10, buy(4, limit=99.0)), trade(61_000, "Sell", 99, 50), shows(95_000),
          trade(95_001, "Sell", 99, 12)], [(95_001, "buy", 99, 2, "M")]),
        ("trades are not the book",
         [WHOLE, *(trade(at, "Buy", 101, 1) for at in range(1_000, 90_000, 1_000)),
          send(90_000, buy(1)), trade(91_000, "Buy", 101, 1)], []),
        ("nothing rested",
         [WHOLE, shows(90_000), send(90_010, buy(1, limit=99.0)), shows(90_020),
          trade(90_030, "Sell", 99, 11)], [(90_030, "buy", 99, 1, "M")]),
        ("a gap within",
         [WHOLE, send(70_000, buy(1)), gap(71_000), book(75_000, {99: 1}, {103: 1})],
         [(75_000, "buy", 103, 1, "T")]),
    ],
)  # fmt: skip
def test_a_book_stands_a_minute_after_its_last_frame(
    tmp_path: Path, name: str, script: list[Say], fills: list[tuple[int, str, int, int, str]]
) -> None:
    assert name
    assert played(tmp_path / "a.events", script).rows == fills


@pytest.mark.parametrize("trade_ms", [100, 101])
@pytest.mark.parametrize("limit", [None, 102.0])
def test_an_order_that_arrives_with_a_trade_meets_the_whole_book(
    tmp_path: Path, trade_ms: int, limit: float | None
) -> None:
    script = [WHOLE, send(10, buy(14, limit=limit)), trade(trade_ms, "Buy", 101, 1), shows(150)]
    outcome = played(tmp_path / "a.events", script, latency_ms=90)
    assert outcome.rows == [(100, "buy", 101, 10, "T"), (100, "buy", 102, 4, "T")]


def test_a_file_that_ends_before_the_candles_says_so_and_fills_no_more(
    tmp_path: Path, market: SeededMarket
) -> None:
    """Planted: all but the first two minutes of events are cut off, or the first frame is all."""
    for name, count in {"minutes": 480, "frame": 1}.items():
        short, path = tmp_path / f"{name}.events", tmp_path / f"{name}.db"
        file = EventsFile(market.events)
        with EventsWriter(short, file.header) as writer:
            for line in islice(file.lines(), count):
                writer.add(line.received_ms, line.data.encode())
        replayed(path, market, events=[EventsSource(short)])
        last_ms = FIRST_MS + (count - 1) // 2 * 500
        warnings = rows(path, "SELECT warnings FROM v_runs")[0][0]
        assert f"the book of linear:BTCUSDT ends at {iso(last_ms)}: nothing is filled" in warnings
        fills = [row[0] for row in rows(path, FILLS)]
        assert bool(fills) is (count > 1)
        assert [at_ms for at_ms in fills if at_ms > last_ms + SILENT_MS] == []
        check_record(path)


def test_a_torn_file_is_used_up_to_its_last_whole_block(
    tmp_path: Path, market: SeededMarket
) -> None:
    torn = tmp_path / "torn.events"
    torn.write_bytes(market.events.read_bytes()[:-7])
    path = tmp_path / "a.db"
    replayed(path, market, events=[EventsSource(torn)])
    assert "torn" in rows(path, "SELECT warnings FROM v_runs")[0][0]
    check_record(path)


# ---------------------------------------------------------------- sampled books


def test_sampled_books_serve_what_takes_and_refuse_what_would_rest(
    tmp_path: Path, market: SeededMarket
) -> None:
    sampled, path = tmp_path / "btc.depth", tmp_path / "a.db"
    write(sampled, walk(1_800), of=header(levels=5))
    replayed(path, market, events=[], depth=[read_depth(sampled)])
    ends = dict(rows(path, "SELECT status, count(*) FROM v_orders GROUP BY 1"))
    assert ends.get("REJECTED", 0) > 10
    reasons = rows(path, "SELECT DISTINCT reason FROM v_orders WHERE status = 'REJECTED'")
    assert [reason for (reason,) in reasons if "needs recorded events (--events)" in reason]
    assert {row[4] for row in rows(path, FILLS)} == {"TAKER"}
    check_record(path)


# ---------------------------------------------------------------- what is refused


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, market: SeededMarket) -> None:
    path = tmp_path / "a.db"
    later = tmp_path / "later"
    later.mkdir()
    refused: list[tuple[dict[str, Any], Config, type[Exception], str]] = [
        ({"events": []}, by_book(), ConfigInvalid, "needs recorded order books: give --events"),
        ({}, by_book(model="next_open"), ConfigInvalid, "and execution.model is next_open"),
        (
            {"events": [EventsSource(market.events)] * 2}, by_book(), ConfigInvalid,
            "--events names two files of linear:BTCUSDT",
        ),
        ({"from_ms": 0, "until_ms": 1}, by_book(), DataInvalid, "No bar opens"),
    ]  # fmt: skip
    for keys, config, kind, words in refused:
        with pytest.raises(kind, match=words):
            built(path, market, config, **keys)
        assert not path.exists()
    unheard = tmp_path / "unheard.events"
    file = EventsFile(market.events)
    for kept in ("publicTrade", "of no frame"):
        with EventsWriter(unheard, file.header) as writer:
            for line in file.lines():
                if kept in line.data:
                    writer.add(line.received_ms, line.data.encode())
        with pytest.raises(DataInvalid, match=r"unheard\.events holds no frame of an order book"):
            EventsSource(unheard)
        unheard.unlink()
    for content in (b"", b"no gzip", market.candles.read_bytes()):
        wrong = tmp_path / "wrong.events"
        wrong.write_bytes(content)
        with pytest.raises(DataInvalid, match=r"wrong\.events"):
            EventsSource(wrong)


def test_a_frame_of_the_future_ends_a_replay_in_a_sentence(
    tmp_path: Path, market: SeededMarket
) -> None:
    """Planted: one date 11.6 days ahead, which would hold every order from then on."""
    changed, path = tmp_path / "changed.events", tmp_path / "a.db"
    file = EventsFile(market.events)
    with EventsWriter(changed, file.header) as writer:
        for number, line in enumerate(file.lines()):
            frame = json.loads(line.data)
            frame["ts"] += 10**9 * (number == 800)
            writer.add(line.received_ms, json.dumps(frame).encode())
    with pytest.raises(
        DataInvalid, match=r"changed\.events holds a frame .* it is dated 1,000,000"
    ):
        replayed(path, market, events=[EventsSource(changed)])


def test_books_of_another_time_or_symbol_are_refused(tmp_path: Path, market: SeededMarket) -> None:
    source = EventsSource(market.events)
    source.first_ms, source.last_ms = 0, 1
    with pytest.raises(DataInvalid, match="give books and candles of one time"):
        built(tmp_path / "a.db", market, events=[source])
    source.instrument_id = "linear:ETHUSDT"
    with pytest.raises(ConfigInvalid, match="--events holds books of linear:ETHUSDT"):
        built(tmp_path / "a.db", market, events=[source])


def test_a_daemon_of_several_symbols_says_that_it_has_no_such_model(tmp_path: Path) -> None:
    words = ["run", "--set", "execution.model=book", "--set", "storage.url=sqlite:///a.db"]
    words += ["--set", "market.symbols=BTCUSDT,ETHUSDT"]
    ended = programs.run(words, tmp_path)
    assert (ended.code, ended.err.count("does not support several symbols")) == (2, 1)
    assert not (tmp_path / "a.db").exists()


# ---------------------------------------------------------------- lookahead
