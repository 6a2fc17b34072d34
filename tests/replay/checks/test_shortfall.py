"""A trader's own fills beside a run's decisions: a ledger of its own adds up to the same parts."""

from __future__ import annotations

import csv
import random
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli
from fed_daemon import Process
from hedged_cases import configured
from hedged_cases import walk as hedged_events
from report_cases import cross

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.session.build import resolved
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.executions import Execution, Executions, read_executions
from tracepaper.replay.checks.shortfall import ShortfallFindings, join_fills, stored_rows
from tracepaper.replay.document.values import as_parts
from tracepaper.replay.page import documents
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.checks import store_shortfalls
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.record.columns import SHORTFALL_PARTS
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Side

MONEY = 10**8
MINUTE = 60_000


def one_way(folder: Path, category: str = "linear", **changed: Any) -> Path:
    config = folder / "run.toml"
    keys = {"long_only": category == "spot", "quantity": "0.5", "slippage_bp": "2", **changed}
    config.write_text(cross(category=category, **keys))
    command = ["replay", "--config", str(config), "--data", f"BTCUSDT={DEMO_CANDLES}"]
    within = ["--from", "2025-05-26T10:00", "--to", "2025-05-26T22:00"]
    if "interval" in changed:
        within = ["--from", "2025-05-28T10:00"]
    assert invoke([*command, *within, "--db", str(folder / "run.db"), "--json"]) == 0
    return folder / "run.db"


def in_hedge_mode(folder: Path) -> Path:
    """Make a run of lists on both sides, whose limits rest and fill after later decisions."""
    config = resolved(configured({"seed": 1}), FillModel.NEXT_OPEN)
    process = Process(folder / "run.db", config, FillModel.NEXT_OPEN)
    process.live(hedged_events(1, 120))
    process.stop()
    return folder / "run.db"


RUNS: dict[str, Callable[[Path], Path]] = {
    "one way": one_way,
    "spot": lambda folder: one_way(folder, "spot"),
    "hedge": in_hedge_mode,
}


@pytest.fixture(scope="module", params=RUNS)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RUNS[request.param](tmp_path_factory.mktemp("run"))


def rows_of(database: Path, query: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def found_of(database: Path, fills: Sequence[Execution]) -> ShortfallFindings:
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        return join_fills(reader, run_id, Executions("fills.csv", len(fills), list(fills)))


def joined(database: Path, fills: Sequence[Execution]) -> ShortfallFindings:
    """Join *fills* and store what is found."""
    findings = found_of(database, fills)
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        rows = stored_rows(reader, run_id, findings)
        run_key = reader.stored_run(run_id).run_key
    assert store_shortfalls(database, run_key, rows) == ""
    return findings


def paper_fills(database: Path) -> list[Execution]:
    """Return the run's own fills as a file of them would be read."""
    return [
        Execution(
            row["instrument"].partition(":")[2],
            Side(row["side"]),
            Decimal(row["price_text"]),
            Decimal(row["quantity_text"]),
            row["filled_ms"],
            None,
            row["order_id"],
            row["position_side"] or "",
            Decimal(row["fee_text"]),
            "",
            Decimal(row["fee_base_text"]),
        )
        for row in rows_of(database, "SELECT * FROM v_fills ORDER BY sequence, ordinal")
    ]


@dataclass
class Ledger:
    """Cash and what is held of each book, in fractions; decisions are told by their orders."""

    database: Path

    def __post_init__(self) -> None:
        bars = rows_of(self.database, "SELECT * FROM v_bars WHERE accepted ORDER BY sequence")
        self.closes = [(row["market_ms"], Fraction(row["close_text"])) for row in bars]
        self.times = [at_ms for at_ms, _ in self.closes]
        self.first = Fraction(bars[0]["open_text"])
        self.decided = {
            row["order_id"]: (row["created_ms"], int(row["order_id"].partition("-")[0]))
            for row in rows_of(self.database, "SELECT * FROM v_orders")
        }

    def close(self, at_ms: int) -> Fraction:
        place = bisect_right(self.times, at_ms)
        return self.closes[place - 1][1] if place else self.first

    def results(self, *accounts: Sequence[Execution]) -> list[dict[tuple[Any, ...], Fraction]]:
        """Return of each account what every decision that any of them filled came to."""
        moved: list[dict[tuple[Any, ...], list[Fraction]]] = []
        for fills in accounts:
            moved.append(defaultdict(lambda: [Fraction(0), Fraction(0)]))
            for fill in fills:
                sign = 1 if fill.side is Side.BUY else -1
                key = (fill.position_side, *self.decided[fill.order], fill.side.value)
                quantity, base = Fraction(fill.quantity), Fraction(fill.fee_base or 0)
                moved[-1][key][0] += sign * quantity - base
                cash = sign * quantity * Fraction(fill.price) + Fraction(fill.fee or 0)
                moved[-1][key][1] -= cash
        ends: dict[tuple[Any, ...], int] = {}
        later: dict[str, int] = {}
        for key in sorted(set().union(*moved), reverse=True):
            ends[key] = later.get(key[0], self.times[-1])
            later[key[0]] = key[1]
        results: list[dict[tuple[Any, ...], Fraction]] = []
        for of in moved:
            held: dict[str, Fraction] = defaultdict(Fraction)
            results.append({})
            for key in sorted(ends):
                before = held[key[0]]
                quantity, cash = of.get(key, [Fraction(0), Fraction(0)])
                held[key[0]] += quantity
                value = held[key[0]] * self.close(ends[key]) - before * self.close(key[1])
                results[-1][key] = value + cash
        return results

    def profit(self, fills: Sequence[Execution]) -> Fraction:
        """Return the cash that *fills* moved, with what is held at the last close."""
        profit = Fraction(0)
        for fill in fills:
            sign = 1 if fill.side is Side.BUY else -1
            quantity, base = Fraction(fill.quantity), Fraction(fill.fee_base or 0)
            profit += (sign * quantity - base) * self.closes[-1][1]
            profit -= sign * quantity * Fraction(fill.price) + Fraction(fill.fee or 0)
        return profit


def drawn(paper: Sequence[Execution], rng: random.Random) -> list[Execution]:
    """Return an account's fills: of paper's some are missed, parted, late, larger, or dearer."""
    account = []
    for fill in paper:
        if rng.random() < 0.2:
            continue
        parts = rng.choice((1, 1, 2, 3))
        for _ in range(parts):
            steps = max(int(fill.quantity * 1_000) // parts + rng.choice((0, 0, -20, 30)), 1)
            account.append(
                replace(
                    fill,
                    price=fill.price + Decimal(rng.randint(-300, 300)) / 10,
                    quantity=Decimal(steps) / 1_000,
                    time_ms=fill.time_ms + rng.choice((0, 5_000, 59_000, 200_000, 900_000)),
                    fee=Decimal(rng.randint(-500, 9_000)) / 1_000,
                    fee_base=(fill.fee_base or Decimal(0)) * rng.choice((0, 1)),
                )
            )
    return account


def stored(database: Path) -> list[dict[str, Any]]:
    return rows_of(database, "SELECT * FROM v_shortfall ORDER BY decided_ms, sequence, side")


def money(row: dict[str, Any], name: str) -> Fraction:
    return Fraction(row[f"{name}_text"])


@pytest.mark.parametrize("seed", range(2))
def test_parts_are_the_difference_that_a_ledger_of_its_own_finds(seed: int, database: Path) -> None:
    paper, ledger = paper_fills(database), Ledger(database)
    account = drawn(paper, random.Random(seed))
    end = ledger.times[-1]
    account = [fill for fill in account if fill.time_ms < end]
    joined(database, account)
    rows = stored(database)
    of_paper, of_account = ledger.results(paper, account)
    assert len(rows) == len(of_paper) > 20
    for row in rows:
        key = (row["position_side"] or "", row["decided_ms"], row["sequence"], row["side"])
        for name, results in (("paper", of_paper), ("account", of_account)):
            assert abs(money(row, f"{name}_result") - results[key]) * MONEY <= 3
        parts = sum(money(row, part) for part in SHORTFALL_PARTS)
        assert parts == money(row, "shortfall")
        assert parts == money(row, "account_result") - money(row, "paper_result")
    for name, fills in (("paper", paper), ("account", account)):
        summed = sum(money(row, f"{name}_result") for row in rows)
        assert abs(summed - ledger.profit(fills)) * MONEY <= len(rows) + len(fills)


def test_without_ids_of_the_run_every_fill_counts_once(database: Path) -> None:
    """Whatever decision a fill is thought to follow, the results add up to the account's."""
    rng, ledger = random.Random(0), Ledger(database)
    account = drawn(paper_fills(database), rng)
    strange = [replace(rng.choice(account), side=rng.choice(list(Side))) for _ in range(9)]
    end = ledger.times[-1]
    fills = [
        replace(fill, order=rng.choice(("", f"theirs {fill.order}", rng.choice(account).order)))
        for fill in (*account, *strange)
        if fill.time_ms < end
    ]
    findings = joined(database, fills)
    assert findings.joined == len(fills)
    rows = stored(database)
    summed = sum(money(row, "account_result") for row in rows)
    assert abs(summed - ledger.profit(fills)) * MONEY <= len(rows) + len(fills)
    assert sum(money(row, "account_quantity") for row in rows) == sum(
        Fraction(fill.quantity) for fill in fills
    )


def test_the_runs_own_fills_have_no_shortfall(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "fills.csv"
    fills = rows_of(database, "SELECT * FROM v_fills ORDER BY sequence DESC, ordinal DESC")
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, fills[0])
        rows.writeheader()
        rows.writerows(fills)
    joined(database, read_executions(path).fills)
    for row in stored(database):
        assert {money(row, name) for name in (*SHORTFALL_PARTS, "shortfall")} == {0}
        assert row["cause"] is None
        assert row["paper_ms"] == row["account_ms"]


# ---------------------------------------------------------------- causes


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_way(tmp_path_factory.mktemp("crossing"))


@pytest.fixture(scope="module")
def entering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run on minutes that buys, sells, buys, sells and so on."""
    return one_way(tmp_path_factory.mktemp("entering"), long_only=True)


@pytest.fixture(scope="module")
def hourly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_way(tmp_path_factory.mktemp("hourly"), long_only=True, interval="60")


def resized(fill: Execution, factor: str, **changed: Any) -> Execution:
    assert fill.fee is not None
    quantity, fee = fill.quantity * Decimal(factor), fill.fee * Decimal(factor)
    return replace(fill, quantity=quantity, fee=fee, **changed)


def reversed_side(fill: Execution) -> Execution:
    return replace(fill, side=Side.SELL if fill.side is Side.BUY else Side.BUY)


def by_hand(fill: Execution, minutes: int, price: int) -> Execution:
    """Return an order that nothing ordered, of the quantity of *fill*, *minutes* after it."""
    at_ms = fill.time_ms + minutes * MINUTE
    return replace(fill, time_ms=at_ms, price=Decimal(price), order=f"by hand {at_ms}")


def split(fill: Execution, *seconds: int) -> list[Execution]:
    """Return *fill* in five orders, each *seconds* later."""
    return [
        resized(fill, "0.2", time_ms=fill.time_ms + 1_000 * late, order=f"split {late}")
        for late in seconds
    ]


def strangers(paper: Sequence[Execution]) -> list[Execution]:
    """Return the fills of another account: many orders at other times, prices and quantities."""
    rng = random.Random(4)
    return [
        by_hand(
            resized(rng.choice(paper[:-2]), "1.6", side=rng.choice(list(Side))),
            rng.randrange(2, 9),
            rng.randrange(108_000, 111_000),
        )
        for _ in range(12)
    ]


FAULTS: dict[str, tuple[str, Callable[[list[Execution]], list[Execution]]]] = {
    "a missed entry": ("missed", lambda paper: [*paper[:4], *paper[6:]]),
    "a missed exit": ("missed", lambda paper: [*paper[:5], *paper[7:]]),
    "a missed exit, made up for by hand after the next entry": (
        "missed",
        lambda paper: [
            *paper[:5],
            *paper[6:],
            by_hand(replace(paper[5], time_ms=paper[6].time_ms), 2, 109_000),
        ],
    ),
    "larger": ("size", lambda paper: [resized(fill, "2") for fill in paper]),
    "smaller": ("size", lambda paper: [resized(fill, "0.5") for fill in paper]),
    "filled in part": (
        "size",
        lambda paper: [*paper[:4], *(resized(fill, "0.6") for fill in paper[4:6]), *paper[6:]],
    ),
    "a manual trade": (
        "own_trades",
        lambda paper: [
            *paper,
            by_hand(reversed_side(paper[5]), 1, 109_500),
            by_hand(paper[5], 3, 109_100),
        ],
    ),
    "fills of another account": ("own_trades", lambda paper: [*paper, *strangers(paper)]),
    "dearer, seconds later in the candle": (
        "price",
        lambda paper: [
            replace(paper[0], price=paper[0].price + 7, time_ms=paper[0].time_ms + 5_000),
            *paper[1:],
        ],
    ),
    "a higher fee": ("fee", lambda paper: [replace(paper[0], fee=Decimal(99)), *paper[1:]]),
    "in several orders": (
        "",
        lambda paper: [
            *split(paper[0], 0, 1, 2, 5, 9),
            *split(paper[1], 0, 1, 2, 3, 4),
            *paper[2:],
        ],
    ),
    "in several fills of an order": (
        "",
        lambda paper: [
            *(replace(part, order="one") for part in split(paper[0], 0, 1, 2, 5, 9)),
            *paper[1:],
        ],
    ),
}
"""What differs from paper's fills, by the part that alone may tell it; none where nothing does."""


def exported(path: Path, fills: Sequence[Execution], *funding: tuple[int, str]) -> Executions:
    """Return what is read of an export of *fills* and *funding* (time, amount)."""
    columns = "symbol,side,execPrice,execQty,execTime,execFee,feeCurrency,execType,orderId,execId"
    lines = [
        f"{fill.symbol},{fill.side},{fill.price},{fill.quantity},{fill.time_ms},{fill.fee},"
        f"{fill.fee_coin},Trade,{fill.order},{place}"
        for place, fill in enumerate(fills)
    ]
    lines += [f"BTCUSDT,Buy,1,1,{at_ms},{paid},USDT,Funding,,f{at_ms}" for at_ms, paid in funding]
    path.write_text("\n".join([columns, *lines]))
    return read_executions(path)


def parts_of(
    database: Path, executions: Executions, candles: Sequence[Candles] = ()
) -> tuple[dict[str, Fraction], ShortfallFindings]:
    """Return the sums of the parts that are not 0, after each row's were added up exactly."""
    with Reader.open(database) as reader:
        findings = join_fills(reader, reader.find("last"), executions, candles)
    for row in findings.shortfalls:
        assert sum(row.parts.values()) == row.account[0] - row.paper[0]
    sums = {
        part: Fraction(sum(row.parts[part] for row in findings.shortfalls), MONEY)
        for part in SHORTFALL_PARTS
    }
    return {part: amount for part, amount in sums.items() if amount}, findings


def followed(database: Path) -> list[Execution]:
    """Return paper's fills as an account's that names none of the run's orders."""
    paper = paper_fills(database)
    return [replace(fill, order=f"order {place}") for place, fill in enumerate(paper)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_by_its_own_part(fault: str, entering: Path, tmp_path: Path) -> None:
    paper, ledger = followed(entering), Ledger(entering)
    part, make = FAULTS[fault]
    account = make(paper)
    truth = ledger.profit(account) - ledger.profit(paper)
    parts, findings = parts_of(entering, exported(tmp_path / "fills.csv", account))
    assert findings.joined == len(account)
    assert sum(parts.values()) == truth
    assert parts == ({part: truth} if part else {})


def test_a_reversed_trade_is_a_missed_one_and_one_of_its_own(
    entering: Path, tmp_path: Path
) -> None:
    paper, ledger = followed(entering), Ledger(entering)
    turned = [*paper[:4], *map(reversed_side, paper[4:6]), *paper[6:]]
    without = ledger.profit([*paper[:4], *paper[6:]])
    parts, _ = parts_of(entering, exported(tmp_path / "fills.csv", turned))
    assert parts["missed"] == without - ledger.profit(paper)
    assert parts["own_trades"] == ledger.profit(turned) - without
    assert set(parts) == {"missed", "own_trades"}


def test_a_limit_that_rests_is_followed_over_later_decisions(tmp_path: Path) -> None:
    database = in_hedge_mode(tmp_path)
    account = followed(database)
    parts, findings = parts_of(database, Executions("fills.csv", len(account), account))
    assert parts == {}
    assert all(row.decision.ordered for row in findings.shortfalls)


def test_faults_together_stay_in_their_parts(entering: Path, tmp_path: Path) -> None:
    paper, ledger = followed(entering), Ledger(entering)
    hand = [by_hand(reversed_side(paper[5]), 1, 109_500), by_hand(paper[5], 3, 109_100)]
    dearer = [replace(fill, price=fill.price + 9) for fill in paper[8:10]]
    account = [*paper[:2], *paper[4:8], *hand, *dearer, *paper[10:]]
    parts, _ = parts_of(entering, exported(tmp_path / "fills.csv", account))
    alone = {
        "missed": [*paper[:2], *paper[4:]],
        "own_trades": [*paper, *hand],
        "price": [*paper[:8], *dearer, *paper[10:]],
    }
    assert parts == {
        part: truth
        for part, fills in alone.items()
        if (truth := ledger.profit(fills) - ledger.profit(paper))
    }


def test_a_manual_trade_around_a_larger_entry_stays_its_own(entering: Path, tmp_path: Path) -> None:
    paper, ledger = followed(entering), Ledger(entering)
    bought = by_hand(reversed_side(paper[7]), 1, 109_500)
    sold = by_hand(replace(paper[7], time_ms=paper[8].time_ms), 2, 109_100)
    larger = [*paper[:8], *(resized(fill, "2") for fill in paper[8:10]), *paper[10:]]
    parts, _ = parts_of(entering, exported(tmp_path / "fills.csv", [*larger, bought, sold]))
    assert parts == {
        "size": ledger.profit(larger) - ledger.profit(paper),
        "own_trades": ledger.profit([*paper, bought, sold]) - ledger.profit(paper),
    }


def test_half_an_hour_inside_an_hourly_bar_is_delay_where_minutes_are_given(
    hourly: Path, tmp_path: Path
) -> None:
    paper, ledger = followed(hourly), Ledger(hourly)
    minutes = read_candles(DEMO_CANDLES)
    row = int(np.searchsorted(minutes.open_time_ms, paper[0].time_ms))
    moved = Decimal(int(minutes.open[row + 30] - minutes.open[row])).scaleb(-minutes.price_decimals)
    late = replace(paper[0], time_ms=paper[0].time_ms + 30 * MINUTE, price=paper[0].price + moved)
    executions = exported(tmp_path / "fills.csv", [late, *paper[1:]])
    truth = ledger.profit([late, *paper[1:]]) - ledger.profit(paper)
    assert truth != 0
    assert parts_of(hourly, executions, [minutes])[0] == {"delay": truth}
    parts, findings = parts_of(hourly, executions)
    assert parts == {"price": truth}
    assert "inside a bar of 60.0 min: 1 fill; give finer --candles" in findings.notes[-1]


def test_a_fee_in_another_coin_is_converted_or_named(entering: Path, tmp_path: Path) -> None:
    paper, minutes = followed(entering), read_candles(DEMO_CANDLES)
    account = [replace(paper[0], fee=Decimal("1.5"), fee_coin="MNT"), *paper[1:]]
    executions = exported(tmp_path / "fills.csv", account)
    coin = replace(minutes, symbol="MNTUSDT")
    row = int(np.searchsorted(minutes.open_time_ms, paper[0].time_ms))
    price = Fraction(int(minutes.open[row]), 10**minutes.price_decimals)
    assert paper[0].fee is not None
    spared = Fraction(paper[0].fee)
    assert parts_of(entering, executions, [coin])[0] == {"fee": spared - Fraction(3, 2) * price}
    parts, findings = parts_of(entering, executions)
    assert parts == {"fee": spared}
    assert "fees of 1.5 MNT are not counted: give --candles MNTUSDT=FILE" in findings.notes


def test_a_fee_that_is_not_named_is_papers(entering: Path) -> None:
    paper = followed(entering)
    account = [replace(paper[0], fee=None, fee_base=None), *paper[1:]]
    parts, findings = parts_of(entering, Executions("fills.csv", len(account), account))
    assert parts == {}
    assert findings.notes == ["without a fee: 1 fill; paper's is taken"]


def test_funding_and_a_position_at_the_begin_are_parts(entering: Path, tmp_path: Path) -> None:
    paper, ledger = followed(entering), Ledger(entering)
    paid = [(paper[1].time_ms + MINUTE, "1.25"), (paper[4].time_ms + MINUTE, "-0.5")]
    parts, _ = parts_of(entering, exported(tmp_path / "fills.csv", paper, *paid))
    assert parts == {"funding": Fraction("-0.75")}
    with Reader.open(entering) as reader:
        begun_ms = reader.run(reader.find("last")).period_start_ms
    before = resized(paper[0], "0.4", time_ms=begun_ms - 90 * MINUTE, price=Decimal(100_000))
    parts, findings = parts_of(entering, exported(tmp_path / "fills.csv", [before, *paper]))
    moved = ledger.closes[-1][1] - ledger.close(begun_ms)
    assert parts == {"carried": Fraction(before.quantity) * moved}
    assert findings.left_out == {"before the run, which give the position at its begin": 1}
    # Sold by hand, it ends.
    sold = by_hand(resized(reversed_side(paper[0]), "0.4"), 2, 109_000)
    executions = exported(tmp_path / "fills.csv", [before, *paper, sold])
    assert set(parts_of(entering, executions)[0]) == {"carried"}


def test_fees_in_base_keep_to_their_part(tmp_path: Path) -> None:
    """Without the fee in base that paper pays for a spot buy, the account holds more."""
    database = one_way(tmp_path, "spot")
    paper = followed(database)
    account = [replace(paper[0], fee=Decimal(30), fee_coin="USDT"), *paper[1:]]
    fills = Executions("fills.csv", len(account), [replace(account[0], fee_base=None), *paper[1:]])
    parts, _ = parts_of(database, fills)
    assert set(parts) == {"fee"}
    ledger = Ledger(database)
    truth = ledger.profit([replace(account[0], fee_base=None), *paper[1:]]) - ledger.profit(paper)
    assert abs(parts["fee"] - truth) * MONEY <= len(paper)


# ---------------------------------------------------------------- the command


def written(path: Path, fills: Sequence[Execution]) -> str:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["symbol", "side", "execPrice", "execQty", "execTime", "execFee", "execId"])
        for place, fill in enumerate(fills):
            rows.writerow(
                [fill.symbol, fill.side, fill.price, fill.quantity, fill.time_ms, fill.fee, place]
            )
    return str(path)


def test_an_import_replaces_the_one_before_and_is_in_the_report(
    crossing: Path, tmp_path: Path, cli: Cli
) -> None:
    paper = paper_fills(crossing)
    command = ["calibrate", "--run", "last", "--db", str(crossing)]
    dearer = [replace(fill, price=fill.price + 1) for fill in paper]
    assert cli(*command, written(tmp_path / "a.csv", dearer), "--json").code == 0
    fills = written(tmp_path / "b.csv", [*paper[:-7], replace(paper[0], symbol="XRPUSDT")])
    answer = cli.json(*command, fills)
    assert answer["fills"] == len(paper) - 7
    assert answer["left_out"] == {"of XRPUSDT, which the run does not trade": 1}
    assert answer["notes"][-1].startswith("missed: 7 decisions after the last fill of the file")
    by_part = {row["part"]: row for row in answer["shortfall"]}
    assert by_part["missed"]["decisions"] == 7
    assert by_part["price"]["money"] == by_part["delay"]["money"] == 0
    assert len(answer["shortfall_decisions"]) == len(stored(crossing)) == len(paper)
    # Candles no finer than the run's bars change nothing.
    same = cli.json(*command, fills, "--candles", f"BTCUSDT={DEMO_CANDLES}")
    assert same["shortfall"] == answer["shortfall"]
    report = cli.json("report", "last", "--db", crossing)
    for name in ("shortfall", "shortfall_decisions"):
        assert report[name] == answer[name]
    with closing(open_writer(crossing)):  # as a daemon of the run does
        assert "Shortfall by decision" in cli.out(*command, fills)
    databases = Databases([crossing])
    account = documents.account(databases.find(answer["run_id"]))
    *_, table = as_parts(account.parts)
    assert [row[0]["step"] for row in table["rows"]] == [
        row["sequence"] for row in stored(crossing)
    ]


def test_what_cannot_be_joined_is_one_sentence(
    crossing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = paper_fills(crossing)
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    command = ["calibrate", "--run", "last", "--db", str(crossing)]
    (begun,) = rows_of(crossing, "SELECT min(open_time_ms) AS ms FROM v_bars")
    for changed, sentence in (
        ([replace(paper[0], time_ms=begun["ms"] + 60_000)], "1 before the run"),
        ([replace(fill, symbol="XRPUSDT") for fill in paper], "of XRPUSDT, which the run does not"),
        ([replace(fill, time_ms=fill.time_ms + 10**10) for fill in paper], "outside of the run's"),
        ([replace(paper[0], quantity=Decimal("0.12345678"))], "is traded in 3 decimals"),
        (None, "is empty"),
    ):
        path = str(empty) if changed is None else written(tmp_path / "fills.csv", changed)
        assert invoke([*command, path]) != 0
        answer = capsys.readouterr().err
        assert sentence in answer
        assert "Traceback" not in answer
    path = written(tmp_path / "fills.csv", paper)
    assert invoke([*command, path, "--depth", path]) != 0
    assert "leave --depth out" in capsys.readouterr().err
