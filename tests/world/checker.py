"""What a recorded database has to add up to, by rules of its own.

It imports nothing of the product: a fault of the engine, which ``verify`` repeats, is found here.
The rules are those of docs/money.md, docs/orders.md, docs/protection.md and docs/storage.md, read
again and computed in decimals from the rows of the views.
"""

from __future__ import annotations

import copy
import json
import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from world.live import Before, LiveLaws, Order, Scale

RUNS_MOST: Final = 1_000
"""More runs than a file holds."""
MOST_OF_A_LAW: Final = 20
"""Sentences that a law may say: the first ones say enough."""
UNIT: Final = Decimal("1e-8")
EXACT: Final = Context(prec=80)
BASE_FEES: Final = {
    "linear": (Decimal("0.00055"), Decimal("0.0002")),
    "spot": (Decimal("0.001"), Decimal("0.001")),
}
"""Taker's and maker's rate by category (M15)."""
ASSUMED_LEVERAGE: Final = Decimal(100)
"""The most of an instrument whose own is unknown (M30)."""
CROSS: Final = "sma_cross"
CROSSES: Final = {"fast average above slow": True, "fast average not above slow": False}
SPOT_FEE: Final = Decimal("1.01")
"""An order on spot is at most so much larger than its target: it buys its fee too (M18)."""
Place = tuple[int, int]  # of a step: the number of its run, and its number there
DAY_MS: Final = 86_400_000
"""Market time between two readings of an instrument's filters."""
LATE_BARS: Final = 12
"""Bars that a settlement of a live run may wait for."""
ASLEEP_BARS: Final = 40
"""Bars for which a machine sleeps at most: filters may come before a frame has told the time."""
AT_THE_OPEN_MS: Final = 1_000
"""A settlement so soon after an open counts as of the open (M19)."""


Candle = tuple[Decimal, Decimal, Decimal, Decimal, Decimal]
"""Open, high, low, close and volume."""


class Served(NamedTuple):
    """One instrument as the exchange served it."""

    interval_ms: int
    candles: Mapping[int, Candle]
    """Open time, and open, high, low, close and volume."""
    settlements: Mapping[int, Decimal]
    """Time and funding rate; empty on spot."""
    until_ms: float = math.inf
    """When the exchange stopped listing it."""


@dataclass(frozen=True)
class Truth:
    """What was given to the daemon, and what it answered."""

    configs: Sequence[Mapping[str, Any]]
    """The configuration of the first life, and what an operator made of it later."""
    instruments: Mapping[str, Served]
    """By id, such as ``linear:BTCUSDT``."""
    answered: Sequence[tuple[str, str]]
    """Note and kind of each command that was answered with success."""
    sent: Sequence[str]
    """Notes of all commands."""
    altered: Container[tuple[str, int]]
    """Instrument and open time of the candles that a fault served wrongly at first."""
    ticks: Mapping[str, Sequence[tuple[int, Decimal]]] = field(default_factory=dict)
    """Since when the exchange has which tick, of an instrument whose tick changes."""
    may_fail: bool = False
    """Whether a process beside the daemon may fail."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What no edit changes is read here."""
        return self.configs[0]


class Violation(NamedTuple):
    """One breach of a law."""

    law: str
    sentence: str


def edited(config: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what an operator edits: an order's quantity, the stop's distance, the symbols."""
    stop = config.get("exits", {}).get("stop_loss")
    return Decimal(config["sizing"]["quantity"]), stop, [*config["market"]["symbols"]]


def violations(files: Sequence[Path], truth: Truth) -> list[Violation]:
    """Return what in *files*, oldest first, breaks a law; at most 20 sentences of each law."""
    with closing(_connected(files)) as connection:
        judge = _Judge(connection, truth)
        judge.judge()
    return judge.violations


def totals(files: Sequence[Path]) -> dict[str, int]:
    """Return how many bars, decisions, fills and so on *files* hold."""
    counted = {
        "runs": "v_runs",
        "steps": "steps",
        "commits": "v_commits",
        "bars": "v_bars WHERE accepted",
        "revisions": "v_bars WHERE NOT accepted",
        "gaps": "v_gaps",
        "decisions": "v_decisions",
        "orders": "v_orders",
        "fills": "v_fills",
        "stops": "v_orders WHERE role IN ('STOP', 'TRAILING') AND filled > 0",
        "makers": "v_fills WHERE liquidity = 'MAKER'",
        "liquidations": "v_fills WHERE model = 'liquidation'",
        "settlements": "v_ledger WHERE kind = 'funding'",
        "commands": "v_commands",
    }
    with closing(_connected(files)) as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for name, table in counted.items()
        }


def _connected(files: Sequence[Path]) -> sqlite3.Connection:
    """Open *files*, oldest first, as one database: each table and view has the rows of all."""
    connection = sqlite3.connect(":memory:", uri=True)
    connection.row_factory = sqlite3.Row
    for number, file in enumerate(files):
        connection.execute(f"ATTACH ? AS f{number}", (f"{file.resolve().as_uri()}?mode=ro",))
    query = "SELECT name FROM f0.sqlite_schema WHERE type IN ('table', 'view')"
    for (name,) in connection.execute(query).fetchall():
        if not name.startswith("sqlite_"):
            columns = [row["name"] for row in connection.execute(f"PRAGMA f0.table_info({name})")]
            parts = (_part(name, columns, number) for number in range(len(files)))
            connection.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(parts)}")
    return connection


def _part(name: str, columns: Sequence[str], number: int) -> str:
    """Return the query of file *number*, whose keys of runs are made its own."""
    key = f"run_key + {number} * {RUNS_MOST} AS run_key" if number else "run_key"
    listed = ", ".join(key if column == "run_key" else f'"{column}"' for column in columns)
    return f"SELECT {listed} FROM f{number}.{name}"


class _Judge:
    """The laws of one account."""

    def __init__(self, connection: sqlite3.Connection, truth: Truth) -> None:
        self.connection, self.truth = connection, truth
        self.violations: list[Violation] = []
        self._counts: Counter[str] = Counter()

    def judge(self) -> None:
        """Hold every run to the laws of runs, and the database to those of commands."""
        self.check_commands()
        self.check_parity()
        books: dict[str | None, _Books] = {}
        undecided: dict[str | None, dict[str, int]] = {}
        runs = [*self.rows("SELECT * FROM v_runs")]
        for run in runs:
            run_id, parent = run["run_id"], run["parent_run_id"]
            first = undecided.get(parent)
            if first is None:
                first = dict.fromkeys(self.truth.instruments, run["period_start_ms"])
            self.check_bars(run_id, None if parent is None else first)
            undecided[run_id] = self.check_decisions(run_id, first)
            self.check_ledger(run_id)
            self.check_signals(run_id)
            config = self._config_of(run)
            books[run_id] = _Books(self, run, config, first, books.get(parent))
            books[run_id].check(is_last=run is runs[-1])

    def _config_of(self, run: sqlite3.Row) -> Mapping[str, Any]:
        """Return the configuration among those given that *run* says it had."""
        if len(self.truth.configs) > 1:
            stored = of_json(run["config"])
            for given in self.truth.configs:
                if edited(given) == edited(stored):
                    return given
            self.breach("configuration", f"{run['run_id']} had one that was never given")
        return self.truth.config

    def breach(self, law: str, sentence: str) -> None:
        """Note a breach of *law*."""
        self._counts[law] += 1
        if self._counts[law] <= MOST_OF_A_LAW:
            self.violations.append(Violation(law, sentence))

    def rows(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        """Return the rows of *query*."""
        return iter(self.connection.execute(query, values).fetchall())

    # ------------------------------------------------------------ bars, decisions, commands

    def check_bars(self, run_id: str, undecided: Mapping[str, int] | None) -> None:
        """Check that each bar was accepted once, in order, as served, and what is missing.

        A run that takes over an account has every bar from the first that is *undecided* on.
        """
        accepted: dict[str, dict[int, Candle]] = defaultdict(dict)
        for row in self.rows("SELECT * FROM v_bars WHERE run_id = ? ORDER BY sequence", run_id):
            self._check_bar(row, accepted[row["instrument"]])
        gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        query = "SELECT * FROM v_gaps WHERE run_id = ? AND cause <> 'funding'"
        for row in self.rows(query, run_id):
            gaps[row["instrument"]].append((row["from_ms"], row["until_ms"]))
        for key, bars in accepted.items():
            served = self.truth.instruments[key]
            first = min(bars)
            if undecided is not None:
                first = min(first, max(undecided[key], min(served.candles)))
            for at in range(first, max(bars), served.interval_ms):
                if at not in bars and not any(start <= at < end for start, end in gaps[key]):
                    self.breach("bars", f"{key} {at} is missing and lies in no gap")

    def _check_bar(self, row: sqlite3.Row, before: dict[int, Candle]) -> None:
        key, at = row["instrument"], row["open_time_ms"]
        values = candle_of(row)
        if not row["accepted"]:
            if at not in before:
                self.breach("bars", f"{key} {at} was refused as a revision of no bar")
            elif before[at] == values:
                self.breach("bars", f"{key} {at} was stored again with the same values")
            return
        if at in before:
            self.breach("bars", f"{key} {at} was accepted twice")
        elif before and at < max(before):
            self.breach("bars", f"{key} {at} was accepted after {max(before)}")
        before[at] = values
        served = self.truth.instruments[key].candles.get(at)
        if values != served and (key, at) not in self.truth.altered:
            self.breach("bars", f"{key} {at} is {_texts(values)}, served {_texts(served)}")

    def check_decisions(self, run_id: str, first: Mapping[str, int]) -> dict[str, int]:
        """Check that each accepted bar from the *first* on was decided once, and none before it.

        Returns the first bar that is left undecided, by instrument.
        """
        decided = Counter(
            (row["instrument"], row["open_time_ms"])
            for row in self.rows("SELECT * FROM v_decisions WHERE run_id = ?", run_id)
        )
        bars = {
            (row["instrument"], row["open_time_ms"])
            for row in self.rows("SELECT * FROM v_bars WHERE run_id = ? AND accepted", run_id)
        }
        for (key, at), count in decided.items():
            if count > 1:
                self.breach("decisions", f"{key} {at} was decided {count} times")
            if (key, at) not in bars:
                self.breach("decisions", f"{key} {at} was decided without a bar")
            if at < first[key]:
                self.breach("decisions", f"{key} {at} was decided before {first[key]}")
        for key, at in sorted(bars - decided.keys()):
            if at >= first[key]:
                self.breach("decisions", f"{key} {at} was not decided")
        left = dict(first)
        for key, at in decided:
            left[key] = max(left[key], at + self.truth.instruments[key].interval_ms)
        return left

    def check_signals(self, run_id: str) -> None:
        """Check what averages that cross said of the last closes, in a run of them alone."""
        given = self.truth.config.get("strategy", {})
        if given.get("name") != CROSS:
            return
        fast, slow = int(given.get("fast", 20)), int(given.get("slow", 60))
        closes: dict[str, list[tuple[int, Decimal]]] = defaultdict(list)
        query = (
            "SELECT b.*, d.reason FROM v_bars b LEFT JOIN v_decisions d USING (run_id, sequence) "
            "WHERE b.run_id = ? AND accepted ORDER BY sequence"
        )
        for row in self.rows(query, run_id):
            key, at = row["instrument"], row["open_time_ms"]
            closes[key].append((at, Decimal(row["close_text"])))
            last = closes[key][-slow:]
            is_whole = at - last[0][0] == (slow - 1) * self.truth.instruments[key].interval_ms
            if len(last) < slow or not is_whole or row["reason"] not in CROSSES:
                continue
            sums = sum(price for _, price in last[-fast:]), sum(price for _, price in last)
            is_above = sums[0] * slow > sums[1] * fast
            if sums[0] * slow != sums[1] * fast and is_above != CROSSES[row["reason"]]:
                self.breach("signals", f"{key} {at} says {row['reason']}, and it is not so")

    def check_commands(self) -> None:
        """Check that an answered command is stored once, any other at most once."""
        stored = Counter(
            (row["note"], row["kind"]) for row in self.rows("SELECT * FROM v_commands")
        )
        for note, kind in self.truth.answered:
            if not stored[note, kind]:
                self.breach("commands", f"{kind} {note} was answered and is not stored")
        sent = set(self.truth.sent)
        for (note, kind), count in stored.items():
            if count > 1:
                self.breach("commands", f"{kind} {note} is stored {count} times")
            if note not in sent:
                self.breach("commands", f"{kind} {note} was never sent")

    def check_parity(self) -> None:
        """Check that each day that was replayed was found identical."""
        for row in self.rows("SELECT * FROM v_events WHERE kind = 'parity'"):
            fields = of_json(row["content"])
            may_fail = self.truth.may_fail and fields["outcome"] == "failed"
            if fields["outcome"] != "identical" and not may_fail:
                self.breach("parity", f"{row['run_id']}: {fields['outcome']}, {fields['reason']}")

    # ------------------------------------------------------------ money

    def check_ledger(self, run_id: str) -> None:
        """Check that the movements add up to each balance, and to the cash of each step."""
        balance = Decimal(0)
        after: dict[int, Decimal] = {}
        query = "SELECT * FROM v_ledger WHERE run_id = ? ORDER BY sequence, ordinal"
        for row in self.rows(query, run_id):
            balance += Decimal(row["amount_text"])
            if balance != Decimal(row["balance_text"]):
                place = f"{row['sequence']}/{row['ordinal']}"
                self.breach("ledger", f"{place} adds up to {balance}, not {row['balance_text']}")
                balance = Decimal(row["balance_text"])
            after[row["sequence"]] = balance
        newest = Decimal(0)
        query = "SELECT * FROM v_equity WHERE run_id = ? AND cash_text IS NOT NULL"
        for row in self.rows(f"{query} ORDER BY sequence", run_id):
            sequence = row["sequence"]
            while after and next(iter(after)) <= sequence:
                newest = after.pop(next(iter(after)))
            if Decimal(row["cash_text"]) != newest:
                self.breach("ledger", f"at {sequence} cash is {row['cash_text']}, not {newest}")


def candle_of(row: sqlite3.Row) -> Candle:
    """Return open, high, low, close and volume of a row of ``v_bars``."""
    return (
        Decimal(row["open_text"]),
        Decimal(row["high_text"]),
        Decimal(row["low_text"]),
        Decimal(row["close_text"]),
        Decimal(row["volume_text"]),
    )


def _texts(values: Sequence[object] | None) -> str:
    return "nothing" if values is None else " ".join(map(str, values))


def of_json(content: str | None) -> Mapping[str, Any]:
    """Return the fields of an event's *content*."""
    fields: Mapping[str, Any] = json.loads(content) if content else {}
    return fields


# ---------------------------------------------------------------- numbers


def money(amount: Decimal, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """Return *amount* in whole units of 10⁻⁸, rounded half to even (M3)."""
    return amount.quantize(UNIT, rounding=rounding, context=EXACT)


def share(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """Return the share *part* of *whole* in *amount*, not rounded yet."""
    return EXACT.divide(EXACT.multiply(amount, part), whole)


# ---------------------------------------------------------------- one position


class Rules(NamedTuple):
    """What one instrument costs and how it is rounded."""

    is_spot: bool
    taker: Decimal
    maker: Decimal
    tick: Decimal
    step: Decimal
    leverage: Decimal | None  # of isolated margin
    maintenance: Decimal  # rate of the only risk tier; -1 if several are known

    def fee_of(self, fill: sqlite3.Row) -> tuple[Decimal, Decimal]:
        """Return the fees of *fill* in quote and in base currency (M15, M18)."""
        rate = self.maker if fill["liquidity"] == "MAKER" else self.taker
        quantity, price = Decimal(fill["quantity_text"]), Decimal(fill["price_text"])
        if self.is_spot and fill["side"] == "BUY":
            in_base = (quantity * rate).quantize(self.step, ROUND_HALF_EVEN, EXACT)
            return Decimal(0), in_base
        return money(money(quantity * price) * rate), Decimal(0)

    def margin(self, entry: Decimal) -> Decimal:
        """Return the margin of a position entered for *entry*, with its closing fee (M28)."""
        assert self.leverage is not None
        initial = money(share(abs(entry), Decimal(1), self.leverage), ROUND_CEILING)
        lost_at = abs(entry) - initial if entry > 0 else abs(entry) + initial
        return initial + money(lost_at * self.taker, ROUND_CEILING)

    def liquidation(self, position: Position) -> tuple[Decimal, Decimal]:
        """Return the liquidation and the bankruptcy price of *position* in one tier (M31)."""
        size, quantity, one = abs(position.entry), abs(position.quantity), Decimal(1)
        if position.quantity > 0:
            lost_at = share(size - position.margin, one, 1 - self.taker)
            lost_at = max(money(lost_at, ROUND_CEILING), Decimal(0))
            value = money(share(lost_at, one, 1 - self.maintenance), ROUND_CEILING)
            rounding = ROUND_CEILING
        else:
            lost_at = money(share(size + position.margin, one, 1 + self.taker), ROUND_FLOOR)
            value = money(share(lost_at, one, 1 + self.maintenance), ROUND_FLOOR)
            rounding = ROUND_FLOOR
        ticks = (
            share(worth, one, quantity * self.tick).quantize(one, rounding, EXACT)
            for worth in (value, lost_at)
        )
        at, lost = (max(count, one) * self.tick for count in ticks)
        return at, lost


@dataclass
class Position:
    """A position, and what it earned, as the fills say (M16 to M19)."""

    quantity: Decimal = Decimal(0)
    entry: Decimal = Decimal(0)  # cost, signed as the quantity
    margin: Decimal = Decimal(0)
    realized: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)
    funding: Decimal = Decimal(0)
    opened_ms: int = 0  # time of the fill that opened it

    def fill(self, fill: sqlite3.Row, rules: Rules) -> list[tuple[str, Decimal]]:
        """Book *fill* with the fee that it says, and return the movements of cash."""
        quantity, price = Decimal(fill["quantity_text"]), Decimal(fill["price_text"])
        fee, notional = Decimal(fill["fee_text"]), money(quantity * price)
        self.fees += fee
        if not rules.is_spot:
            signed = quantity if fill["side"] == "BUY" else -quantity
            moved = [("realized", self._linear(signed, notional.copy_sign(signed), rules))]
            is_forced = fill["model"] == "liquidation"
            moved.append(("liquidation_fee" if is_forced else "fee", -fee))
        elif fill["side"] == "BUY":
            kept = Decimal(fill["fee_base_text"])
            cost = notional - money(share(notional, kept, quantity))
            self.quantity += quantity - kept
            self.entry += cost
            self.fees += notional - cost
            moved = [("bought", -notional)]
        else:
            cost = money(share(self.entry, quantity, self.quantity))
            self.quantity -= quantity
            self.entry -= cost
            self.realized += notional - cost
            moved = [("sold", notional), ("fee", -fee)]
        return [(kind, amount) for kind, amount in moved if amount]

    def _linear(self, signed: Decimal, notional: Decimal, rules: Rules) -> Decimal:
        realized = Decimal(0)
        if self.quantity * signed < 0:
            whole = abs(self.quantity)
            closed = min(abs(signed), whole)
            worth = money(share(notional, closed, abs(signed)))
            entry = money(share(self.entry, closed, whole))
            self.margin = money(share(self.margin, whole - closed, whole), ROUND_FLOOR)
            realized = -worth - entry
            self.quantity += closed.copy_sign(signed)
            self.entry -= entry
            signed -= closed.copy_sign(signed)
            notional -= worth
        if signed:
            self.quantity += signed
            self.entry += notional
            if rules.leverage is not None:
                self.margin += rules.margin(notional)
        self.realized += realized
        return realized

    def worth(self, mark: Decimal) -> Decimal:
        """Return its value at *mark*."""
        return money(self.quantity * mark)


STARTING: Final = ("instrument_change", "model_change")
"""Events with which a start begins."""


class _Books:
    """The account of one run, kept again from its fills and the rates of configuration.

    A run that takes over the account of the run *before* goes on with its positions, valued at
    their entries until a price comes, with its cash, its orders and its settlements. *first* is the
    open time of the first bar that it decides, by instrument.
    """

    def __init__(
        self,
        judge: _Judge,
        run: sqlite3.Row,
        config: Mapping[str, Any],
        first: Mapping[str, int],
        before: _Books | None = None,
    ) -> None:
        self.judge, self.run_id, self.config = judge, run["run_id"], config
        self.first = first
        self.positions: dict[str, Position] = defaultdict(Position)
        self.cash = Decimal(0)
        self.closes: dict[str, Decimal] = {}
        # Closes and marks of an instrument with their times; notes of a run before have its marks.
        # By instrument and kind: the prices with their times, in the order in which they came.
        self.history: dict[tuple[str, str], list[tuple[Place, int, Decimal]]] = defaultdict(list)
        self.opened: dict[str, int] = {}  # the newest bar
        self.marks: dict[str, list[Decimal]] = defaultdict(list)
        self.doubted: dict[str, Decimal] = {}
        self.unrealized: dict[str, Decimal] = {}
        self.ruin: dict[str, Decimal] = {}  # the newest liquidation prices
        self.opening = Decimal(str(self.config["account"]["cash"]))
        if before is not None:
            self.positions, self.opening = copy.deepcopy(before.positions), before.cash
            self.history = copy.deepcopy(before.history)
        models = {
            model
            for (model,) in judge.rows(
                "SELECT DISTINCT model FROM v_fills WHERE run_id = ?", self.run_id
            )
        }
        by_candles = run["kind"] != "live" and models <= {"next_open", "bar_path", "liquidation"}
        settled = None if before is None else before.settlements
        self.settlements: _Settlements = _Settlements(
            judge, self.run_id, settled, by_candles=by_candles
        )
        self.rules = {
            row["instrument_id"]: self._rules_of(row)
            for row in judge.rows(
                "SELECT i.* FROM instruments i JOIN runs USING (run_key) WHERE run_id = ?",
                self.run_id,
            )
        }
        every_order = _Market(judge, self.run_id, self.rules, config)
        self.orders = {  # the last state of each
            order.order_id: order
            for _, orders in sorted(every_order.changes.items())
            for order in orders
        }
        self.news = {  # by step
            sequence: [order for order in orders if order.status == "NEW"]
            for sequence, orders in every_order.changes.items()
        }
        self.filled: dict[str, Decimal] = defaultdict(Decimal)
        self.market = every_order if by_candles else None
        self.missed = None if by_candles else every_order
        self.live: LiveLaws | None = None
        if self.missed is not None and run["kind"] == "live":
            interval_ms = min(each.interval_ms for each in judge.truth.instruments.values())
            late_ms = config.get("gate", {}).get("late_ms", interval_ms)
            worse = every_order._worse
            self.live = LiveLaws(judge.breach, _law_of, worse, late_ms)
        if before is not None:
            self.filled.update({f"0-{name}": filled for name, filled in before.filled.items()})
            self.opened = dict(before.opened)
            if self.missed is not None and before.missed is not None:
                self.missed.take_over(before.missed)
            if self.live is not None and before.live is not None:
                self.live.take_over(before.live)
        account = self.config.get("account", {})
        self.leverage: Decimal | None = None  # of cross margin, in one symbol and tier
        if account.get("margin") == "cross" and by_candles:
            alone = [rules for rules in self.rules.values() if rules.maintenance >= 0]
            if len(alone) == len(self.rules) == 1:
                self.leverage = Decimal(str(account["leverage"]))
        self.calls = 0  # liquidations of the step
        self.bars: Sequence[sqlite3.Row] = ()  # of the step
        self.ignored = {
            sequence
            for (sequence,) in judge.rows(
                "SELECT sequence FROM steps JOIN runs USING (run_key) "
                "WHERE run_id = ? AND ignored IS NOT NULL",
                self.run_id,
            )
        }

    def _rules_of(self, item: sqlite3.Row) -> Rules:
        execution = self.config.get("execution", {})
        account = self.config.get("account", {})
        taker, maker = BASE_FEES[item["category"]]
        given = {
            "taker": execution.get("taker_fee", taker),
            "maker": execution.get("maker_fee", maker),
            **execution.get("fees", {}).get(item["symbol"], {}),
        }
        greatest = ASSUMED_LEVERAGE
        if item["max_leverage"]:
            greatest = Decimal(item["max_leverage"]) / 100
        is_isolated = account.get("margin") == "isolated"
        return Rules(
            item["category"] == "spot",
            Decimal(str(given["taker"])),
            Decimal(str(given["maker"])),
            Decimal(item["tick_size"]).scaleb(-item["price_decimals"]),
            Decimal(item["quantity_step"]).scaleb(-item["quantity_decimals"]),
            Decimal(str(account.get("leverage", 1))) if is_isolated else None,
            Decimal(-1) if item["risk_tiers"] else 1 / greatest / 2,
        )

    def _of(self, view: str) -> dict[int, list[sqlite3.Row]]:
        """Return the rows of *view* by step, those of one close together."""
        found: dict[int, list[sqlite3.Row]] = defaultdict(list)
        order = "sequence, ordinal" if view in {"v_fills", "v_ledger"} else "sequence"
        query = f"SELECT * FROM {view} WHERE run_id = ? ORDER BY {order}"
        for row in self.judge.rows(query, self.run_id):
            found[self.groups.get(row["sequence"], row["sequence"])].append(row)
        return found

    def check(self, *, is_last: bool = True) -> None:
        """Walk through the steps; *is_last* means that the history ends calm with this run."""
        self.groups = self._closes()
        events, bars, fills = self._of("v_events"), self._of("v_bars"), self._of("v_fills")
        ledger, positions = self._of("v_ledger"), self._of("v_positions")
        equity, decisions = self._of("v_equity"), self._of("v_decisions")
        for sequence in sorted(events):
            self._take(events[sequence], bars.get(sequence, []))
            stood = self._stood()
            self.bars = bars.get(sequence, [])
            self._book(sequence, fills.get(sequence, []), ledger.get(sequence, []))
            self._check_bars(sequence, bars.get(sequence, []), fills.get(sequence, []))
            if self.missed is not None:
                for event in events[sequence]:
                    self.missed.step(event["sequence"])
            if self.live is not None and self.missed is not None:
                heard = [each for each in events[sequence] if each["sequence"] not in self.ignored]
                scales = {key: Scale(rules.tick, rules.step) for key, rules in self.rules.items()}
                self.live.step(heard, fills.get(sequence, []), stood, self.missed.orders, scales)
                self._check_late(bars.get(sequence, []), decisions.get(sequence, []), stood)
            for order in self.news.get(sequence, []):
                self._check_grid(order)
            for row in decisions.get(sequence, []):
                # What is late may come before the filters are read again. It is refused, by an
                # operator's HALT before any other gate, and its exits pass.
                if row["refused_by"] not in {"late", "operator"}:
                    self._check_known(row["instrument"], bars[sequence][0]["seen_ms"])
                self._check_order(row)
            for row in positions.get(sequence, []):
                self._check_position(row)
            for row in equity.get(sequence, []):
                if any(event["kind"] in STARTING for event in events[sequence]):
                    self._value_at_closes(row)
                self._check_equity(row)
        self.settlements.end(self.opened, self._funding_gaps(), is_last=is_last)
        for order in self.orders.values():
            filled = self.filled[order.order_id]
            is_done = 0 < order.quantity == order.filled  # an order of nothing is refused
            if order.filled != filled or is_done != (order.status == "FILLED"):
                got = f"{order.status} with {order.filled} of {order.quantity}"
                self.judge.breach("orders", f"{order.order_id} is {got}, and {filled} were filled")

    def _stood(self) -> Before:
        """Return the account as a step meets it."""
        held = {key: own.quantity for key, own in self.positions.items()}
        return Before(dict(self.missed.orders) if self.missed else {}, held, dict(self.ruin))

    def _check_late(
        self, bars: Sequence[sqlite3.Row], decisions: Sequence[sqlite3.Row], stood: Before
    ) -> None:
        assert self.live is not None
        assert self.missed is not None
        new = [order for name, order in self.missed.orders.items() if name not in stood.orders]
        by_sequence = {bar["sequence"]: bar for bar in bars}
        for row in decisions:
            key = row["instrument"]
            interval_ms = self.judge.truth.instruments[key].interval_ms
            held = stood.held.get(key, Decimal(0))
            self.live.decided(row, by_sequence[row["sequence"]], interval_ms, new, held)

    def _take(self, events: Sequence[sqlite3.Row], bars: Sequence[sqlite3.Row]) -> None:
        """Take prices and settlements before the fills of the step."""
        for event in events:
            if "the mark before it is believed" in str(event["price_verdict"]):
                self.marks[event["instrument"]].append(self.doubted[event["instrument"]])
            if event["kind"] == "mark":
                self._mark(event)
            elif event["kind"] == "instrument_change":
                self._change_tick(event)
            elif event["kind"] == "funding" and "not believed" not in str(event["price_verdict"]):
                is_ignored = event["sequence"] in self.ignored
                self.settlements.add(event, is_ignored=is_ignored)
        for bar in bars:
            if bar["accepted"]:
                key = bar["instrument"]
                closed_ms = bar["open_time_ms"] + self.judge.truth.instruments[key].interval_ms
                place = self.settlements.number, bar["sequence"]
                self.history[key, "bar"].append((place, closed_ms, Decimal(bar["close_text"])))

    def _change_tick(self, event: sqlite3.Row) -> None:
        """Take the tick that *event* says, which has to be the exchange's of that time."""
        fields = of_json(event["content"])["instrument"]
        key, at = f"{fields['category']}:{fields['symbol']}", event["market_ms"]
        tick = Decimal(fields["tick_size"]).scaleb(-fields["price_decimals"])
        self.rules[key] = self.rules[key]._replace(tick=tick)
        if key in self.judge.truth.ticks and tick not in self._ticks(key, at):
            self.judge.breach("filters", f"{key} has a tick of {tick} at {at}")

    def _ticks(self, key: str, at: int, *, read_ms: int = 0) -> set[Decimal]:
        """Return the ticks that a run may know at the time *at*, if they were read *read_ms* ago.

        Its clock is behind after a sleep, and a reading takes a while.
        """
        bar_ms, served = self.judge.truth.instruments[key].interval_ms, self.judge.truth.ticks[key]
        since_ms, until_ms = at - read_ms - LATE_BARS * bar_ms, at + ASLEEP_BARS * bar_ms
        first = [tick for at_ms, tick in served if at_ms <= since_ms][-1]
        return {first, *(tick for at_ms, tick in served if since_ms < at_ms <= until_ms)}

    def _check_grid(self, order: Order) -> None:
        """Check that the prices of a new *order* lie on the tick that the run knows."""
        tick = self.rules[order.key].tick
        for price in (order.price, order.trigger):
            if price is not None and price % tick:
                self.judge.breach("filters", f"{order.order_id} at {price} lies on no {tick}")

    def _check_known(self, key: str, at: int) -> None:
        """Check that the filters of a decision at the time *at* were read a day before at most."""
        tick = self.rules[key].tick
        if key in self.judge.truth.ticks and tick not in self._ticks(key, at, read_ms=DAY_MS):
            self.judge.breach("filters", f"{key} {at} was decided by {tick}")

    def _check_bars(
        self, sequence: int, bars: Sequence[sqlite3.Row], fills: Sequence[sqlite3.Row]
    ) -> None:
        accepted = [bar for bar in bars if bar["accepted"]]
        for bar in accepted:
            key, at = bar["instrument"], bar["open_time_ms"]
            self.closes[key] = Decimal(bar["close_text"])
            self.opened[key] = max(at, self.opened.get(key, at))
        if self.missed is not None:
            for bar in accepted:
                if bar["source"] == "rest" and bar["open_time_ms"] >= self.first[bar["instrument"]]:
                    self.missed.caught_up(bar, fills)
        if self.market is None:
            return
        if not accepted:
            self.market.step(sequence)
        for bar in accepted:
            self.market.bar(bar, fills)
            self._check_ruin(bar, fills)
            self.market.check_levels(bar, self.positions)

    def _funding_gaps(self) -> dict[str, list[tuple[int, int]]]:
        gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        query = "SELECT * FROM v_gaps WHERE run_id = ? AND cause = 'funding'"
        for row in self.judge.rows(query, self.run_id):
            gaps[row["instrument"]].append((row["from_ms"], row["until_ms"]))
        return gaps

    def _closes(self) -> dict[int, int]:
        """Return for each bar of a close of several instruments the step of its first bar."""
        query = "SELECT sequence, kind, content FROM v_events WHERE run_id = ? ORDER BY sequence"
        groups: dict[int, int] = {}
        left, first = 0, -1
        for sequence, kind, content in self.judge.rows(query, self.run_id):
            if kind == "closed":
                left, first = int(of_json(content)["bars"]), -1
            elif kind == "bar" and left:
                first = sequence if first < 0 else first
                groups[sequence] = first
                left -= 1
        return groups

    def _mark(self, event: sqlite3.Row) -> None:
        instrument = event["instrument"]
        fields = of_json(event["content"])
        decimals = -self.rules[instrument].tick.as_tuple().exponent  # type: ignore[operator]
        price = Decimal(fields["price"]).scaleb(-decimals)
        if str(event["price_verdict"]).startswith("not believed"):
            self.doubted[instrument] = price
        else:
            self.marks[instrument].append(price)
        place = self.settlements.number, event["sequence"]
        self.history[instrument, "mark"].append((place, event["market_ms"], price))

    def _candidates(self, instrument: str) -> list[Decimal]:
        """Return what *instrument* may be valued at: its close, or one of the last marks (M20)."""
        close, doubted = self.closes.get(instrument), self.doubted.get(instrument)
        others = [price for price in (close, doubted) if price is not None]
        return [*others, *self.marks[instrument][-2:]]

    def _value_at_closes(self, row: sqlite3.Row) -> None:
        """Value positions at the newest closes where the step does: a start may."""
        closes = {
            instrument: own.worth(self.closes[instrument]) - own.entry
            for instrument, own in self.positions.items()
            if instrument in self.closes
        }
        valued = self.unrealized | {
            name: closes[name] for name in self.unrealized if name in closes
        }
        if Decimal(row["unrealized_pnl_text"]) == sum(valued.values(), Decimal(0)):
            self.unrealized = valued

    # ------------------------------------------------------------ fills and settlements

    def _book(
        self, sequence: int, fills: Sequence[sqlite3.Row], ledger: Sequence[sqlite3.Row]
    ) -> None:
        left: dict[str, list[sqlite3.Row]] = defaultdict(list)
        self.calls = 0
        for fill in fills:
            self._check_fill(fill)
            left[fill["order_id"]].append(fill)
        due: list[tuple[str, Decimal]] = []
        newest = {row["instrument"]: row["ordinal"] for row in ledger if row["kind"] == "funding"}
        for row in ledger:
            amount, order_id = Decimal(row["amount_text"]), row["order_id"]
            if order_id is not None:
                while not due and left[order_id]:
                    due = self._post(left[order_id].pop(0))
                wanted = due.pop(0) if due else ("nothing", Decimal(0))
                if (row["kind"], amount) != wanted:
                    moved = f"{order_id} moved {row['kind']} {amount}"
                    self.judge.breach("ledger", f"at {sequence} {moved}, not {_texts(wanted)}")
            elif row["kind"] == "funding":
                self._settle(row, amount, is_last=newest[row["instrument"]] == row["ordinal"])
            elif row["kind"] == "opened" and amount != self.opening:
                self.judge.breach("ledger", f"the run began with {amount}, not {self.opening}")
            self.cash += amount
        for fill in (each for rest in left.values() for each in rest):
            due += self._post(fill)
        for kind, amount in due:
            self.judge.breach("ledger", f"at {sequence} there is no movement {kind} {amount}")

    def _check_liquidation(self, fill: sqlite3.Row, position: Position) -> None:
        """Check that the price of a liquidation required it, and that it closed at the price due.

        That is the bankruptcy price of an isolated position (M31, M32).
        """
        rules, at = self.rules[fill["instrument"]], Decimal(fill["reference_price_text"])
        place = f"at {fill['sequence']} {fill['order_id']}"
        if self.leverage is not None and not self.calls and not self._is_ruined(at):
            left = [self._balance(position, rules, each) for each in self._impacts(fill)]
            if min(left, default=Decimal(0)) >= 0:
                self.judge.breach("liquidations", f"{place}: {at} ruins nothing")
        self.calls += 1
        if rules.leverage is None or rules.maintenance < 0 or not position.quantity:
            return
        trigger, lost = rules.liquidation(position)
        if Decimal(fill["price_text"]) != lost:
            self.judge.breach("liquidations", f"{place} is at {fill['price_text']}, not {lost}")
        if at > trigger if position.quantity > 0 else at < trigger:
            beyond = [price - lost for _, price in self._impacts(fill)]
            if not any(each * position.quantity < 0 for each in beyond):
                self.judge.breach("liquidations", f"{place}: {at} has not reached {trigger}")

    def _impacts(self, fill: sqlite3.Row) -> list[tuple[Decimal, Decimal]]:
        """Return quantity and price of the orders that the liquidation *fill* ended.

        Their own impact at a thin bar may have closed the position beyond its bankruptcy price
        (M32), or left a debt (M58).
        """
        if self.market is None:
            return []
        candle = next(candle_of(bar) for bar in self.bars if bar["sequence"] == fill["sequence"])
        return self.market.ended_by(fill, candle)

    def _balance(self, position: Position, rules: Rules, order: tuple[Decimal, Decimal]) -> Decimal:
        """Return what an *order* of this quantity and price that closes *position* leaves."""
        quantity, price = order
        fee = money(money(quantity * price) * rules.taker)
        return self.cash + position.worth(price) - position.entry - fee

    def _post(self, fill: sqlite3.Row) -> list[tuple[str, Decimal]]:
        key = fill["instrument"]
        position = self.positions[key]
        if fill["model"] == "liquidation":
            self._check_liquidation(fill, position)
        before = position.quantity
        moved = position.fill(fill, self.rules[fill["instrument"]])
        if before * position.quantity <= 0:
            position.opened_ms = fill["filled_ms"]
        if not position.quantity:  # a ruin ends positions of other symbols than that of its bar
            self.unrealized[key] = Decimal(0)
        self.filled[fill["order_id"]] += Decimal(fill["quantity_text"])
        order = self.orders.get(fill["order_id"])
        is_larger = before * position.quantity < 0 or abs(position.quantity) > abs(before)
        if order is not None and order.reduces and is_larger:
            self.judge.breach("orders", f"{order.order_id} only reduces, and made {before} larger")
        return moved

    def _check_fill(self, fill: sqlite3.Row) -> None:
        """Check notional and fee of *fill*."""
        place = f"{fill['sequence']}/{fill['ordinal']} of {fill['order_id']}"
        rules = self.rules[fill["instrument"]]
        notional = money(Decimal(fill["price_text"]) * Decimal(fill["quantity_text"]))
        if notional != Decimal(fill["notional_text"]):
            text = fill["notional_text"]
            self.judge.breach("fills", f"the fill {place} is worth {notional}, not {text}")
        wanted = rules.fee_of(fill)
        got = Decimal(fill["fee_text"]), Decimal(fill["fee_base_text"])
        if got != wanted:
            self.judge.breach("fees", f"the fill {place} paid {_texts(got)}, not {_texts(wanted)}")

    def _is_ruined(self, at: Decimal) -> bool:
        """Return whether cross margin of one symbol is used up with its price *at* (M52, M53)."""
        balance, needed = self.cash, Decimal(0)
        for key, position in self.positions.items():
            rules, value = self.rules[key], position.worth(at)
            balance += value - position.entry
            assert self.leverage is not None
            initial = money(share(abs(value), Decimal(1), self.leverage), ROUND_CEILING)
            closed = abs(value) - initial if position.quantity > 0 else abs(value) + initial
            needed += money(abs(value) * rules.maintenance, ROUND_FLOOR)
            needed += money(closed * rules.taker, ROUND_CEILING)
        return needed > 0 and needed >= balance

    def _check_ruin(self, bar: sqlite3.Row, fills: Sequence[sqlite3.Row]) -> None:
        """Check that no price of *bar* used up a cross margin that was not liquidated."""
        if self.leverage is None or any(fill["model"] != "next_open" for fill in fills):
            return
        for name in ("high", "low"):
            at = Decimal(bar[f"{name}_text"])
            if self._is_ruined(at):
                self.judge.breach("liquidations", f"{bar['open_time_ms']} ruins at {at}")

    def _settle(self, row: sqlite3.Row, amount: Decimal, *, is_last: bool) -> None:
        """Book a settlement; *is_last*: the step has no later one of the position."""
        key = row["instrument"]
        position, free = self.positions[key], None
        if self.rules[key].leverage is not None:
            bound = sum((each.margin for each in self.positions.values()), Decimal(0))
            free = max(self.cash - bound, Decimal(0))

        within_ms = LATE_BARS * self.judge.truth.instruments[key].interval_ms

        def paid(at: int, rate: Decimal, held: Decimal) -> set[Decimal]:
            marks = self._candidates(key)
            if self.market is None:  # the rate may come long after its time
                passed = self.settlements.passed_at(key, at)
                for prices in (self.history[key, "bar"], self.history[key, "mark"]):
                    marks += [price for _, at_ms, price in prices if abs(at_ms - at) <= within_ms]
                    # Or it comes after a long silence.
                    marks += [price for place, _, price in prices if place <= passed][-2:]
            amounts = {money(money(held * mark) * rate) for mark in marks}
            if free is None:
                return amounts
            return {min(each, free + position.margin) for each in amounts}

        self.settlements.book(key, amount, paid, row["market_ms"] if is_last else None)
        position.funding -= amount
        if free is not None:
            position.margin -= max(-amount - free, Decimal(0))

    # ------------------------------------------------------------ decisions and their orders

    def _check_order(self, row: sqlite3.Row) -> None:
        """Check that a decision by signal ordered the difference to its target (M7)."""
        key = row["instrument"]
        rules = self.rules[key]
        if self.market is None or row["target_quantity_text"] is None:
            return
        target, held = Decimal(row["target_quantity_text"]), self.positions[key].quantity
        place = f"{row['sequence']} {row['action']} of {key}"
        self._check_target(row, target, place)
        resting = [
            order
            for order in self.market.orders.values()
            if order.key == key and order.rests and order.role == "SIGNAL"
        ]
        if len(resting) > 1:
            self.judge.breach("orders", f"at {place} {len(resting)} orders by signal rest")
        ordered = sum(
            ((1 if each.is_buy else -1) * (each.quantity - each.filled) for each in resting),
            Decimal(0),
        )
        is_whole = row["unfilled_reason"] is None and not rules.is_spot
        if ordered * (target - held) < 0 or abs(ordered) > abs(target - held) * SPOT_FEE:
            self.judge.breach("orders", f"at {place} {ordered} leads away from {target - held}")
        elif rules.is_spot and row["unfilled_reason"] is None and ordered > 0:
            left = ordered * (1 - rules.taker) - (target - held)
            if not 0 <= left <= 2 * rules.step:
                self.judge.breach("orders", f"at {place} {ordered} leaves {left} more than wanted")
        elif is_whole and ordered != target - held:
            self.judge.breach("orders", f"at {place} {ordered} was ordered, not {target - held}")

    def _check_target(self, row: sqlite3.Row, target: Decimal, place: str) -> None:
        """Check a target of a fixed size."""
        sizing = self.config.get("sizing", {})
        is_fixed = sizing.get("mode") == "fixed" and self.config["strategy"]["name"] == CROSS
        if not is_fixed or not row["allowed"] or row["unfilled_reason"]:
            return
        size = Decimal(str(sizing["quantity"]))
        wanted = {"LONG": size, "SHORT": -size, "FLAT": Decimal(0)}.get(row["action"])
        if wanted is not None and target != wanted:
            self.judge.breach("orders", f"at {place} the target is {target}, not {wanted}")

    # ------------------------------------------------------------ what the steps say

    def _check_position(self, row: sqlite3.Row) -> None:
        instrument = row["instrument"]
        own = self.positions[instrument]
        names = ("quantity", "entry_notional", "realized_pnl", "fees_paid", "funding_paid")
        values = (own.quantity, own.entry, own.realized, own.fees, own.funding)
        for name, value in zip(names, values, strict=True):
            if Decimal(row[f"{name}_text"]) != value:
                text = row[f"{name}_text"]
                place = f"{row['sequence']} {name} of {instrument}"
                self.judge.breach("positions", f"at {place} is {text}, not {value}")
        marks = self._candidates(instrument)
        wanted = {own.worth(mark) - own.entry for mark in marks} or {Decimal(0)}
        got = Decimal(row["unrealized_pnl_text"])
        if got not in wanted:
            place = f"{row['sequence']} unrealized of {instrument}"
            self.judge.breach("equity", f"at {place} is {got}, not {min(wanted)}")
        self.unrealized[instrument] = got
        self._check_margin(row, own, self.rules[instrument])

    def _check_margin(self, row: sqlite3.Row, own: Position, rules: Rules) -> None:
        if rules.leverage is None or row["margin_text"] is None:
            return
        sequence = row["sequence"]
        if Decimal(row["margin_text"]) != own.margin:
            text = row["margin_text"]
            self.judge.breach("margin", f"at {sequence} margin is {text}, not {own.margin}")
        self.ruin.pop(row["instrument"], None)
        if row["liquidation_price_text"] is None:
            return
        self.ruin[row["instrument"]] = Decimal(row["liquidation_price_text"])
        if rules.maintenance < 0 or not own.quantity:
            return
        wanted, _ = rules.liquidation(own)
        if Decimal(row["liquidation_price_text"]) != wanted:
            text = row["liquidation_price_text"]
            self.judge.breach("margin", f"at {sequence} liquidation is at {text}, not {wanted}")

    def _check_equity(self, row: sqlite3.Row) -> None:
        every = self.positions.values()
        names = ("realized_pnl", "fees_paid", "funding_paid", "unrealized_pnl")
        values = [
            sum((each.realized for each in every), Decimal(0)),
            sum((each.fees for each in every), Decimal(0)),
            sum((each.funding for each in every), Decimal(0)),
            sum(self.unrealized.values(), Decimal(0)),
        ]
        for name, value in zip(names, values, strict=True):
            if Decimal(row[f"{name}_text"]) != value:
                text = row[f"{name}_text"]
                self.judge.breach(
                    "equity", f"at {row['sequence']} {name} is {text}, the positions say {value}"
                )
        is_isolated = any(rules.leverage is not None for rules in self.rules.values())
        bound = sum((each.margin for each in every), Decimal(0))
        if is_isolated and bound > max(self.cash, Decimal(0)):
            place = f"at {row['sequence']} the margins are {bound}"
            self.judge.breach("margin", f"{place}, more than the cash of {self.cash}")
        entries = (each.entry for key, each in self.positions.items() if self.rules[key].is_spot)
        wanted = self.cash + values[-1] + sum(entries, Decimal(0))
        if Decimal(row["equity_text"]) != wanted:
            text = row["equity_text"]
            self.judge.breach("equity", f"at {row['sequence']} equity is {text}, not {wanted}")


# ---------------------------------------------------------------- settlements


class _Settlements:
    """The settlements of an account, and the positions that they met (M19).

    Those of the run *before*, whose account was taken over, go on.
    """

    def __init__(
        self, judge: _Judge, run_id: str, before: _Settlements | None, *, by_candles: bool
    ) -> None:
        self.judge, self.by_candles = judge, by_candles
        self.due: dict[str, list[tuple[int, Decimal]]] = defaultdict(list)
        self.places: Counter[str] = Counter()
        # Times and steps: of fills with their quantity, and of what lets a settlement pass. A step
        # is the number of its run and its place in there.
        self.fills: dict[str, list[tuple[int, Decimal, Place]]] = defaultdict(list)
        self.passed: dict[str, list[tuple[int, Place]]] = defaultdict(list)
        self.gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.given_up: set[tuple[str, int]] = set()
        self.number = 0
        if before is not None:
            self.number = before.number + 1
            for name in ("due", "places", "fills", "passed", "gaps", "given_up"):
                setattr(self, name, copy.deepcopy(getattr(before, name)))
        query = "SELECT price_verdict FROM v_events WHERE run_id = ? AND price_verdict IS NOT NULL"
        for (said,) in judge.rows(query, run_id):
            for key, iso in re.findall(r"the settlement of (\S+) at (\S+) is given up", said):
                self.given_up.add((key, int(datetime.fromisoformat(iso).timestamp()) * 1_000))
        for row in judge.rows(
            "SELECT * FROM v_fills WHERE run_id = ? ORDER BY sequence, ordinal", run_id
        ):
            quantity, key = Decimal(row["quantity_text"]), row["instrument"]
            signed = quantity if row["side"] == "BUY" else -quantity
            place = self.number, row["sequence"]
            self.fills[key].append((row["filled_ms"], signed, place))
            self.passed[key].append((row["filled_ms"], place))
        for row in judge.rows("SELECT * FROM v_bars WHERE run_id = ? AND accepted", run_id):
            key = row["instrument"]
            closed_ms = row["open_time_ms"] + judge.truth.instruments[key].interval_ms
            self.passed[key].append((closed_ms, (self.number, row["sequence"])))

    def add(self, event: sqlite3.Row, *, is_ignored: bool) -> None:
        """Take the settlement that *event* says, which has to be the exchange's or be ignored."""
        key, at = event["instrument"], event["market_ms"]
        rate = Decimal(of_json(event["content"])["rate"]).scaleb(-10)
        served = self.judge.truth.instruments[key].settlements.get(at)
        if rate != served and not is_ignored:
            self.judge.breach("settlements", f"{key} settled {rate} at {at}, served {served}")
        if any(time == at for time, _ in self.due[key]):
            if not is_ignored:
                self.judge.breach("settlements", f"{key} settled twice at {at}")
            return
        self.due[key].append((at, rate))

    def held(self, key: str, at: int) -> Decimal:
        """Return what was held at the settlement of *at*.

        It is what the older fills had left when a bar or a fill first came that is not older. A
        quote that came after that filled too late.
        """
        moment, passed = self._moment(key, at), self.passed_at(key, at)
        return sum(
            (
                signed
                for time, signed, place in self.fills[key]
                if time < moment and place <= passed
            ),
            Decimal(0),
        )

    def passed_at(self, key: str, at: int) -> Place:
        """Return the step that let the settlement of *at* pass."""
        moment = self._moment(key, at)
        steps = [place for time, place in self.passed[key] if time >= moment]
        return min(steps, default=(self.number + 1, 0))

    def _moment(self, key: str, at: int) -> int:
        since = at % self.judge.truth.instruments[key].interval_ms
        return at - since if since < AT_THE_OPEN_MS else at

    def book(
        self,
        key: str,
        amount: Decimal,
        paid: Callable[[int, Decimal, Decimal], set[Decimal]],
        moved_ms: int | None,
    ) -> None:
        """Find the settlement of a movement; *paid* says what one would cost.

        It is that of *moved_ms*, the time of the step, if there is one, and else the first.
        """
        due = self.due[key]
        fit = [
            (at != moved_ms, place)
            for place, (at, rate) in enumerate(due[self.places[key] :], self.places[key])
            if (key, at) not in self.given_up
            and (held := self.held(key, at)) != 0
            and -amount in paid(at, rate, held)
        ]
        if fit:
            *_, place = min(fit)
            self._skip(key, place)
            self.places[key] = place + 1
            return
        wanted = sorted(paid(*due[-1], self.held(key, due[-1][0]))) if due else []
        self.judge.breach("settlements", f"{key} paid {-amount}, not {_texts(wanted)}")
        self.places[key] = len(due)

    def _skip(self, key: str, until: int) -> None:
        for place in range(self.places[key], until):
            at, rate = self.due[key][place]
            if rate and self.held(key, at) and (key, at) not in self.given_up:
                self.judge.breach("settlements", f"{key} paid nothing at {at}")

    def end(
        self,
        ends: Mapping[str, int],
        gaps: Mapping[str, Sequence[tuple[int, int]]],
        *,
        is_last: bool,
    ) -> None:
        """Check what was never booked before *ends*, and what the exchange settled unseen.

        Settlements come in order. So a run that a later one followed owes only those before the
        newest that it saw.
        """
        for instrument, spans in gaps.items():
            self.gaps[instrument] += spans
        for instrument in self.fills:
            served = self.judge.truth.instruments[instrument]
            last = ends.get(instrument, 0)
            seen = [at for at, _ in self.due[instrument] if at < last]
            self._skip(instrument, len(seen))
            if not is_last:
                last = min(last, max(seen, default=0))
            for at in served.settlements:
                is_missed = any(start <= at < end for start, end in self.gaps[instrument])
                is_due = at < min(last, served.until_ms) and at not in seen and not is_missed
                if is_due and self.held(instrument, at):
                    self.judge.breach(
                        "settlements", f"{instrument} never met the settlement of {at}"
                    )


# ---------------------------------------------------------------- orders and candles


class _Market:
    """The orders of a run whose candles fill them, held to the candles (M13, M14, B4)."""

    def __init__(
        self, judge: _Judge, run_id: str, rules: Mapping[str, Rules], config: Mapping[str, Any]
    ) -> None:
        self.judge, self.rules = judge, rules
        execution = config.get("execution", {})
        slippage = Decimal(str(execution.get("slippage_bp", 0)))
        self.worse = (slippage + Decimal(str(execution.get("spread_bp", 0))) / 2) / 10_000
        self.ranges = bool(Decimal(str(execution.get("spread_slippage", 0))))
        self.beyond = execution.get("beyond_best", "wait")
        self.impact = Decimal(str(execution.get("impact_bp", 1))) / 10_000
        self.exits = config.get("exits", {})
        self.distances: dict[str, Decimal] = {}  # of trailing stops
        self.orders: dict[str, Order] = {}
        self.before: dict[str, Order] = {}
        self.fills: Sequence[sqlite3.Row] = ()  # of the bar
        self.changes: dict[int, list[Order]] = defaultdict(list)
        query = (
            "SELECT o.*, instrument_id, price_decimals, quantity_decimals FROM orders o JOIN "
            "runs USING (run_key) JOIN instruments USING (run_key, instrument) "
            "WHERE run_id = ? ORDER BY sequence, ordinal"
        )
        for row in judge.rows(query, run_id):
            self.changes[row["sequence"]].append(_order_of(row))

    def bar(self, bar: sqlite3.Row, fills: Sequence[sqlite3.Row]) -> None:
        """Check the step of an accepted *bar* and its *fills*."""
        sequence, instrument = bar["sequence"], bar["instrument"]
        self.before = dict(self.orders)
        self.step(sequence)
        mine = [fill for fill in fills if fill["instrument"] == instrument]
        self.fills = mine
        candle = candle_of(bar)
        for fill in mine:
            self._check_fill(fill, self._met(fill, mine), bar, candle)
        self._check_choice(mine, bar, candle)
        filled = {fill["order_id"] for fill in mine}
        for order in self.before.values():
            if order.key == instrument and order.rests and order.order_id not in filled:
                self._check_rest(order, bar, candle, is_moved=bool(mine))
        for order in self.changes.get(sequence, []):
            if order.key == instrument and order.order_id not in self.before:
                self._check_young(order, bar, candle)

    def take_over(self, before: _Market) -> None:
        """Go on with the orders of the run *before* that rest, under their new ids."""
        for order in before.orders.values():
            if order.rests:
                name = f"0-{order.order_id}"
                self.orders[name] = order._replace(order_id=name)

    def caught_up(self, bar: sqlite3.Row, fills: Sequence[sqlite3.Row]) -> None:
        """Check that a *bar* which REST brought later met each stop and liquidation (E16, M31)."""
        self.before = dict(self.orders)
        self.step(bar["sequence"])
        mine = [fill for fill in fills if fill["instrument"] == bar["instrument"]]
        candle = candle_of(bar)
        for fill in mine:
            if fill["while_down"] and fill["model"] == "bar_path":
                self._check_taken_or_made(fill, self._met(fill, mine), candle)
        _, high, low, *_ = candle
        for order in self.before.values():
            after = self.orders[order.order_id]
            is_older = order.created_ms <= bar["open_time_ms"]
            is_due = order.rests and order.waits and order.role in {"STOP", "LIQUIDATION"}
            is_due = is_due and is_older
            if order.key != bar["instrument"] or not is_due or not order.is_met(low, high):
                continue
            if after.rests and after.waits:
                place = f"{order.order_id} in {bar['open_time_ms']}"
                self.judge.breach(_law_of(order), f"{place} was met by a late bar and rests")

    def _check_taken_or_made(self, fill: sqlite3.Row, order: Order, candle: Candle) -> None:
        place = f"{fill['order_id']} at {fill['price_text']}, filled late"
        if fill["liquidity"] == "MAKER":
            self._check_made(order, Decimal(fill["price_text"]), candle, place)
        else:
            self._check_taken(fill, order, candle, place)

    def step(self, sequence: int) -> None:
        """Take the states of the orders after a step."""
        for order in self.changes.get(sequence, []):
            self.orders[order.order_id] = order

    # ------------------------------------------------------------ what was filled

    def _moved(self, fill: sqlite3.Row, candle: Candle) -> Decimal:
        """Return the impact of a taker's *fill*, which shares the volume with those before it."""
        if self.beyond == "wait":
            return Decimal(0)
        before = (
            Decimal(each["quantity_text"])
            for each in self.fills
            if (each["side"], each["liquidity"]) == (fill["side"], "TAKER")
            and each["model"] != "liquidation"
            and each["ordinal"] < fill["ordinal"]
        )
        return self._impact(sum(before, Decimal(fill["quantity_text"])), candle[4])

    def _impact(self, quantity: Decimal, volume: Decimal) -> Decimal:
        """Return the impact of takers of this *quantity* at a bar of this *volume*."""
        share = quantity / volume if volume else Decimal(100)
        share = min(share, Decimal(100))
        moved = self.impact * (share.sqrt() if self.beyond == "square_root" else share)
        return min(moved, Decimal(1)).quantize(Decimal("1e-10"), ROUND_FLOOR)

    def ended_by(self, fill: sqlite3.Row, candle: Candle) -> list[tuple[Decimal, Decimal]]:
        """Return quantity and price of the orders of its side that the liquidation *fill* ended.

        The price is what each would have been filled at; ``orders`` are those before the step.
        """
        reference, ended = Decimal(fill["reference_price_text"]), []
        for after in self.changes.get(fill["sequence"], []):
            before = self.orders.get(after.order_id)
            is_ended = before is not None and before.rests and not after.rests
            is_alike = after.key == fill["instrument"] and after.is_buy == (fill["side"] == "BUY")
            if before is None or not (is_ended and is_alike) or after.role == "LIQUIDATION":
                continue
            left = before.quantity - before.filled
            moved = Decimal(0) if self.beyond == "wait" else self._impact(left, candle[4])
            ended.append((left, self._worse(before, reference, moved)))
        return ended

    def _worse(self, order: Order, price: Decimal, moved: Decimal = Decimal(0)) -> Decimal:
        """Return *price* with the costs of a taker, in whole ticks, and within the limit."""
        tick, worse = self.rules[order.key].tick, self.worse + moved
        if worse:
            rate, rounding = (
                (1 + worse, ROUND_CEILING) if order.is_buy else (1 - worse, ROUND_FLOOR)
            )
            price = (price * rate / tick).quantize(Decimal(1), rounding, EXACT) * tick
        if order.price is None:
            return price
        return min(price, order.price) if order.is_buy else max(price, order.price)

    def _met(self, fill: sqlite3.Row, fills: Sequence[sqlite3.Row]) -> Order:
        """Return the order of *fill* as the bar met it: a larger position moves its levels."""
        after = self.orders[fill["order_id"]]
        before = self.before.get(after.order_id)
        if before is None:  # the bar made it, and touched it after that
            return after._replace(is_triggered=False)
        is_moved = any(
            each["instrument"] == after.key and each["model"] == "next_open" for each in fills
        )
        if is_moved and after.reduces:
            return before._replace(trigger=after.trigger, price=after.price)
        return before

    def _check_fill(
        self, fill: sqlite3.Row, order: Order, bar: sqlite3.Row, candle: Candle
    ) -> None:
        price, reference = Decimal(fill["price_text"]), Decimal(fill["reference_price_text"])
        place = f"{fill['order_id']} at {price} in {bar['open_time_ms']}"
        opened, high, low, *_ = candle
        law, model = _law_of(order), fill["model"]
        is_maker = fill["liquidity"] == "MAKER"
        is_passed = is_maker and order.is_met(opened, opened)
        if not low <= reference <= high and model != "liquidation" and not is_passed:
            self.judge.breach(law, f"{place} refers to {reference}, beyond the candle")
        if model == "next_open":
            self._check_open_fill(fill, order, bar, candle)
        elif is_maker:
            self._check_made(order, price, candle, place)
        elif model == "bar_path":
            self._check_taken(fill, order, candle, place)
        times = {bar["open_time_ms"], bar["open_time_ms"] + self._length(order) - 1}
        if model == "bar_path" and fill["filled_ms"] not in times:
            self.judge.breach(law, f"{place} is dated {fill['filled_ms']}, not of its bar")

    def _check_made(self, order: Order, price: Decimal, candle: Candle, place: str) -> None:
        """Check what a resting limit was filled at: its price, which the candle has to pass."""
        if price != order.price:
            self.judge.breach(_law_of(order), f"{place} is a maker's and not at {order.price}")
        elif not order._replace(is_triggered=True).is_met(candle[2], candle[1]):
            self.judge.breach(_law_of(order), f"{place} was filled, and no price passed it")

    def _length(self, order: Order) -> int:
        return self.judge.truth.instruments[order.key].interval_ms

    def _check_open_fill(
        self, fill: sqlite3.Row, order: Order, bar: sqlite3.Row, candle: Candle
    ) -> None:
        price, at, opened = Decimal(fill["price_text"]), bar["open_time_ms"], candle[0]
        place = f"{fill['order_id']} at {price} in {at}"
        if Decimal(fill["reference_price_text"]) != opened or fill["filled_ms"] != at:
            self.judge.breach("fills", f"{place} is not of the open {opened}")
        worse = self._worse(order, opened, self._moved(fill, candle))
        if not self.ranges and price != worse:
            self.judge.breach("fills", f"{place} should be at {worse}")
        if order.role not in {"UNTIL", "TARGET"} and order.order_id not in self.before:
            self.judge.breach("fills", f"{place} was ordered by the bar that filled it")

    def _check_taken(self, fill: sqlite3.Row, order: Order, candle: Candle, place: str) -> None:
        """Check what a stop, or a limit that arrived, took inside the bar."""
        opened, high, low, *_ = candle
        reference, law = Decimal(fill["reference_price_text"]), _law_of(order)
        if order.trigger is not None and not order.is_triggered:
            wanted = {order.trigger}
            if order.is_met(opened, opened):
                wanted = {opened}
            if order.role == "TRAILING":
                wanted = {self.orders[order.order_id].trigger or order.trigger, opened}
            elif not order.is_met(low, high):
                self.judge.breach(law, f"{place} triggered, and the candle never touched it")
        else:
            wanted = {opened}
            rested = self.before.get(order.order_id)
            if order.kind == "LIMIT" and rested is not None and rested.status != "NEW":
                self.judge.breach(law, f"{place} had rested, and was filled as a taker")
        if reference not in wanted:
            self.judge.breach(law, f"{place} refers to {reference}, not {_texts([*wanted])}")
        price = self._worse(order, reference, self._moved(fill, candle))
        if not self.ranges and Decimal(fill["price_text"]) != price:
            self.judge.breach(law, f"{place} should be at {price}")

    def _check_choice(self, fills: Sequence[sqlite3.Row], bar: sqlite3.Row, candle: Candle) -> None:
        """Check that a stop came before a target if the path met both, and nothing else."""
        opened, high, low, *_ = candle
        of_path = [fill for fill in fills if fill["model"] != "next_open"]
        if len(of_path) != 1:
            return
        target = self._met(of_path[0], fills)
        is_passed = target.is_met(opened, opened)
        if target.role != "TARGET" or is_passed:
            return
        young = (
            order
            for order in self.changes.get(bar["sequence"], [])
            if order.order_id not in self.before and order.created_ms == bar["open_time_ms"]
        )
        for stop in (*self.before.values(), *young):
            rested = stop.rests or stop.order_id not in self.before
            # A position that was turned leaves a stop of the other side.
            is_rival = stop.key == target.key and stop.is_buy == target.is_buy and rested
            if is_rival and stop.role == "STOP" and stop.is_met(low, high):
                place = f"{target.order_id} in {bar['open_time_ms']}"
                self.judge.breach("stops", f"{place} was filled before {stop.order_id}")

    # ------------------------------------------------------------ what was not filled

    def _check_rest(
        self, before: Order, bar: sqlite3.Row, candle: Candle, *, is_moved: bool
    ) -> None:
        """Check an order that rested when the bar began and was not filled by it."""
        _, high, low, *_ = candle
        after = self.orders[before.order_id]
        place = f"{before.order_id} in {bar['open_time_ms']}"
        ends = bar["open_time_ms"] + self._length(before)
        if before.until_ms is not None and before.until_ms < ends:
            if after.rests:
                self.judge.breach("orders", f"{place} rests beyond {before.until_ms}")
            return
        if before.kind == "MARKET":
            if after.rests:
                self.judge.breach("fills", f"{place} was not filled at the open")
            return
        law = _law_of(before)
        if before.status == "NEW":
            return
        is_met = before.is_met(low, high)
        if after.rests and not is_moved and is_met and (not before.waits or after.waits):
            self.judge.breach(law, f"{place} was met by the candle and still rests")
        elif not after.rests and not is_moved and is_met and "cover" not in after.reason:
            self.judge.breach(law, f"{place} was met by the candle and ended: {after.reason}")
        if before.role == "TRAILING" and after.rests:
            self._check_trailing(before, after, candle, place)

    def _check_trailing(self, before: Order, after: Order, candle: Candle, place: str) -> None:
        """Check that a trailing stop followed the best price, and never turned back (E13)."""
        assert before.trigger is not None
        assert after.trigger is not None
        first = self.distances.get(before.order_id)
        if before.is_buy:
            if after.trigger > before.trigger:
                self.judge.breach("stops", f"{place} moved back to {after.trigger}")
        elif after.trigger < before.trigger:
            self.judge.breach("stops", f"{place} moved back to {after.trigger}")
        if first is None:
            return
        wanted = (
            min(before.trigger, candle[2] + first)
            if before.is_buy
            else max(before.trigger, candle[1] - first)
        )
        if abs(after.trigger - wanted) >= self.rules[before.key].tick:
            self.judge.breach("stops", f"{place} trails at {after.trigger}, not {wanted}")

    def _check_young(self, order: Order, bar: sqlite3.Row, candle: Candle) -> None:
        """Check protection that was placed at the open of the bar, and met the rest of it."""
        at_open = order.created_ms == bar["open_time_ms"]
        # No later signal moves these.
        is_kept = order.reason.startswith("exits.")
        is_kept |= order.role == "TARGET" and order.reason.endswith("%")
        if order.role not in {"STOP", "TARGET"} or not (at_open and is_kept and order.rests):
            return
        _, high, low, *_ = candle
        if order.is_met(low, high):
            place = f"{order.order_id} in {bar['open_time_ms']}"
            self.judge.breach(_law_of(order), f"{place} was met in the bar of the entry and rests")

    # ------------------------------------------------------------ levels of the configuration

    def check_levels(self, bar: sqlite3.Row, positions: Mapping[str, Position]) -> None:
        """Check the exit orders of ``[exits]`` that rest after *bar* (E18 to E21)."""
        for order in self.orders.values():
            name, _, text = order.reason.partition(" ")
            if order.key != bar["instrument"] or not order.rests:
                continue
            held = positions[order.key]
            if order.role == "LIQUIDATION":
                self._check_bankruptcy(order, bar, held)
            if text[-1:] != "%":
                continue
            if name.startswith("exits.") and held.quantity:
                self._check_level(order, bar, held, name.removeprefix("exits."))

    def _check_bankruptcy(self, order: Order, bar: sqlite3.Row, held: Position) -> None:
        rules = self.rules[order.key]
        if rules.maintenance >= 0 and held.quantity:
            wanted = rules.liquidation(held)
            if (order.trigger, order.price) != wanted:
                place = f"{order.order_id} in {bar['open_time_ms']}"
                got = f"{order.trigger} {order.price}"
                self.judge.breach("liquidations", f"{place} is at {got}, not {_texts(wanted)}")

    def _check_level(self, order: Order, bar: sqlite3.Row, held: Position, name: str) -> None:
        given = self.exits.get(name)
        if isinstance(given, Mapping):
            age_ms = bar["open_time_ms"] - held.opened_ms
            ages = [age for age in given if int(age) * 60_000 <= max(age_ms, 0)]
            given = given[max(ages, key=int)]
        rates = [_fraction(given)]
        entry = share(held.entry, Decimal(1), held.quantity)
        tick, direction = self.rules[order.key].tick, -1 if order.is_buy else 1
        direction = direction if name in {"minimal_roi", "take_profit"} else -direction
        level = order.trigger if order.price is None else order.price
        assert level is not None
        exact = [entry * rate for rate in rates]
        if name == "trailing":
            self._follow(order, bar, entry, exact[0])
        elif all(abs(entry + direction * each - level) > tick / 2 for each in exact):
            wanted = _texts([entry + direction * each for each in exact])
            place = f"{order.order_id} in {bar['open_time_ms']}"
            self.judge.breach("levels", f"{place} is at {level}, not {wanted}")

    def _follow(self, order: Order, bar: sqlite3.Row, entry: Decimal, distance: Decimal) -> None:
        """Check a trailing stop in the bar that made it; ``_check_trailing`` has the later ones."""
        if order.order_id in self.distances:
            return
        tick = self.rules[order.key].tick
        distance = (distance / tick).quantize(Decimal(1), ROUND_HALF_EVEN, EXACT) * tick
        self.distances[order.order_id] = distance
        _, high, low, *_ = candle_of(bar)
        best = min(entry, low) + distance if order.is_buy else max(entry, high) - distance
        assert order.trigger is not None
        if order.created_ms == bar["open_time_ms"] and abs(order.trigger - best) >= tick:
            place = f"{order.order_id} in {bar['open_time_ms']}"
            self.judge.breach("stops", f"{place} trails at {order.trigger}, not {best}")


def _fraction(value: object) -> Decimal:
    """Return ``2%``, ``0.02`` or ``{"0" = 0.02}``'s value as a fraction."""
    text = str(value)
    return Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)


def _law_of(order: Order) -> str:
    """Return the law that *order* obeys."""
    if order.kind in {"STOP", "STOP_LIMIT"}:
        return "liquidations" if order.role == "LIQUIDATION" else "stops"
    return "limits" if order.kind == "LIMIT" else "fills"


def _order_of(row: sqlite3.Row) -> Order:
    def price(units: int | None) -> Decimal | None:
        return None if units is None else Decimal(units).scaleb(-row["price_decimals"])

    decimals = -row["quantity_decimals"]
    return Order(
        row["order_id"],
        row["instrument_id"],
        row["side"] == "BUY",
        Decimal(row["quantity"]).scaleb(decimals),
        Decimal(row["filled"]).scaleb(decimals),
        row["status"],
        row["reason"],
        row["created_ms"],
        row["kind"] or "MARKET",
        row["role"] or "SIGNAL",
        price(row["price"]),
        price(row["trigger"]),
        row["until_ms"],
        row["eligible_ms"] or 0,
        bool(row["triggered"]),
        bool(row["reduce_only"]),
    )
