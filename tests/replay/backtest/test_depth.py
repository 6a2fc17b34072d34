"""Order books beside candles: replayed, verified, resumed, compared, and never seen too early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import depth_cases as cases
import numpy as np
import pytest
from depth_cases import FIRST_MS, header, trained, walk, write
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record, run_into
from records import check_record, rows

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.models import make_orderbook
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.explain.document import explain_decision
from tracepaper.replay.explain.options import ModelRequest
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import books_in
from tracepaper.strategies.types.market import Depths

pytestmark = pytest.mark.usefixtures("one_thread")

MINUTE_MS = 60_000
BARS = 30
WINDOW = 16
NETWORK = OrderBookConfig(levels=5, window=WINDOW, dim=8, layers=1, heads=2, horizons=(1, 3))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of books around the candles: a gap from 10 to 15 minutes, and one of 70 s."""
    path = tmp_path_factory.mktemp("books") / "btc.depth"
    write(path, walk(660, first_ms=FIRST_MS - 60_000))
    write(path, walk(500, seed=2, first_ms=FIRST_MS + 15 * MINUTE_MS), cause="disconnected")
    return path


@pytest.fixture(scope="module")
def checkpoint(books: Path) -> Path:
    return trained(books, NETWORK, books.parent / "model")


def candles(count: int = BARS, **keys: Any) -> list[Candles]:
    series = made_candles(walk_rows(count, seed=1))
    shift = FIRST_MS - int(series.open_time_ms[0])
    return [replace(series, open_time_ms=series.open_time_ms + shift, **keys)]


def built(
    path: Path, recorded: list[RecordedDepth], checkpoint: Path, *, from_ms: int | None = None,
    options: dict[str, Any] | None = None, data: list[Candles] | None = None,
    **market: Any,
) -> Replay:  # fmt: skip
    config = load(
        None,
        {
            "market": {"symbols": ["BTCUSDT"], **market},
            "strategy": {
                "name": "orderbook",
                "options": {"checkpoint": str(checkpoint), **(options or {})},
            },
            "model": {"checkpoint": "none"},
            "sizing": {"mode": "fixed", "quantity": "0.1"},
            "account": {"cash": "1000000"},
        },
    )
    return build(
        config,
        MarketData(data or candles(), depth=recorded),
        started_at_ms=0,
        database=path,
        from_ms=from_ms,
    )


def replayed(path: Path, books: Path, checkpoint: Path, **keys: Any) -> str:
    return run_into(path, built(path, [read_depth(books)], checkpoint, **keys))


def events(path: Path) -> list[Depths]:
    with Reader.open(path) as reader:
        depths = [event for _, _, event, _ in reader.events(reader.find("last"))]
    return [event for event in depths if isinstance(event, Depths)]


def reasons(path: Path) -> list[str]:
    return [reason for (reason,) in rows(path, "SELECT reason FROM v_decisions ORDER BY sequence")]


def test_a_replay_stores_each_book_once_before_the_bar_that_closes_then(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    path = tmp_path / "a.db"
    replayed(path, books, checkpoint)
    recorded = read_depth(books).read_all()
    stored = [books_in(event) for event in events(path)]
    times = np.concatenate([depths.seen_ms for depths in stored])
    begun_ms, end_ms = FIRST_MS - WINDOW * 1_000, FIRST_MS + BARS * MINUTE_MS
    wanted = (recorded.seen_ms > begun_ms) & (recorded.seen_ms <= end_ms)
    assert times.tolist() == recorded.seen_ms[wanted].tolist()
    price = np.concatenate([books.price for books in stored])
    assert (price == recorded.price[wanted]).all()
    order = rows(path, "SELECT kind, market_ms FROM v_events WHERE kind IN ('bar', 'depth')")
    assert [at_ms for _, at_ms in order] == sorted(at_ms for _, at_ms in order)
    assert [depth.cause for depth in events(path) if depth.cause] == ["stopped", "disconnected"]
    check_record(path)


def test_it_trades_the_mid_and_holds_with_a_sentence_elsewhere(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    path = tmp_path / "a.db"
    replayed(path, books, checkpoint)
    noted = reasons(path)
    assert noted[10:14] == ["the newest order book is older than 2,000 ms"] * 4
    assert noted[14] == "fewer order books since the last gap than the 16 that are looked at"
    assert noted[-1] == "the newest order book is older than 2,000 ms"
    moves = {"the mid is expected to stay", "the mid is expected to rise"}
    moves |= {"the mid is expected to fall"}
    assert set(noted[:9]) | set(noted[15:22]) <= moves
    assert rows(path, "SELECT count(*) FROM v_fills") != [(0,)]
    notes = rows(path, "SELECT name, number FROM v_notes ORDER BY sequence, name")
    first = dict(notes[:8])
    assert first["p_down"] + first["p_flat"] + first["p_up"] == pytest.approx(1, abs=1e-6)
    assert first["looked_bid"] + first["looked_ask"] == pytest.approx(1, abs=1e-6)


def test_the_most_probable_move_is_what_is_done(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    path = tmp_path / "a.db"
    replayed(path, books, checkpoint)
    odds: dict[int, dict[str, float]] = {}
    for sequence, name, number in rows(path, "SELECT sequence, name, number FROM v_notes"):
        if name.startswith("p_"):
            odds.setdefault(sequence, {})[name] = number
    reasons = dict(rows(path, "SELECT sequence, reason FROM v_decisions"))
    does = {"p_up": "rise", "p_flat": "stay", "p_down": "fall"}
    assert len(odds) > 10
    for sequence, of in odds.items():
        assert reasons[sequence] == f"the mid is expected to {does[max(of, key=of.__getitem__)]}"
    assert {reason.rpartition(" ")[2] for reason in reasons.values()} & {"rise", "fall"}


def test_a_newest_book_that_lacks_a_level_is_not_looked_at(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    recorded = read_depth(books)
    strategy = make_orderbook(built(tmp_path / "a.db", [recorded], checkpoint).config)
    window = recorded.read_all().part(0, WINDOW)
    close_ms = int(window.seen_ms[-1])
    assert not isinstance(strategy.usable(window, close_ms), str)
    for side in (0, 1):
        size = window.size.copy()
        size[-1, side, -1] = 0
        refusal = strategy.usable(replace(window, size=size), close_ms)
        assert refusal == "a side of the newest order book has fewer than 5 levels"
        size[-2, side, -1] = 0
        assert isinstance(strategy.usable(replace(window, size=size), close_ms), str)
    thin = window.size.copy()
    thin[-2, 0, -1] = 0  # one before it may lack some
    assert not isinstance(strategy.usable(replace(window, size=thin), close_ms), str)


def test_books_are_counted_in_the_units_of_the_instrument_or_refused(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    recorded = read_depth(books)
    finer = [replace(candle, price_decimals=candle.price_decimals + 3) for candle in candles()]
    replay = built(tmp_path / "a.db", [recorded], checkpoint, data=finer)
    assert replay.instruments[0].price_decimals == 4
    first = next(event for event in replay.feed.events() if isinstance(event, Depths))
    assert books_in(first).price[0, 0, 0] == 1_000 * recorded.read_all().price[45, 0, 0]
    coarse = replace(recorded, header=header(price_decimals=5))
    with pytest.raises(DataInvalid, match="prices of --depth need 5 decimals"):
        built(tmp_path / "a.db", [coarse], checkpoint)


def test_a_class_of_ones_own_sees_the_books_that_it_declares(tmp_path: Path, books: Path) -> None:
    given = {
        "strategy": {"name": "recorded_strategies:Imbalance"},
        "sizing": {"mode": "fixed", "quantity": "0.1"},
        "account": {"cash": "1000000"},
        "model": {"checkpoint": "none"},
    }
    path, depth = tmp_path / "a.db", [read_depth(books)]
    record(path, load(None, given), candles(), depth=depth)
    noted = rows(path, "SELECT number FROM v_notes WHERE name = 'last_ms' ORDER BY sequence")
    closes = [FIRST_MS + (bar + 1) * MINUTE_MS for bar in range(BARS)]
    assert [int(at) for (at,) in noted][:9] == closes[:9]
    wanted = depth[0].read_all()
    row = int(np.searchsorted(wanted.seen_ms, closes[0]))
    ((bid,),) = rows(
        path, "SELECT number FROM v_notes WHERE name = 'bid' ORDER BY sequence LIMIT 1"
    )
    assert bid == wanted.size[row - 9 : row + 1, 0, 0].sum()
    check_record(path)
    with pytest.raises(ConfigInvalid, match=r"reads order books, and market.depth is 0"):
        build(load(None, given), MarketData(candles()), started_at_ms=0)


@pytest.mark.parametrize(
    ("market", "options", "sentence"),
    [
        ({"depth": 3}, {}, "books of 5 levels each 1,000 ms, and .market. has depth = 3"),
        ({"depth": 6}, {}, "holds linear:BTCUSDT, 5 levels a side each 1,000 ms, and the run"),
        ({"depth": 5, "depth_every_ms": 500}, {}, "set market.depth and market.depth_every_ms"),
        ({}, {"horizon": 2}, "options.horizon is 2; the network knows 1, 3 books"),
        ({}, {"stale_ms": -1}, "Expected `int` >= 0 - at `..stale_ms`"),
        ({}, {"every": 5}, "unknown field `every`"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path,
    books: Path,
    checkpoint: Path,
    market: dict[str, Any],
    options: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        built(tmp_path / "a.db", [read_depth(books)], checkpoint, options=options, **market)


def test_depth_without_books_and_books_of_another_symbol_are_refused(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    with pytest.raises(ConfigInvalid, match=r"candles hold no order books; give recorded ones by"):
        built(tmp_path / "a.db", [], checkpoint, depth=5)
    recorded = read_depth(books)
    other = replace(recorded, header=header(of="linear:ETHUSDT"))
    with pytest.raises(ConfigInvalid, match=r"holds books of linear:ETHUSDT, and the run trades"):
        built(tmp_path / "a.db", [other], checkpoint)
    with pytest.raises(ConfigInvalid, match=r"--depth names two files of linear:BTCUSDT"):
        built(tmp_path / "a.db", [recorded, recorded], checkpoint)


def test_a_checkpoint_of_another_symbol_is_refused(
    tmp_path: Path, books: Path, checkpoint: Path
) -> None:
    config = built(tmp_path / "a.db", [read_depth(books)], checkpoint).config
    market = config.market.model_copy(update={"symbols": ("ETHUSDT",)})
    with pytest.raises(ConfigInvalid, match=r"reads books of linear:BTCUSDT, and the run trades"):
        make_orderbook(config.model_copy(update={"market": market}))


def test_depth_decides_a_run() -> None:
    plain = load(None, {})
    config = load(None, {"market": {"depth": 50}})
    assert config.settings()["market"]["depth_every_ms"] == 1_000
    assert config.sha256() != plain.sha256()
    assert cases.BTC.id == "linear:BTCUSDT"


def test_a_decision_is_explained_by_its_map_of_level_and_time(
    tmp_path: Path, books: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.db"
    run_id = replayed(path, books, checkpoint)
    ((sequence,),) = rows(
        path, "SELECT sequence FROM v_decisions ORDER BY sequence LIMIT 1 OFFSET 20"
    )
    decision = f"{run_id}:{sequence}"
    explain_decision(decision, path, ModelRequest(full=True), png=None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    answer = document["books"]
    weights = np.array([answer[side]["weights"] for side in ("bid", "ask")])
    assert weights.shape == (2, WINDOW, 5)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    noted = dict(rows(path, f"SELECT name, number FROM v_notes WHERE sequence = {sequence}"))
    assert weights[0].sum() == pytest.approx(noted["looked_bid"], abs=1e-6)
    assert answer["answers"][-1]["up"] == pytest.approx(noted["p_up"], abs=1e-6)
    assert answer["seen_ms"][-1] == FIRST_MS + 21 * MINUTE_MS  # the close of that bar
    explain_decision(decision, path, ModelRequest(full=True), png=None, as_json=False)
    text = capsys.readouterr().out
    assert "untrained" in text
    assert "level" in text
