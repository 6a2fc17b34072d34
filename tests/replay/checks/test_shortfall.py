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

import pytest
from command_line import Cli
from fed_daemon import Process
from hedged_cases import configured
from hedged_cases import walk as hedged_events
from report_cases import cross

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.session.build import resolved
from tracepaper.replay.archive.executions import Execution, Executions, read_executions
from tracepaper.replay.checks.shortfall import ShortfallFindings, join_fills, stored_rows
from tracepaper.replay.document.values import as_parts
from tracepaper.replay.page import documents
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.checks import store_shortfalls
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Side

PARTS = ("price", "fee", "size", "delay", "missed")
MONEY = 10**8


def one_way(folder: Path, category: str = "linear") -> Path:
    config = folder / "run.toml"
    is_spot = category == "spot"
    text = cross(long_only=is_spot, quantity="0.5", slippage_bp="2", category=category)
    config.write_text(text)
    command = ["replay", "--config", str(config), "--data", f"BTCUSDT={DEMO_CANDLES}"]
    within = ["--from", "2025-05-26T10:00", "--to", "2025-05-26T22:00"]
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
        parts = sum(money(row, part) for part in PARTS)
        assert parts == money(row, "shortfall")
        assert parts == money(row, "account_result") - money(row, "paper_result")
        assert (money(row, "missed") != 0) <= (row["account_ms"] is None)
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
        assert {money(row, name) for name in (*PARTS, "shortfall")} == {0}
        assert row["cause"] is None
        assert row["paper_ms"] == row["account_ms"]


# ---------------------------------------------------------------- causes


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_way(tmp_path_factory.mktemp("crossing"))


def test_each_cause_is_told_from_the_others(crossing: Path) -> None:
    paper = [replace(fill, order="") for fill in paper_fills(crossing)]
    fill, later = paper[4], paper[5]
    sign = 1 if fill.side is Side.BUY else -1

    def parts(*instead: Execution) -> dict[str, Fraction]:
        kept = [each for each in paper if each is not fill]
        shortfall = found_of(crossing, [*kept, *instead]).shortfalls[4]
        return {part: Fraction(value, MONEY) for part, value in shortfall.parts.items() if value}

    assert parts(fill) == {}
    dearer = replace(fill, price=fill.price + 2 * sign)
    assert parts(dearer) == {"price": -2 * Fraction(fill.quantity)}
    assert fill.fee is not None
    assert parts(replace(fill, fee=fill.fee + 3)) == {"fee": Fraction(-3)}
    for unknown in (replace(fill, fee=None, fee_base=None), replace(fill, fee_coin="MNT")):
        assert parts(unknown) == {}  # paper's counts
        assert any("1 fills name no fee" in note for note in found_of(crossing, [unknown]).notes)
    assert set(parts(replace(fill, quantity=fill.quantity / 2, fee=fill.fee / 2))) == {"size"}
    assert set(parts()) == {"missed"}
    # The next bar's open, where the market stands then: it has moved, and nothing else differs.
    opens = {
        row["open_time_ms"]: Fraction(row["open_text"])
        for row in rows_of(crossing, "SELECT * FROM v_bars")
    }
    moved = opens[fill.time_ms + 60_000] - opens[fill.time_ms]
    late = replace(fill, time_ms=fill.time_ms + 60_000, price=fill.price + Decimal(float(moved)))
    assert parts(late) == {"delay": -sign * moved * Fraction(fill.quantity)}
    # After the next decision a late fill follows the one that ordered its side and was not filled,
    after = replace(fill, time_ms=later.time_ms + 1_000)
    assert {"delay"} <= set(parts(after)) <= {"delay", "price"}
    # and one that nothing ordered, or not any more, stands by itself.
    again = replace(fill, time_ms=later.time_ms + 1_000)
    joined(crossing, [*paper, again][::-1])  # the newest first, as exports are
    (strange,) = [row for row in stored(crossing) if row["ordered"] == 0]
    assert (strange["side"], strange["paper_ms"]) == (fill.side.value, None)
    assert strange["decided_ms"] == again.time_ms
    assert strange["cause"] == "size"


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
    assert answer["notes"][-1].startswith("7 decisions after the last fill of the file")
    by_part = {row["part"]: row for row in answer["shortfall"]}
    assert by_part["missed"]["decisions"] == 7
    assert by_part["price"]["money"] == by_part["delay"]["money"] == 0
    assert len(answer["shortfall_decisions"]) == len(stored(crossing)) == len(paper)
    report = cli.json("report", "last", "--db", crossing)
    for name in ("shortfall", "shortfall_decisions"):
        assert report[name] == answer[name]
    with closing(open_writer(crossing)):  # as a daemon of the run does
        assert "Shortfall by decision" in cli.out(*command, fills)
    shelf = Databases([crossing])
    account = documents.account(shelf.find(answer["run_id"]))
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
        ([replace(paper[0], time_ms=begun["ms"] + 60_000)], "1 outside of the run's bars"),
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
    assert invoke([*command, path, "--candles", str(DEMO_CANDLES)]) != 0
    assert "leave --candles and --depth out" in capsys.readouterr().err
