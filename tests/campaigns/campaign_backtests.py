"""Backtests of drawn configurations, killed and resumed, against a checker of their own.

    python tests/campaigns/campaign_backtests.py --rounds 100

Drawn are candles, recorded books, months, and shares with splits and dividends; one strategy or
several on one account; cross and isolated margin; a universe; hedge mode. A combination that the
rules refuse must be refused in one sentence, and leave nothing behind. Any other is replayed whole;
replayed once more, killed by SIGKILL, and resumed: both say the same. Its chain holds, it follows
from its record, a replay of the record is identical, and the checker adds up fills, fees, ledger,
parts, sides and universe from the database alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import stock_files
from checker import asked, check_fills, check_parts, check_sides, check_universe
from depth_cases import BTC
from drawn import RoundFailed
from msgspec import structs
from seeded_events import ITEM, seeded_market

from tracepaper.daemon.cli import invoke
from tracepaper.storage.audit import SqlAuditLog

DAY_MS: Final = 86_400_000
FIRST_MS: Final = 1_735_689_600_000  # 2025-01-01
NAMES: Final = ("AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT")
SHARE: Final = "ACME"
WRONG_USAGE: Final = 2
KILLED_GROUP_STEPS: Final = 20
SMA: Final = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
REVERSION: Final = {
    "name": "tracepaper.strategies.examples.rsi_reversion:RsiReversion",
    "options": {"bars": 4, "low": 40, "high": 55, "stop": 0.5},
}
GRID: Final = {
    "name": "tracepaper.strategies.examples.grid:Grid",
    "options": {"bars": 30, "levels": 3, "spacing": 0.3, "quantity": 0.5},
}
QUEUED: Final = GRID | {"options": {"bars": 8, "levels": 4, "spacing": 0.0004, "quantity": 0.5}}
"""Limits at the levels of a book, which fill by their places in the queue."""
SIDES: Final = "hedged_cases:Drawn"
"""Signals for either side, protected or not, and lists that name their sides."""


@dataclass
class Case:
    """What a round draws: sections of its configuration, words of the command, and its kinds."""

    world: str
    sections: dict[str, dict[str, Any]]
    words: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    cash: Decimal = Decimal(1_000_000)

    @property
    def name(self) -> str:
        """Its world and its kinds."""
        return " + ".join((self.world, *sorted(self.kinds)))


# ---------------------------------------------------------------- what is drawn


def crypto(folder: Path, rng: random.Random) -> Case:
    """Draw candles of one to four symbols, with holes and falls."""
    interval, minutes = rng.choice((("15", 15), ("60", 60)))
    symbols = NAMES[: rng.randint(1, 4)]
    words = []
    for symbol in symbols:
        rows = walk(rng, 700, minutes * 60_000, holes=rng.random() < 0.5)
        words += ["--data", f"{symbol}={written(folder / f'{symbol}.csv', rows)}"]
    market: dict[str, Any] = {"symbols": list(symbols), "interval": interval}
    if rng.random() < 0.3:
        market["gather_ms"] = 0
    return Case("candles", {"market": market}, words)


def months(folder: Path, rng: random.Random) -> Case:
    """Draw days of some years, traded by months."""
    symbols = NAMES[: rng.randint(1, 2)]
    words = []
    for symbol in symbols:
        rows = walk(rng, 2_200, DAY_MS, holes=False, first_ms=FIRST_MS - 2_000 * DAY_MS)
        words += ["--data", f"{symbol}={written(folder / f'{symbol}.csv', rows)}"]
    return Case("months", {"market": {"symbols": list(symbols), "interval": "M"}}, words)


def book(folder: Path, rng: random.Random) -> Case:
    """Draw a recorded book of one or two symbols, with a gap or a silence in some."""
    words: list[str] = []
    symbols = ("BTCUSDT", "AAAUSDT")[: rng.randint(1, 2)]
    for number, symbol in enumerate(symbols):
        place = folder / symbol
        place.mkdir()
        made = seeded_market(
            place,
            minutes=25,
            every_ms=1_000,
            seed=rng.randint(1, 10_000) + number,
            gap=rng.choice(((0, 0), (8, 11))),
            is_silent=rng.random() < 0.3,
            item=ITEM if symbol == BTC.symbol else structs.replace(ITEM, symbol=symbol),
        )
        words += ["--data", f"{symbol}={made.candles}", "--events", str(made.events)]
    execution: dict[str, Any] = {"model": "book"}
    if rng.random() < 0.5:
        execution["response_ms"] = rng.choice((0, 100, 700))
    market = {"symbols": list(symbols), "interval": "1"}
    return Case("book", {"market": market, "execution": execution}, words)


def shares(folder: Path, rng: random.Random) -> Case:
    """Draw hours of a share over true sessions, with splits and dividends."""
    times = stock_files.opens("2014-11-03", "2014-12-31", stock_files.HOUR_MS)
    days = sorted(rng.sample(["2014-11-20", "2014-12-02", "2014-12-03", "2014-12-16"], 3))
    lines, splits = ["symbol,date,kind,value"], []
    for day in days[: rng.randint(1, 3)]:
        if rng.random() < 0.5:
            splits.append((stock_files.moment(f"{day}T09:30"), factor := rng.choice((2.0, 1.5))))
            lines.append(f"{SHARE},{day},split,{factor}")
        else:
            lines.append(f"{SHARE},{day},dividend,0.47")
    (folder / "actions.csv").write_text("\n".join(lines) + "\n")

    def later(row: int) -> float:
        """Return by how much later splits divide the prices of *row*."""
        return math.prod(factor for at_ms, factor in splits if times[row] < at_ms)

    path = stock_files.write(
        folder / "acme.csv",
        times,
        prices=later,
        volumes=lambda row: 1 / later(row),
        seed=rng.randint(1, 10_000),
    )
    words = ["--data", f"{SHARE}={path}", "--actions", str(folder / "actions.csv")]
    market = {"asset": "stock", "calendar": "XNAS", "symbols": [SHARE], "interval": "60"}
    return Case("shares", {"market": market}, words)


WORLDS: Final = (crypto, crypto, crypto, months, book, shares)


def with_strategy(case: Case, rng: random.Random) -> None:
    """Draw the strategy or the strategies, sizes and exits."""
    mode = rng.choice(("fixed", "notional", "equity"))
    quantity = "3" if case.world != "shares" else "10"
    sizing = {
        "fixed": {"quantity": quantity},
        "notional": {"notional": "20000"},
        "equity": {"fraction": "0.5"},
    }
    case.sections["sizing"] = {"mode": mode, **sizing[mode]}
    if rng.random() < 0.3:
        case.sections["exits"] = {"stop_loss": rng.choice(("0.5%", "2%")), "take_profit": "3%"}
    if rng.random() < 0.35:
        case.kinds.add("several")
        named: dict[str, Any] = {
            "calm": {"share": "0.6", **SMA, "slow": rng.choice((9, 14))},
            "quick": {"share": rng.choice(("0.4", "0.2")), **rng.choice((SMA, REVERSION))},
        }
        if rng.random() < 0.3:
            named["wild"] = {"share": "0.0001", **SMA, "fast": 1, "slow": 2}
            named["quick"]["share"] = "0.2"
        case.sections["strategies"] = named
        if rng.random() < 0.4:
            named["reset"] = rng.choice(("day", "week"))
    else:
        ours = (SMA, QUEUED) if case.world == "book" else (SMA, SMA, REVERSION, GRID)
        case.sections["strategy"] = dict(rng.choice(ours))
        if rng.random() < 0.4:
            case.kinds.add("twins")
            case.sections["strategy"]["twins"] = ["ungated"]


def with_margin(case: Case, rng: random.Random) -> None:
    """Draw cross margin or isolated, high enough for calls."""
    if rng.random() < 0.4:
        kind = rng.choice(("cross", "cross", "isolated"))
        case.kinds.add(kind)
        leverage = str(rng.choice((10, 50, 100)))
        case.sections["account"] |= {"margin": kind, "leverage": leverage}
        if case.sections["sizing"]["mode"] == "notional":
            case.sections["sizing"]["notional"] = rng.choice(("200000", "3000000"))


def with_universe(case: Case, rng: random.Random) -> None:
    """Draw a rule of a universe."""
    if rng.random() < 0.4:
        case.kinds.add("universe")
        symbols = case.sections["market"]["symbols"]
        rule: dict[str, Any] = {
            "top": rng.randint(1, len(symbols)),
            "by": rng.choice(("turnover", "volatility")),
            "at": rng.sample(["00:00", "00:05", "06:00", "12:05", "18:00", "23:59"], 3),
            "on_leave": rng.choice(("reduce", "close")),
        }
        if rng.random() < 0.3:
            rule["max_volatility"] = rng.choice(("0.02", "0.08"))
        if rng.random() < 0.2:
            rule["min_age_days"] = rng.choice((1, 3))
        case.sections["market"]["universe"] = rule


def with_more(case: Case, rng: random.Random) -> None:
    """Draw a later start, and options of another world, which are refused."""
    if case.world == "candles" and rng.random() < 0.3:
        case.kinds.add("later")
        case.words += ["--from", "2025-01-03T05:00:00Z"]
    if case.world != "shares" and rng.random() < 0.05:
        case.kinds.add("actions")
        case.words += ["--actions", "foreign.csv"]
    if case.world == "candles" and rng.random() < 0.05:
        case.kinds.add("no book")
        case.sections["execution"] = {"model": "book"}


def with_hedge(case: Case, rng: random.Random) -> None:
    """Draw hedge mode, mostly where nothing contradicts it."""
    often = case.world in {"candles", "months"} and case.kinds.isdisjoint({"several", "cross"})
    if rng.random() > (0.5 if often else 0.08):
        return
    case.kinds.add("hedge")
    case.sections["account"]["position_mode"] = "hedge"
    if (strategy := case.sections.get("strategy")) is None:
        return
    if "twins" in strategy and rng.random() < 0.8:
        del strategy["twins"]
        case.kinds.discard("twins")
    if strategy["name"] == GRID["name"] or rng.random() < 0.5:  # a list has to name its side
        lists = {"name": SIDES, "options": {"seed": rng.randint(1, 10_000)}}
        case.sections["strategy"] = lists | {
            key: strategy[key] for key in strategy if key == "twins"
        }


REFUSED: Final[Mapping[str, Callable[[Case], bool]]] = {
    "several strategies and a universe": lambda of: {"several", "universe"} <= of.kinds,
    "several strategies of shares": lambda of: "several" in of.kinds and of.world == "shares",
    "a book and cross margin": lambda of: of.world == "book" and "cross" in of.kinds,
    "shares on margin": lambda of: (
        of.world == "shares" and not of.kinds.isdisjoint({"cross", "isolated"})
    ),
    "hedge mode of shares": lambda of: "hedge" in of.kinds and of.world == "shares",
    "hedge mode and a book": lambda of: "hedge" in of.kinds and of.world == "book",
    "hedge mode and cross margin": lambda of: {"hedge", "cross"} <= of.kinds,
    "hedge mode and several strategies": lambda of: {"hedge", "several"} <= of.kinds,
    "hedge mode and shadow accounts": lambda of: {"hedge", "twins"} <= of.kinds,
    "actions of crypto": lambda of: "actions" in of.kinds,
    "a book without a file of it": lambda of: "no book" in of.kinds,
}
"""The combinations that are refused before anything is written."""


def drawn(seed: int, folder: Path) -> Case:
    """Return the case of *seed*, whose files lie in *folder*."""
    rng = random.Random(seed)
    case = rng.choice(WORLDS)(folder, rng)
    case.sections["account"] = {"cash": str(case.cash)}
    case.sections["model"] = {"checkpoint": "none"}
    (folder / "foreign.csv").write_text("symbol,date,kind,value\nAAAUSDT,2025-01-03,split,2\n")
    for draw in (with_strategy, with_margin, with_universe, with_more, with_hedge):
        draw(case, rng)
    return case


def walk(
    rng: random.Random, bars: int, interval_ms: int, *, holes: bool, first_ms: int = FIRST_MS
) -> list[tuple[object, ...]]:
    """Return a walk of prices with a few falls and rises, in cents."""
    price, rows = rng.choice((10_000, 250_000)), []
    for number in range(bars):
        opened = price
        jump = rng.choice((0.93, 1.06)) if rng.random() < 0.004 else 1.0
        price = max(int(price * jump * (1 + rng.gauss(0, 0.004))), 100)
        high = max(opened, price) + rng.randint(0, max(price // 500, 1))
        low = max(min(opened, price) - rng.randint(0, max(price // 500, 1)), 1)
        volume = rng.randint(1, 50) * (9 if number // 90 % 2 else 1)
        if not holes or rng.random() > 0.01 or not number:
            prices = (f"{value / 100:.2f}" for value in (opened, high, low, price))
            rows.append((first_ms + number * interval_ms, *prices, volume))
    return rows


def written(path: Path, rows: list[tuple[object, ...]]) -> Path:
    """Write candles as a file."""
    text = ["open_time_ms,open,high,low,close,volume", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(text) + "\n")
    return path


def toml(sections: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Return *sections* as TOML."""
    keys = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(path)}]"] if path else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    tables = [toml(value, (*path, key)) for key, value in sections.items() if key not in keys]
    return "\n".join((*lines, *tables))


# ---------------------------------------------------------------- what is done with it


def said(*words: str) -> tuple[int, str, str]:
    """Return the exit code of the program, what it prints, and what it says of errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = invoke(list(words))
    return code, out.getvalue(), err.getvalue()


def must(*words: str) -> str:
    """Return the output of a command; raise ``RoundFailed`` where it fails."""
    code, out, err = said(*words)
    if code:
        raise RoundFailed(f"`{' '.join(words)}` ended with {code}: {err or out}")
    return out


def check_refused(case: Case, words: list[str], database: Path) -> None:
    """Require one sentence, exit code 2, and nothing left behind."""
    code, out, err = said(*words)
    lines = [line for line in err.splitlines() if line.strip()]
    if code != WRONG_USAGE or out or "Traceback" in err or not err.rstrip().endswith("."):
        raise RoundFailed(f"{case.name} is not refused, but ended with {code}: {lines or out}")
    if left := [one.name for one in database.parent.glob(f"{database.name}*")]:
        raise RoundFailed(f"{case.name} is refused and leaves {left}")


def killed(words: list[str], database: Path, steps: int) -> bool:
    """Begin a replay and kill it behind so many steps; return whether it had not ended.

    It commits every few steps: those of a short replay would else be one transaction.
    """
    if not (child := os.fork()):
        defaults = SqlAuditLog.open.__kwdefaults__
        assert defaults is not None
        defaults["group_steps"] = KILLED_GROUP_STEPS
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            os._exit(invoke(words))
    while stored(database) < steps:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RoundFailed(f"a replay that was to be killed ended with {status}")
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return not asked(database, "SELECT 1 FROM v_runs WHERE ended_at IS NOT NULL")


def stored(database: Path) -> int:
    """Return how many steps the database has."""
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM steps").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # its tables are being made


ALIKE: Final = {
    "decisions": "SELECT instrument, open_time_ms, action, reason, allowed, refused_by, "
    "target_quantity FROM v_decisions ORDER BY sequence",
    "fills": "SELECT instrument, filled_ms, side, quantity_text, price_text, fee_text, reason "
    "FROM v_fills ORDER BY sequence, ordinal",
    "parts": "SELECT twin, instrument, filled_ms, side, quantity_text, price_text FROM "
    "v_twin_fills ORDER BY sequence, ordinal",
    "events": "SELECT kind, instrument, market_ms, content FROM v_events WHERE kind NOT IN "
    "('model_change', 'end') ORDER BY sequence",
    "equity": "SELECT equity_text, fees_paid_text, funding_paid_text FROM v_equity "
    "ORDER BY sequence DESC LIMIT 1",
}


def play(seed: int) -> str:
    """Play one round; return what was drawn. Raise ``RoundFailed`` with what is wrong."""
    with tempfile.TemporaryDirectory(prefix="backtests-") as place:
        folder = Path(place)
        case = drawn(seed, folder)
        (folder / "run.toml").write_text(toml(case.sections))
        os.chdir(folder)
        words = ["replay", "-c", "run.toml", *case.words, "--json"]
        why = [name for name, holds in REFUSED.items() if holds(case)]
        if why:
            check_refused(case, [*words, "--db", "whole.db"], folder / "whole.db")
            return f"{case.name}: refused, {why[0]}"
        whole, part = folder / "whole.db", folder / "part.db"
        must(*words, "--db", "whole.db")
        rng = random.Random(-seed)
        was_killed = killed(
            [*words, "--db", "part.db"], part, rng.randint(1, max(stored(whole) - 1, 1))
        )
        if was_killed:
            must("replay", *case.words[: words_of_data(case)], "--json", "--db", "part.db",
                 "--resume", "last")  # fmt: skip
        for name, query in ALIKE.items():
            one, two = asked(whole, query), asked(part, query)
            if one != two:
                at = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), -1)
                raise RoundFailed(
                    f"{case.name}: {name} differ after a kill, {len(one)} and {len(two)}, first "
                    f"{one[at] if one else None} and {two[at] if two else None}"
                )
        must("audit", "verify", "last", "--db", "part.db")
        must("verify", "last", "--db", "part.db")
        must("replay", "part.db#last", "--db", "again.db", "--json")
        must("parity", "part.db#last", "again.db#last")
        check_account(case, part)
        if "universe" in case.kinds:
            check_universe(part, case.name)
        fills = asked(part, "SELECT count(*) FROM v_fills")[0][0]
        bars = asked(part, "SELECT count(*) FROM v_decisions")[0][0]
        return f"{case.name}: {bars} bars, {fills} fills{', killed' if was_killed else ''}"


def words_of_data(case: Case) -> int:
    """Return how many words name files: a resumed run has the rest of its own record."""
    return case.words.index("--from") if "--from" in case.words else len(case.words)


# ---------------------------------------------------------------- the checker


def check_account(case: Case, database: Path) -> None:
    """Add up fills again: positions, fees, ledger, and the parts of several strategies."""
    if case.world != "shares":  # a split changes what is held without a fill, and shares pay else
        check_fills(database, case.name, is_hedged="hedge" in case.kinds)
    ((paid, cash),) = asked(
        database, "SELECT fees_paid_text, cash_text FROM v_equity ORDER BY sequence DESC LIMIT 1"
    )
    fees = sum(Decimal(fee) for (fee,) in asked(database, "SELECT fee_text FROM v_fills"))
    if Decimal(paid) != fees:
        raise RoundFailed(f"{case.name}: fees of {paid} were paid, and fills say {fees}")
    moved = Decimal(0)
    for amount, balance in asked(
        database, "SELECT amount_text, balance_text FROM v_ledger ORDER BY sequence, ordinal"
    ):
        moved += Decimal(amount)
        if moved != Decimal(balance):
            raise RoundFailed(f"{case.name}: the ledger says {balance} where it adds up to {moved}")
    if moved != Decimal(cash):
        raise RoundFailed(f"{case.name}: cash is {cash}, and the ledger adds up to {moved}")
    if "several" in case.kinds:
        named = [one for one in case.sections["strategies"].values() if isinstance(one, dict)]
        is_all = sum(Decimal(one["share"]) for one in named) == 1
        check_parts(database, case.name, is_all=is_all)
    if "hedge" in case.kinds:
        check_sides(database, case.name)


def seeds_of(kind: str, first: int, rounds: int) -> Iterator[int]:
    """Yield so many seeds from *first* on whose case is of *kind*; all where it is empty."""
    found = 0
    for seed in itertools.count(first):
        if found == rounds:
            return
        with tempfile.TemporaryDirectory(prefix="backtests-") as place:
            is_wanted = not kind or kind in drawn(seed, Path(place)).kinds
        if is_wanted:
            found += 1
            yield seed


def main() -> int:
    parser = argparse.ArgumentParser(description="Backtests of drawn configurations, killed.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="", help="only rounds that draw it, such as hedge")
    wanted = parser.parse_args()
    began, good, told = time.monotonic(), 0, Counter[str]()
    for seed in seeds_of(wanted.kind, wanted.seed, wanted.rounds):
        try:
            done = play(seed)
        except RoundFailed as failure:
            print(f"seed {seed}: FAILED, {failure}", flush=True)
            continue
        good += 1
        told[done.partition(":")[0]] += 1
        print(f"seed {seed}: {done}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{good} passed, {wanted.rounds - good} failed in {minutes:.1f} minutes, of {len(told)} "
        "kinds"
    )
    return 0 if good == wanted.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
