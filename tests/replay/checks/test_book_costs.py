"""A run's fills beside recorded books: a planted bias is found, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import depth_cases
import numpy as np
import pytest
from command_line import Cli
from depth_cases import delta, header, packed, snapshot
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from msgspec import structs
from recordings import crossing, record

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import DepthWriter
from tracepaper.replay.archive.events import EventsFile, EventsWriter
from tracepaper.replay.archive.recordings import RecordingHeader
from tracepaper.replay.checks.book_costs import BookLevels
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.order_book import SILENT_MS
from tracepaper.strategies.types.market import Depth, Side
from tracepaper.strategies.units import MINUTE_MS

EVERY_MS = 1_000
QUARTER = 15 * MINUTE_MS
DECIMALS = 6
"""Of the books' prices, so that a bias is exact to a thousandth of a basis point."""


class SentOrder(NamedTuple):
    instrument: str
    side: Side
    quantity: int  # of 10⁻³
    price: Decimal
    at_ms: int


def replayed(path: Path, walks: Sequence[Candles], **execution: Any) -> None:
    config = crossing(
        *(walk.symbol for walk in walks),
        interval="15",
        sizing={"mode": "fixed", "quantity": "2"},
        execution={"taker_fee": "0", "latency_ms": 100, **execution},
    )
    record(path, config, list(walks), started_at_ms=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("books") / "run.db"
    walk = made_candles(walk_rows(15 * 96), interval_ms=QUARTER)
    replayed(path, [walk, replace(walk, symbol="ETHUSDT")])
    return path


@pytest.fixture(scope="module")
def sent(run: Path) -> list[SentOrder]:
    """Return the orders of the run, each filled once."""
    with Reader.open(run) as reader:
        views = RunViews(reader.connection, reader.find("last"))
        orders = {row["order_id"]: row for row in views.rows("v_orders")}
        fills = [
            SentOrder(
                row["instrument"],
                Side(row["side"]),
                int(Decimal(row["quantity_text"]) * 1_000),
                Decimal(row["price_text"]),
                orders[row["order_id"]]["eligible_ms"],
            )
            for row in views.rows("v_fills")
        ]
    assert len({order.at_ms // 86_400_000 for order in fills}) > 12
    return fills


def book_for(order: SentOrder, bias_bp: float, *, size: int | None = None) -> Depth:
    """Make a book whose far side is *bias_bp* of its mid worse than paper, by two equal levels.

    Half the spread is a basis point.
    """
    sign = 1 if order.side is Side.BUY else -1
    price = int(order.price.scaleb(DECIMALS))
    mid = round(price * (1 + sign * (bias_bp - 1) / 1e4))
    far = round(price + sign * mid * bias_bp / 1e4)
    half = (order.quantity if size is None else size) // 2
    wide = max(price // 1_000_000, 1)
    theirs = [(far - sign * wide, half), (far + sign * wide, half)]
    near = 2 * mid - theirs[0][0]
    ours = [(near, 1)]
    bids, asks = (ours, theirs) if sign > 0 else (theirs, ours)
    seen_ms = -(-order.at_ms // EVERY_MS) * EVERY_MS
    return Depth(order.instrument, packed(bids), packed(asks), seen_ms, seen_ms)


def samples(
    folder: Path,
    sent: Iterable[SentOrder],
    book: Callable[[SentOrder], Depth],
    name: str = "a.depth",
) -> Path:
    """Write a book for each order, gaps in between."""
    path, held = folder / name, {order.at_ms: order for order in sent}
    instrument = next(iter(held.values())).instrument
    of = header(2, EVERY_MS, of=instrument, price_decimals=DECIMALS)
    with DepthWriter(path, of) as writer:
        for at_ms in sorted(held):
            writer.add(book(held[at_ms]), "stopped")
    return path


def costs(cli: Cli, run: Path, *books: Path, code: int = 0) -> Any:
    words = [word for each in books for word in ("--books", each)]
    answer = cli("parity", "last", "--db", run, *words, "--json")
    assert answer.code == code
    return json.loads(answer.out)


def refused(cli: Cli, *words: str) -> str:
    answer = cli("parity", *words)
    assert answer.code in {1, 2}
    assert len(answer.err.strip().split(". ")) <= 2
    return answer.err


def of_btc(sent: Iterable[SentOrder]) -> list[SentOrder]:
    return [order for order in sent if order.instrument == "linear:BTCUSDT"]


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("planted", [3.0, -2.0])
def test_a_planted_bias_is_found_within_its_error(
    planted: float, run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    rng = np.random.default_rng(5)
    of_day = {order.at_ms // 86_400_000: rng.normal(0.0, 1.0) for order in sent}
    mine = of_btc(sent)
    path = samples(
        tmp_path,
        mine,
        lambda order: book_for(
            order, planted + of_day[order.at_ms // 86_400_000] + rng.normal(0, 2)
        ),
    )
    document = costs(cli, run, path)
    row = document["figures"]["all"][0]
    assert row["orders"] == document["orders"] == len(mine)
    assert row["bias_bp"] == {"value": pytest.approx(planted, abs=1.0), "error": None}
    word = "optimistic" if planted > 0 else "pessimistic"
    assert document["sentences"][0].startswith(f"Paper was {word}: a fill at the books costs")


def test_fills_at_exactly_the_mean_price_of_the_book_cost_exactly_nothing(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    document = costs(cli, run, samples(tmp_path, of_btc(sent), lambda order: book_for(order, 0.0)))
    rows = [row for table in document["figures"].values() for row in table]
    assert {(row["bias_bp"]["value"], row["std_bp"]) for row in rows} == {(0.0, 0.0)}
    assert {row["bias_bp"]["error"] for row in document["figures"]["all"]} == {None}
    assert "No bias of paper is shown" in document["sentences"][0]


def test_biases_of_a_symbol_a_size_and_an_hour_stand_in_their_rows(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    other = [order for order in sent if order not in of_btc(sent)]
    hour = other[0].at_ms // 3_600_000 % 24
    document = costs(
        cli,
        run,
        samples(tmp_path, of_btc(sent), lambda order: book_for(order, 0.0)),
        samples(
            tmp_path,
            other,
            lambda order: book_for(order, 4.0 if order.at_ms // 3_600_000 % 24 == hour else 2.0),
            "eth.depth",
        ),
    )
    by_symbol = {row["name"]: row["bias_bp"]["value"] for row in document["figures"]["symbol"]}
    assert by_symbol["BTCUSDT"] == 0.0
    assert 2.0 < by_symbol["ETHUSDT"] < 4.0
    by_hour = {row["name"]: row["bias_bp"]["value"] for row in document["figures"]["hour"]}
    assert max(by_hour, key=lambda name: by_hour[name]) == f"{hour:02d}"
    assert by_hour[f"{hour:02d}"] == pytest.approx(2.0, abs=0.01)  # of both symbols
    assert sum(row["orders"] for row in document["figures"]["size"]) == len(sent)


# ---------------------------------------------------------------- what is counted apart


def test_what_a_book_has_no_size_for_stands_apart(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    mine = of_btc(sent)
    thin = {order.at_ms for order in mine[::4]}

    def book(order: SentOrder) -> Depth:
        if order.at_ms in thin:
            return book_for(order, 7.0, size=order.quantity // 2)
        return book_for(order, 0.0)

    document = costs(cli, run, samples(tmp_path, mine, book))
    assert document["left_out"]["orders larger than the recorded book"] == len(thin)
    of_all = document["figures"]["all"][0]
    assert of_all["orders"] == len(mine) - len(thin)
    assert of_all["bias_bp"]["value"] == 0.0


def test_orders_outside_and_inside_gaps_and_of_other_symbols_are_counted(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    mine = of_btc(sent)
    covered = [*mine[3:8], *mine[12:-2]]
    document = costs(cli, run, samples(tmp_path, covered, lambda order: book_for(order, 1.0)))
    assert document["orders"] == len(covered)
    assert document["left_out"] == {
        "orders inside gaps of the recording": 4,
        "orders of linear:ETHUSDT, for which no books were given": len(sent) - len(mine),
        "orders outside the recorded time": 5,
    }
    output = cli.out("parity", "last", "--db", run, "--books", tmp_path / "a.depth")
    assert f"beside recorded books: {len(covered)}. Fills of the run: {len(sent)}." in output
    assert "Left out: 4 orders inside gaps of the recording." in output


def test_two_files_of_a_symbol_are_read_as_one(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    mine = of_btc(sent)
    path, two = (
        samples(tmp_path, part, lambda each: book_for(each, 0.0), name)
        for part, name in ((mine[:20], "one.depth"), (mine[20:], "two.depth"))
    )
    document = costs(cli, run, path, two)
    assert document["orders"] == len(mine)
    assert len(document["left_out"]) == 1


def test_limits_and_stops_are_counted_apart(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.db"
    walk = made_candles(walk_rows(400), interval_ms=QUARTER)
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": [walk.symbol], "interval": "15", "category": "linear"},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
        "sizing": {"mode": "fixed", "quantity": "2"},
        "exits": {"stop_loss": "0.05%"},
    }
    record(path, load(None, given), [walk])
    with Reader.open(path) as reader:
        views = RunViews(reader.connection, reader.find("last"))
        stops = views.count("v_orders", kind="STOP", status="FILLED")
        market = views.rows("v_orders", kind="MARKET", status="FILLED")
    assert stops
    sent = [
        SentOrder(
            row["instrument"], Side(row["side"]), int(Decimal(row["quantity_text"]) * 1_000),
            Decimal(row["price_text"]), row["eligible_ms"],
        )
        for row in market
    ]  # fmt: skip
    document = costs(cli, path, samples(tmp_path, sent, lambda order: book_for(order, 0.0)))
    assert document["orders"] == len(sent)
    assert document["left_out"] == {"orders that waited for a price (limits and stops)": stops}


# ---------------------------------------------------------------- recorded events


EVENTS = RecordingHeader(
    instrument=depth_cases.BTC,
    topics=("orderbook.50.BTCUSDT", "publicTrade.BTCUSDT"),
    source="frames",
    ahead_ms=600_000,
)


def events(path: Path, frames: Sequence[tuple[int, bytes | str]], of: RecordingHeader) -> Path:
    """Write frames, or the causes of gaps, each received at its time."""
    with EventsWriter(path, of) as writer:
        for at_ms, frame in frames:
            if isinstance(frame, str):
                writer.add(at_ms, cause=frame)
            else:
                writer.add(at_ms, frame)
    return path


def test_an_event_book_stands_from_its_frame_until_the_next(tmp_path: Path) -> None:
    first = depth_cases.FIRST_MS
    frames: list[tuple[int, bytes | str]] = [
        (first + 105, snapshot(100, 1)),
        (first + 205, delta(200, 2, [["100.0", "5"]])),
        (first + 320, "disconnected"),
        (first + 405, snapshot(400, 9)),
        (first + 505, delta(500, 10, [["100.0", "0"], ["99.9", "0"]])),
        (first + 605, delta(600, 11, [["98.0", "1"]])),
        (first + SILENT_MS + 705, delta(SILENT_MS + 700, 12)),
    ]
    path = events(tmp_path / "a.events", frames, EVENTS)
    times = [0, 99, 100, 199, 200, 201, 300, 399, 400, 550, 600, 600 + SILENT_MS,
             601 + SILENT_MS, 700 + SILENT_MS, 701 + SILENT_MS]  # fmt: skip
    books = [
        depth if isinstance(depth, str) else np.frombuffer(depth.bids, "<i8")[:2].tolist()
        for depth in EventsFile(path).standing([first + at for at in times])
    ]
    whole, more, low = [1_000, 1_000], [1_000, 5_000], [980, 1_000]
    assert books == [
        "outside", "outside", whole, whole, more, "disconnected", "disconnected", "disconnected",
        whole, "empty", low, low, "silent", low, "outside",
    ]  # fmt: skip


def test_events_and_samples_of_the_same_books_agree(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    mine = of_btc(sent)
    rng = np.random.default_rng(2)
    books = {order.at_ms: book_for(order, float(rng.normal(2.0, 1.0))) for order in mine}
    of = structs.replace(
        EVENTS, instrument=structs.replace(depth_cases.BTC, price_decimals=DECIMALS)
    )
    frames: list[tuple[int, bytes | str]] = []
    for at_ms, book in sorted(books.items()):
        sides = [
            [
                [str(Decimal(price).scaleb(-DECIMALS)), str(Decimal(size).scaleb(-3))]
                for price, size in np.frombuffer(side, "<i8").reshape(-1, 2).tolist()
            ]
            for side in (book.bids, book.asks)
        ]
        frames += [
            (at_ms - 500, "disconnected"),
            (at_ms, snapshot(at_ms - depth_cases.FIRST_MS, 1, sides)),
        ]
    path = events(tmp_path / "a.events", frames, of)
    document = costs(cli, run, path)
    two = costs(cli, run, samples(tmp_path, mine, lambda each: books[each.at_ms]))
    assert document["orders"] == len(mine)
    assert document["figures"] == two["figures"]


# ---------------------------------------------------------------- bad input


def test_a_wrong_symbol_no_overlap_and_a_foreign_file_are_one_sentence(
    run: Path, sent: list[SentOrder], tmp_path: Path, cli: Cli
) -> None:
    mine = of_btc(sent)
    place = ["last", "--db", str(run), "--books"]

    def foreign(order: SentOrder) -> Depth:
        return structs.replace(book_for(order, 0.0), instrument="linear:SOLUSDT")

    sol = samples(
        tmp_path,
        [order._replace(instrument="linear:SOLUSDT") for order in mine],
        foreign,
        "sol.depth",
    )
    sentence = refused(cli, *place, str(sol))
    assert "--books holds linear:SOLUSDT" in sentence
    assert "trades linear:BTCUSDT, linear:ETHUSDT: give recordings of those." in sentence
    later = [order._replace(at_ms=order.at_ms + 10**10) for order in mine]
    path = samples(tmp_path, later, lambda order: book_for(order, 0.0), "later.depth")
    assert "can be compared" in (sentence := refused(cli, *place, str(path)))
    assert f"{len(mine)} orders outside the recorded time" in sentence
    (tmp_path / "notes.txt").write_text("notes")
    assert "notes.txt" in refused(cli, *place, str(tmp_path / "notes.txt"))
    assert "none.depth" in refused(cli, *place, str(tmp_path / "none.depth"))
    empty = tmp_path / "empty.depth"
    with DepthWriter(empty, header()):
        pass
    assert "no books yet" in refused(cli, *place, str(empty))
    torn = tmp_path / "torn.depth"
    torn.write_bytes(samples(tmp_path, mine, lambda order: book_for(order, 0.0)).read_bytes()[:-7])
    assert len(costs(cli, run, torn)["notes"]) == 1
    assert "--books needs a single RUN" in refused(cli, "last", "last", *place[1:], str(torn))
    assert "--books needs a single RUN" in refused(cli, *place, str(torn), "--day", "2025-01-01")


def test_a_run_without_a_fill_is_told_so(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.db"
    replayed(path, [made_candles(walk_rows(5), interval_ms=QUARTER)])
    depth_cases.write(tmp_path / "a.depth", depth_cases.walk(3))
    document = costs(cli, path, tmp_path / "a.depth")
    assert "nothing to compare" in document["sentences"][0]


def test_levels_are_walked_from_the_touch_outwards() -> None:
    nothing, unit, two, three = (Fraction(number) for number in range(4))
    book = BookLevels([(two, unit), (unit, two)], [(three, unit), (Fraction(5), two)])
    assert book.mid == Fraction(5, 2)
    assert book.walk(Side.BUY, unit) == (three, nothing)
    assert book.walk(Side.BUY, two) == (Fraction(8), nothing)
    assert book.walk(Side.SELL, three) == (Fraction(4), nothing)
    assert book.walk(Side.SELL, Fraction(5)) == (Fraction(4), Fraction(2))
