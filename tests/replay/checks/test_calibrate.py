"""Real fills beside paper's: a planted slippage and latency are found, and nothing else is."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import Cli
from depth_cases import header, in_memory
from exchange_client import candles as made_candles

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import DepthWriter, RecordedDepth
from tracepaper.replay.archive.executions import Execution, Executions
from tracepaper.replay.checks.paper_fills import BookFills, OpenFills, orders_of
from tracepaper.replay.checks.slippage import BASIS_POINT, FAR, SlippageFindings, calibrate
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.order_book import Books
from tracepaper.strategies.types.market import Category, Depth, Side
from tracepaper.strategies.units import DAY_MS, MINUTE_MS

START_MS = 20_000 * DAY_MS
PRICE = 1_000_000
"""Of 10⁻², so that a tick is a hundredth of a basis point."""
DATA = DEMO_CANDLES


def walked(days: int, seed: int = 0, symbol: str = "BTCUSDT") -> Candles:
    rng = np.random.default_rng(seed)
    size = days * DAY_MS // MINUTE_MS
    opens = PRICE + np.cumsum(rng.integers(-200, 201, size))
    rows = np.stack([opens, opens + 500, opens - 500, opens, np.ones_like(opens)], axis=1)
    return made_candles(
        rows.tolist(),
        symbol=symbol,
        category=Category.SPOT,
        first_ms=START_MS,
        price_decimals=2,
        volume_decimals=0,
    )


def file_of(trades: Sequence[Execution]) -> Executions:
    return Executions("fills.csv", len(trades), list(trades))


def generated(
    candles: Candles, slippage_bp: float, seed: int, *, days: int, a_day: int, by_day: float = 2.0
) -> Executions:
    """Make orders at opens that pay *slippage_bp*, a noise of 5 bp, and what their day adds."""
    rng = np.random.default_rng(seed)
    trades = []
    for day in range(days):
        of_day = rng.normal(0.0, by_day)
        minutes = np.sort(rng.choice(1_440, a_day, replace=False)) + day * 1_440
        for row in minutes.tolist():
            side = Side.BUY if rng.random() < 0.5 else Side.SELL
            worse = (slippage_bp + of_day + rng.normal(0.0, 5.0)) / 1e4
            open_ = int(candles.open[row]) / 100
            price = open_ * (1 + worse if side is Side.BUY else 1 - worse)
            trades.append(
                Execution(
                    candles.symbol,
                    side,
                    Decimal(repr(price)),
                    Decimal(repr(round(float(rng.lognormal()), 3) + 0.001)),
                    int(candles.open_time_ms[row]) + int(rng.integers(0, 5_000)),
                    None,
                    "",
                )
            )
    return file_of(trades)


def costs_of(slippage_bp: float = 0.0, spread_bp: float = 0.0) -> ExecutionCosts:
    return ExecutionCosts(
        0, round(slippage_bp * BASIS_POINT), half_spread=round(spread_bp * BASIS_POINT / 2)
    )


@pytest.fixture(scope="module")
def candles() -> Candles:
    return walked(90)


@pytest.fixture(scope="module")
def paper(candles: Candles) -> OpenFills:
    return OpenFills([candles])


def setting(findings: SlippageFindings, key: str) -> Any:
    return next(setting for setting in findings.settings if setting.key == key)


def everything(findings: SlippageFindings) -> dict[str, Any]:
    return findings.tables[0].documents()[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slippage_is_found_within_its_error(
    seed: int, candles: Candles, paper: OpenFills
) -> None:
    fills = generated(candles, 3.7, seed, days=90, a_day=12)
    findings = calibrate(fills, paper, costs_of(1.0), 100)
    fitted = setting(findings, "slippage_bp")
    assert fitted.proposed is not None
    assert fitted.error < 1.0
    assert abs(fitted.proposed - 3.7) < 3 * fitted.error
    assert findings.held_out is not None
    before, after = findings.held_out.before, findings.held_out.after
    assert after is not None
    assert (before.days, after.days) == (30, 30)
    assert abs(before.mean - 2.7) < 3 * (before.error or 0.0)
    assert abs(after.mean) < 3 * (after.error or 0.0)
    assert everything(findings)["bias_bp"]["value"] == pytest.approx(2.7, abs=2.0)
    assert 4.5 < everything(findings)["std_bp"] < 6.5


def test_intervals_of_95_percent_hold_the_truth_and_no_bias_proposes_nothing(
    candles: Candles, paper: OpenFills
) -> None:
    """Each day moves its fills together, so an error of single fills would hold it far less."""
    held, proposed = 0, 0
    for seed in range(40):
        fills = generated(candles, 2.0, 100 + seed, days=15, a_day=12, by_day=3.0)
        findings = calibrate(fills, paper, costs_of(2.0), 100)
        fitted = setting(findings, "slippage_bp")
        held += fitted.low <= 2.0 <= fitted.high
        proposed += fitted.proposed is not None
    assert 34 <= held <= 40  # 85 %
    assert proposed <= 40 - held


def test_without_a_bias_no_change_is_shown(candles: Candles, paper: OpenFills) -> None:
    fills = generated(candles, 2.0, 7, days=30, a_day=12)
    findings = calibrate(fills, paper, costs_of(2.0), 100)
    assert [setting.proposed for setting in findings.settings] == [None, None, None]
    assert any("No change of costs" in sentence for sentence in findings.sentences)
    assert findings.held_out is not None
    assert findings.held_out.after is None


def test_a_bias_of_the_earlier_days_alone_is_not_proposed(
    candles: Candles, paper: OpenFills
) -> None:
    trades = generated(candles, 3.7, 1, days=20, a_day=12).taken
    later = walked(30)
    trades += [
        deal
        for deal in generated(later, -3.7, 2, days=30, a_day=12).taken
        if deal.time_ms >= START_MS + 20 * DAY_MS
    ]
    better = generated(candles, -4.0, 3, days=30, a_day=12)  # than any setting
    for given in (file_of(trades), better):
        findings = calibrate(given, paper, costs_of(), 100)
        assert setting(findings, "slippage_bp").proposed is None
        assert any("No change of costs" in sentence for sentence in findings.sentences)


def test_a_spread_stays_unless_less_than_half_of_it_fits(
    candles: Candles, paper: OpenFills
) -> None:
    fills = generated(candles, 3.7, 4, days=30, a_day=12)
    findings = calibrate(fills, paper, costs_of(0.0, 2.0), 100)
    assert setting(findings, "spread_bp").proposed is None
    assert setting(findings, "slippage_bp").proposed == pytest.approx(2.7, abs=1.5)
    findings = calibrate(fills, paper, costs_of(1.0, 20.0), 100)
    assert setting(findings, "slippage_bp").proposed == 0.0
    assert setting(findings, "spread_bp").proposed == pytest.approx(7.4, abs=3.0)
    assert any("not identified: spread_bp" in sentence for sentence in findings.sentences)


def test_parts_of_an_order_are_one_order_at_their_mean_price() -> None:
    def part(price: str, quantity: str, at_ms: int, order: str) -> Execution:
        return Execution("BTCUSDT", Side.BUY, Decimal(price), Decimal(quantity), at_ms, None, order)

    orders = orders_of(
        [
            part("10", "1", 5, "a"),
            part("13", "2", 3, "a"),
            part("9", "1", 1, ""),
            part("9", "1", 1, ""),
        ]
    )
    assert [(order.price, order.quantity, order.time_ms) for order in orders] == [
        (Decimal(9), Decimal(1), 1),
        (Decimal(9), Decimal(1), 1),
        (Decimal(12), Decimal(3), 3),
    ]


# ---------------------------------------------------------------- recorded books


def recorded(sent: Sequence[int], seed: int, every_ms: int = 100) -> RecordedDepth:
    """Books for seven seconds after each of *sent*, whose middle moves by some two bp a book."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([at + np.arange(0, 7_000, every_ms) for at in sent]).astype(np.int64)
    middle = PRICE + np.cumsum(rng.integers(-200, 201, times.size))
    price = np.stack([middle - 10, middle + 10], axis=1)[:, :, None]
    books = Books(times, times, price, np.full_like(price, 1_000_000))
    return in_memory(header(1, every_ms, "frames", price_decimals=2), books)


def book_fills(depth: RecordedDepth, sent: Sequence[int], latency_ms: int, seed: int) -> Executions:
    rng = np.random.default_rng(seed)
    trades = []
    books = depth.read_all()
    for place, at in enumerate(sent):
        created = at + int(rng.integers(0, 400))
        row = int(np.searchsorted(depth.times, created + latency_ms))
        side = Side.BUY if place % 2 else Side.SELL
        touched = int(books.price[row, int(side is Side.BUY), 0]) / 100
        worse = (1.5 + rng.normal(0.0, 0.5)) / 1e4 * (1 if side is Side.BUY else -1)
        trades.append(
            Execution(
                "BTCUSDT",
                side,
                Decimal(repr(touched * (1 + worse))),
                Decimal("0.5"),
                created + latency_ms,
                created,
                str(place),
            )
        )
    return file_of(trades)


SENT = [START_MS + day * DAY_MS + hour * 3_600_000 for day in range(24) for hour in range(2, 20, 2)]


def test_latency_and_slippage_are_found_where_books_were_recorded() -> None:
    depth = recorded(SENT, 1)
    findings = calibrate(book_fills(depth, SENT, 700, 2), BookFills([depth]), costs_of(), 100)
    latency, slippage = setting(findings, "latency_ms"), setting(findings, "slippage_bp")
    assert latency.proposed == pytest.approx(700, abs=100)
    assert latency.low <= 700 <= latency.high
    assert slippage.proposed == pytest.approx(1.5, abs=0.3)
    assert [setting.key for setting in findings.settings] == ["slippage_bp", "latency_ms"]
    assert findings.held_out is not None
    assert findings.held_out.after is not None
    assert findings.held_out.after.deviation < findings.held_out.before.deviation / 2


def test_recorded_books_are_read_by_the_command(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    depth = recorded(SENT, 1)
    books = depth.read_all()
    with DepthWriter(tmp_path / "books.depth", depth.header) as writer:
        for row, at in enumerate(depth.times.tolist()):
            bids, asks = (
                np.array([[books.price[row, side, 0], 1_000_000]], dtype="<i8").tobytes()
                for side in (0, 1)
            )
            cause = "" if row % 70 else "the stream was cut"
            writer.add(Depth("linear:BTCUSDT", bids, asks, at, at), cause)
    path = tmp_path / "fills.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["symbol", "side", "execPrice", "execQty", "execTime", "createdTime"])
        for deal in book_fills(depth, SENT, 700, 2).taken:
            rows.writerow(
                [
                    deal.symbol,
                    deal.side,
                    deal.price,
                    deal.quantity,
                    deal.time_ms,
                    deal.created_ms,
                ]
            )
    command = ["calibrate", str(path), "--depth", str(tmp_path / "books.depth")]
    document = cli.json(*command)
    assert (document["model"], document["orders"]) == ("quote", len(SENT))
    assert [setting["key"] for setting in document["settings"]] == ["slippage_bp", "latency_ms"]
    assert document["settings"][1]["proposed"] == pytest.approx(700, abs=100)
    output = cli.out(*command)
    assert max(map(len, output.splitlines())) <= 80
    (every,) = document["figures"]["all"]
    assert f"{every['bias_bp']['value']:+,.2f}" in output
    assert every["bias_bp"]["error"] is None, "24 days are fewer than six blocks"
    for deal in document["settings"]:
        assert f"{deal['proposed']:g}" in output
    assert "Held out, from " in output
    assert [(row["orders"], row["days"]) for row in document["held_out"]] == [(72, 8)] * 2


def test_a_latency_of_the_earlier_days_alone_is_not_proposed() -> None:
    depth = recorded(SENT, 7)
    turn = START_MS + 16 * DAY_MS
    early = [deal for deal in book_fills(depth, SENT, 700, 8).taken if deal.time_ms < turn]
    late = [deal for deal in book_fills(depth, SENT, 100, 9).taken if deal.time_ms >= turn]
    findings = calibrate(file_of([*early, *late]), BookFills([depth]), costs_of(1.5), 100)
    assert setting(findings, "latency_ms").proposed is None
    assert setting(findings, "latency_ms").low > 100
    assert any(text.startswith("No change of latency_ms is shown") for text in findings.sentences)


def test_a_latency_that_fits_already_stays() -> None:
    depth = recorded(SENT, 3)
    findings = calibrate(book_fills(depth, SENT, 300, 4), BookFills([depth]), costs_of(1.5), 300)
    assert [setting.proposed for setting in findings.settings] == [None, None]
    assert setting(findings, "latency_ms").low <= 300 <= setting(findings, "latency_ms").high


def test_a_latency_that_nothing_tells_is_said_not_to_be_identified(
    candles: Candles, paper: OpenFills
) -> None:
    depth = recorded(SENT, 5)
    moving = depth.read_all()
    still = replace(moving, price=np.broadcast_to(moving.price[:1], moving.price.shape))
    flat = in_memory(depth.header, still)
    fills = book_fills(depth, SENT, 300, 6)
    unknown = file_of([replace(deal, created_ms=None) for deal in fills.taken])
    minutes = file_of(fills.taken)
    minutes.in_minutes = True
    slow = replace(depth, header=msgspec.structs.replace(depth.header, every_ms=60_000))
    for given, by in (
        (book_fills(flat, SENT, 300, 6), BookFills([flat])),
        (unknown, BookFills([depth])),
        (minutes, BookFills([depth])),
        (fills, BookFills([slow])),
        (generated(candles, 1.0, 0, days=18, a_day=9), paper),
    ):
        findings = calibrate(given, by, costs_of(), 100)
        assert sum("latency_ms. It needs books" in each for each in findings.sentences) == 1
        assert setting(findings, "latency_ms").proposed is None


# ---------------------------------------------------------------- a run's own fills


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the fills of a run of the bundled candles, as `audit sql` has them."""
    folder = tmp_path_factory.mktemp("run")
    run = ["--data", str(DATA), "--db", str(folder / "run.db")]
    assert invoke(["replay", *run, *SETTINGS, "--set", "strategy.name=sma_cross", "--json"]) == 0
    with Reader.open(folder / "run.db") as reader:
        cursor = reader.connection.execute("SELECT * FROM v_fills")
        with (folder / "fills.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[column[0] for column in cursor.description], *cursor])
    return folder / "fills.csv"


SETTINGS = [
    "--set", "execution.slippage_bp=1.5", "--set", "execution.spread_bp=1",
    "--set", "execution.spread_slippage=0.07",
]  # fmt: skip


def test_paper_fills_of_a_run_have_no_bias_under_its_own_settings(exported: Path, cli: Cli) -> None:
    command = ["calibrate", str(exported), "--candles", str(DATA)]
    document = cli.json(*command, *SETTINGS)
    assert (document["rows"], document["orders"], document["left_out"]) == (177, 177, {})
    for rows in document["figures"].values():
        assert sum(row["orders"] for row in rows) == 177
        for row in rows:
            assert row["bias_bp"] == {"value": 0.0, "error": None}
            assert row["std_bp"] == 0.0
    assert document["settings"] == []  # of nine days nothing is proposed
    less = cli.json(*command, *SETTINGS[:2], *SETTINGS[4:])
    assert less["figures"]["all"][0]["bias_bp"]["value"] == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------- what cannot be used


def written(path: Path, trades: Sequence[Execution]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["symbol", "side", "execPrice", "execQty", "execTime", "isMaker"])
        for deal in trades:
            rows.writerow(
                [deal.symbol, deal.side, deal.price, deal.quantity, deal.time_ms, "false"]
            )
    return path


def test_orders_that_nothing_covers_are_counted_and_named(
    candles: Candles, paper: OpenFills
) -> None:
    fills = generated(candles, 1.0, 0, days=12, a_day=9)
    first = fills.taken[0]
    late = START_MS + 100 * DAY_MS
    strange = [
        Execution("XRPUSDT", Side.BUY, Decimal(1), Decimal(1), first.time_ms, None, ""),
        Execution("BTCUSDT", Side.BUY, first.price, Decimal(1), late, None, ""),
        Execution("BTCUSDT", Side.BUY, first.price, Decimal(1), START_MS - 1, None, ""),
        Execution("BTCUSDT", Side.BUY, first.price * 2, Decimal(1), first.time_ms, None, ""),
    ]
    fills.fills += strange
    findings = calibrate(fills, paper, costs_of(), 100)
    assert findings.orders == 108
    assert findings.left_out == {
        "orders of XRPUSDT, for which nothing was given": 1,
        "orders outside what was given": 2,
        FAR: 1,
    }
    findings = calibrate(file_of(strange), paper, costs_of(), 100)
    assert findings.sentences == ["No order could be compared, so nothing is proposed."]
    assert findings.tables == []


def test_candles_of_two_categories_are_refused(candles: Candles) -> None:
    with pytest.raises(ConfigInvalid, match="two categories"):
        OpenFills([candles, replace(candles, category=Category.LINEAR)])


def test_no_gap_of_a_recording_is_bridged() -> None:
    depth = recorded(SENT, 1)
    inside, outside = (
        Execution("BTCUSDT", Side.BUY, Decimal(10_000), Decimal(1), at, at, "")
        for at in (SENT[0] + 6_800, SENT[0] + 6_801)
    )
    books = BookFills([depth])
    assert books.fill(orders_of([inside])[0], costs_of(), 100) is not None
    assert books.fill(orders_of([outside])[0], costs_of(), 100) is None
    assert (
        books.fill(orders_of([replace(outside, created_ms=None)])[0], costs_of(), 100) is not None
    )


def test_candles_or_books_are_wanted_and_agree_with_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fills = str(written(tmp_path / "fills.csv", []))
    for extra, sentence in (
        ([], "Give --candles"),
        (["--candles", str(DATA), "--depth", fills], "Give --candles"),
        (["--candles", str(DATA), "--set", "execution.model=quote"], "give --depth"),
        (["--depth", fills, "--set", "execution.model=next_open"], "give --candles"),
        (["--candles", str(DATA)], "no rows"),
    ):
        assert invoke(["calibrate", fills, *extra]) != 0
        answer = capsys.readouterr().err
        assert sentence in answer
        assert "Traceback" not in answer
