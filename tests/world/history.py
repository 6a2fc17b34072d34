"""A history: lives of one daemon, one after another, until its data end; then the laws.

``history(spec, folder)`` plays one. What is broken is told as ``Violation``s; the laws about the
record are those of ``checker``, those about lives are here.
"""

from __future__ import annotations

import bisect
import contextlib
import gc
import io
import itertools
import math
import os
import random
import re
import shutil
import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Final, cast

import msgspec
from world.checker import Served, Truth, Violation, totals, violations
from world.disk import KILLED, Disk, installed
from world.life import OPEN_PHASES, PORT, STOP_WITHIN_S, Life, Report, Shared, renamed
from world.loop import START_S
from world.processes import FORK, in_child
from world.spec import (
    BEGIN_MS,
    INTERVALS,
    PAST_BARS,
    RENAMED,
    SYMBOLS,
    TICKS,
    Spec,
    calm,
    candles,
    configured,
    drawn,
    version_of,
)
from world.strategies import CLASSES, MENDED, RAISING

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.rotation import rotate
from tracepaper.daemon.session.run_row import code_version, preflight_engine
from tracepaper.replay.exchange.market import (
    RATE_DECIMALS,
    SimulatedMarket,
    funding_rate,
    next_funding_ms,
)
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import DataInvalid

LIVES_MOST: Final = 400
AGAIN_WITHIN_S: Final = 120.0
"""Network time from the last fault to the next decision, unless a longer pause was drawn."""
BACKUP: Final = "copied.db"
BETWEEN_SHARE: Final = 0.3
"""How often an operator does each thing between two lives."""
CALM_FILE: Final = "calm"
"""While it is there, classes that hang or leak do not."""
FILES_MOST: Final = 5
"""Files of an account beyond which an operator rotates no more."""
FILE_EVENTS: Final = frozenset({"os.link", "os.rename", "os.remove", "sqlite3.connect"})
OPERATIONS_MOST: Final = 12
"""A rotation has no more operations on files, each of which Python tells."""
FRAMES: Final = 2
"""Pushes and books that the exchange sends of a candle."""


class Outcome(msgspec.Struct):
    """What a history came to."""

    seed: int
    kind: str
    minutes: int
    lives: int = 0
    ends: dict[str, int] = {}
    counts: dict[str, int] = {}
    totals: dict[str, int] = {}
    violations: list[Violation] = []
    digest: str = ""
    cpu_s: float = 0.0
    again_s: list[float] = []
    """Network time from a start or a fault to the next decision, without a fault in between."""
    hit_while_open: bool = False
    """Whether a fault or a kill hit while a position, an order, a gap or a notice was open."""
    combinations: list[str] = []
    """Distinct law, fault and phase of life."""


class History:
    """One history in *folder*; *is_traced* writes each tick of its loops to ``trace``.

    It ends with the life that breaks the law *until*.
    """

    def __init__(
        self, spec: Spec, folder: Path, *, is_traced: bool = False, until: str = ""
    ) -> None:
        self.spec, self.folder, self.is_traced, self.until = spec, folder, is_traced, until
        self.outcome = Outcome(spec.seed, spec.kind, spec.minutes)
        self._configs = [configured(spec)]
        self._series = candles(spec)
        self._exchange = EmbeddedExchange(
            ExchangeSettings(
                candles=tuple(self._series),
                speed=spec.speed,
                start=PAST_BARS,
                port=PORT,
                seed=spec.seed,
                frames_per_candle=FRAMES,
            )
        )
        self._now_s, self._market_ms = START_S, spec.first_ms
        self._acknowledged = 0
        self._backed_up: tuple[int, list[str], int] | None = None
        self._reports: list[Report] = []
        self._ends: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._combinations: set[str] = set()
        self._keeps_name = False
        self._is_restored = False
        self._failed_run = ""  # the one that the class of the user ended

    @property
    def database(self) -> Path:
        """The record."""
        return self.folder / "run.db"

    @property
    def files(self) -> list[Path]:
        """The files of the account, oldest first; that of a cut rotation is the record itself."""
        dated = sorted(self.folder.glob("run.db.????-??-??*"))
        older = [file for file in dated if file.is_file() and not file.samefile(self.database)]
        return [*older, self.database]

    def play(self) -> Outcome:
        """Play all lives, hold the laws and return what came of it."""
        for name, source in CLASSES.items():
            (self.folder / f"{name}_drawn.py").write_text(source)
        before_s = _cpu_s()
        pauses = random.Random(f"{self.spec.seed}:pause")
        outcome = self.outcome
        while outcome.lives < LIVES_MOST:
            if self._market_ms >= self.spec.calm_ms:
                (self.folder / CALM_FILE).touch()
            if not self._live() or self._is_broken():
                break
            self._operate()
            self._now_s += pauses.expovariate(1 / 10) + 0.5
            self._market_ms += int(pauses.expovariate(1 / 2_000) * self.spec.speed)
        if not self._is_broken():
            self._judge()
        outcome.ends, outcome.counts = dict(self._ends), dict(self._counts)
        outcome.combinations = sorted(self._combinations)
        outcome.cpu_s = round(_cpu_s() - before_s, 2)
        outcome.digest = "".join(report.digest[:8] for report in self._reports)
        return outcome

    def _is_broken(self) -> bool:
        return self.until in {each.law for each in self.outcome.violations}

    def _violate(self, law: str, sentence: str) -> None:
        self.outcome.violations.append(Violation(law, sentence))

    # ------------------------------------------------------------ lives

    def _live(self) -> bool:
        """Let one life live; return whether another may follow."""
        shared, number = Shared(), self.outcome.lives
        if self._failed_run:
            (self.folder / "raising_drawn.py").write_text(MENDED)  # as the sentence asks
        shared.put(self._now_s, 0, self._market_ms)
        self.outcome.lives += 1
        code = _forked(lambda: self._life(number, shared).live())
        last = shared.get()
        self._now_s, self._market_ms = last.now_s, last.market_ms
        self._acknowledged = max(self._acknowledged, last.steps)
        self._hold_acknowledged(number)
        file = self.folder / f"life{number}.json"
        if code == KILLED:
            self._ends["killed"] += 1
            self._met(["acknowledged"], last.kill, last.phase)
            return True
        if code or not file.exists():
            self._violate("end", f"life {number} ended with exit code {code} without a report")
            return False
        report = msgspec.json.decode(file.read_bytes(), type=Report)
        self._reports.append(report)
        self._now_s, self._market_ms = report.now_s, max(self._market_ms, report.market_ms)
        self._counts.update(report.counts)
        laws = ["end", "recovery", *(("left", "unhandled", "stop") * (report.end == "orderly"))]
        for _, name, _, phase in report.faults:
            self._met(laws, name, phase)
        return self._hold_end(number, report) and not report.is_done

    def _met(self, laws: Sequence[str], fault: str, phase: str) -> None:
        """Note which laws were held after a *fault* in a *phase* of a life."""
        self.outcome.hit_while_open |= phase in OPEN_PHASES
        self._combinations.update(f"{law} {fault} {phase}" for law in (*laws, "record"))

    def _life(self, number: int, shared: Shared) -> Life:
        trace = (self.folder / "trace").open("a", buffering=1) if self.is_traced else None
        spec = msgspec.structs.replace(self.spec, config=self._configs[-1])
        return Life(
            spec, number, self._exchange, shared, self.folder,
            start_s=self._now_s, begin_ms=self._market_ms, trace=trace,
        )  # fmt: skip

    def _operate(self) -> None:
        """Do what an operator does between two lives: back up, restore, edit, rotate."""
        if self.spec.renamed_bar and self._market_ms >= self.spec.time_of(self.spec.renamed_bar):
            self._follow_name()
        if not self._acknowledged:
            return
        for name in self.spec.between:
            rng = random.Random(f"{self.spec.seed}:{name}:{self.outcome.lives}")
            if rng.random() < BETWEEN_SHARE:
                self._counts[f"between {name}"] += 1
                getattr(self, f"_{name}")()

    def _backup(self) -> None:
        """Back up the record, and what was answered until then."""
        copied = self.folder / BACKUP
        copied.unlink(missing_ok=True)
        self._command("db", "backup", str(copied))
        self._backed_up = self._acknowledged, self._lines("answered"), len(self.files)

    def _restore(self) -> None:
        """Put the last backup in the record's place, as an operator does: alone.

        One from before a rotation is another account's beginning.
        """
        if self._backed_up is None or self._backed_up[2] != len(self.files):
            return
        for ending in ("", "-wal", "-shm", ".lock"):
            self.database.with_name(f"run.db{ending}").unlink(missing_ok=True)
        shutil.copy(self.folder / BACKUP, self.database)
        self._acknowledged, answered, _ = self._backed_up
        (self.folder / "answered").write_text("".join(f"{line}\n" for line in answered))
        self._is_restored = True

    def _rotate(self) -> None:
        """Let the account go on in a new file, in a process that half the time is killed at it."""
        rng = random.Random(f"{self.spec.seed}:rotated:{self.outcome.lives}")
        killed_at = rng.randrange(OPERATIONS_MOST) if rng.random() < 0.5 else -1
        if len(self.files) < FILES_MOST and _column([self.database], "SELECT run_id FROM runs"):
            code = _forked(lambda: _rotated(self.database, killed_at))
            if code not in {0, KILLED} or not self.database.exists():
                self._violate("between", f"a rotation ended with {code}")

    def _edit(self) -> None:
        """Change the configuration: the quantity of an order, and the stop where there is one."""
        rng = random.Random(f"{self.spec.seed}:edited:{self.outcome.lives}")
        config = dict(self._configs[-1])
        quantity = Decimal(self.spec.config["sizing"]["quantity"]) * rng.choice((1, 2, 3))
        config["sizing"] = {**config["sizing"], "quantity": str(quantity)}
        if "stop_loss" in config.get("exits", {}):
            config["exits"] = {**config["exits"], "stop_loss": rng.choice(("0.5%", "1%", "2%"))}
        self._configs.append(config)

    def _follow_name(self) -> None:
        """Configure the later name of a symbol that was renamed."""
        config = self._configs[-1]
        symbols = [RENAMED if name == SYMBOLS[1] else name for name in config["market"]["symbols"]]
        if symbols != config["market"]["symbols"] and not self._keeps_name:
            self._configs.append({**config, "market": {**config["market"], "symbols": symbols}})

    def _newer(self) -> None:
        """Let the record be one of a later version, which a start must refuse and leave alone."""
        if problem := in_child(lambda: _refused_as_newer(self.database)):
            self._violate("newer", problem)

    def _command(self, *command: str) -> None:
        """Run a command of the product, which must succeed."""
        code, output = in_child(lambda: _run_command([*command, "--db", str(self.database)]))
        if code:
            self._violate("between", f"{' '.join(command)} ended with {code}: {output[-300:]}")

    def _hold_acknowledged(self, number: int) -> None:
        """Law: what was acknowledged is in the file at the next start."""
        if not self._acknowledged:
            return
        stored = max(map(_stored_steps, self.files))
        if stored < self._acknowledged:
            sentence = f"{stored} steps in the file, {self._acknowledged} acknowledged"
            self._violate("acknowledged", f"life {number}: {sentence}")

    def _hold_end(self, number: int, report: Report) -> bool:
        """Laws: a life ends by a stop or one sentence, and an orderly end leaves nothing behind."""
        name = report.end.partition(":")[0]
        self._ends[name] += 1
        for left in report.left:
            self._violate("left", f"life {number}: {left}")
        for context in report.unhandled:
            self._violate("unhandled", f"life {number}: {context}")
        for law, sentence in report.broken:
            self._violate(law, f"life {number}: {sentence}")
        if report.stop_s > STOP_WITHIN_S:
            self._violate("stop", f"life {number}: the stop took {report.stop_s:.1f} s")
        if any(word in report.end for word in ("CRASH", "STUCK", "WORLD", "cancelled")):
            self._violate("end", f"life {number}: {report.end} {report.trace}")
            return False
        if name == "StrategyFailed" and self.spec.kind == "raising":
            self._failed_run = self._lines("opened")[-1].split()[1]
            return True
        is_open = self.spec.renamed_bar and "an account keeps its symbols" in report.end
        if is_open:
            self._configs.pop()  # the position has the old name, which stays for good
            self._keeps_name = True
        # Without a file left to open a life ends as well; the next one has one.
        is_leaking = report.end != "orderly" and "leaking" in self.spec.traits
        if (is_leaking and "CRASH" not in report.end) or is_open:
            return True
        is_gone = self.spec.gone_bar or self.spec.renamed_bar
        if is_gone and "trades no linear instrument" in report.end and not self._acknowledged:
            # It had no run yet: nothing can follow, or what the operator configures anew.
            return bool(self.spec.renamed_bar)
        if report.end != "orderly" and not report.errors_met and not report.faults:
            self._violate("end", f"life {number} without a fault: {report.end}")
            return False
        self._hold_recovery(number, report)
        return True

    def _hold_recovery(self, number: int, report: Report) -> None:
        """Law: after the last fault the next bar is decided in time; a start counts as one."""
        struck = [(report.start_s, "the start", report.start_s, "starting"), *report.faults]
        ends = [*(at_s for at_s, *_ in struck[1:]), report.now_s]
        for (at_s, name, explained_s, _), until_s in zip(struck, ends, strict=True):
            first = bisect.bisect_right(report.decided_s, at_s)
            decided_s = [*report.decided_s, math.inf][first]
            if decided_s <= until_s:
                self.outcome.again_s.append(round(decided_s - at_s, 2))
            waited_s = min(decided_s, until_s) - max(at_s, explained_s)
            if waited_s > AGAIN_WITHIN_S:
                sentence = f"nothing was decided for {waited_s:.0f} s after {name} at {at_s:.1f}"
                self._violate("recovery", f"life {number}: {sentence}")

    # ------------------------------------------------------------ the record

    def _judge(self) -> None:
        if self.database.exists():
            for file in self.files:
                in_child(partial(_add_views, file))
            if self.spec.kind == "raising" and in_child(lambda: _classes(self.files)) == 1:
                # It was mended, and no run began since: the last one is derived by its own class.
                (self.folder / "raising_drawn.py").write_text(RAISING)
            truth = self._truth()
            runs = in_child(lambda: _column(self.files, "SELECT run_id FROM runs ORDER BY run_key"))
            if self._failed_run and self._failed_run == runs[-1]:  # no mended class ran
                (self.folder / "raising_drawn.py").write_text(CLASSES["raising"])
            broken, self.outcome.totals = in_child(lambda: _verdict(self.files, truth))
            self.outcome.violations += broken
            self._hold_runs()
            self._hold_account()
            self._hold_notices()
        else:
            self._violate("record", "no database was made")

    def _hold_runs(self) -> None:
        """Law: a run goes on where version, configuration and class are as before; else never.

        The last run of a file that was rotated ends with it.
        """
        last = "SELECT run_id FROM runs ORDER BY run_key DESC LIMIT 1"
        stored = in_child(lambda: _column(self.files, "SELECT run_id FROM v_runs"))
        ended = in_child(lambda: _column(self.files[:-1], last))
        opened = [line.split() for line in self._lines("opened")]
        for number, run_id, version, *_ in opened:
            wanted = version_of(self.spec, int(number))
            if wanted and version != wanted:
                self._violate("versions", f"life {number} of {wanted} opened {run_id} of {version}")
        for (_, before, *old), (number, after, *new) in itertools.pairwise(opened):
            is_rotated = before in ended and old == new
            if before in stored and not is_rotated and (before == after) != (old == new):
                changed = "the same" if old == new else "another"
                sentence = f"life {number} opened {after} after {before}, by {changed} input"
                self._violate("versions", sentence)

    def _hold_account(self) -> None:
        """Law: a run goes on with the account of the one before, unless its symbols are others."""
        query = "SELECT json_array(run_id, parent_run_id, config, step_count) FROM v_runs"
        runs = [msgspec.json.decode(row) for row in in_child(lambda: _column(self.files, query))]
        symbols = {run: msgspec.json.decode(config)["market"] for run, _, config, _ in runs}
        for (before, _, _, steps), (run, parent, _, _) in itertools.pairwise(runs):
            if steps and parent != before and symbols[run] == symbols[before]:
                self._violate("account", f"run {run} goes on with {parent}, not with {before}")

    def _hold_notices(self) -> None:
        """Law: a command is told at most once, and only if it is stored."""
        told = Counter(self._lines("told"))
        for note, count in told.items():
            if count > 1:
                self._violate("notices", f"{note} was told {count} times")
        if told and not self._is_restored:
            stored = in_child(lambda: _column(self.files, "SELECT note FROM v_commands"))
            for note in told.keys() - set(stored):
                self._violate("notices", f"{note} was told and is not stored")

    def _truth(self) -> Truth:
        """Return what the exchange served and what the daemon answered, for the checker."""
        markets = [*self._exchange.venue.markets.values()]
        if self.spec.renamed_bar:
            markets.append(renamed(self._exchange))
        ticks = {}
        if self.spec.filters_bar:
            times = 0, self.spec.time_of(self.spec.filters_bar)
            served = [(at, Decimal(tick).scaleb(-2)) for at, tick in zip(times, TICKS, strict=True)]
            ticks[f"linear:{SYMBOLS[0]}"] = served
        instruments = {f"linear:{market.symbol}": served_by(market) for market in markets}
        if (second := f"linear:{SYMBOLS[1]}") in instruments:
            instruments[second] = instruments[second]._replace(until_ms=self.spec.gone_ms)
        return Truth(
            ticks=ticks,
            may_fail="process" in self.spec.host,
            configs=self._configs,
            instruments=instruments,
            answered=[(note, kind) for note, kind in map(str.split, self._lines("answered"))],
            sent=self._lines("sent"),
            altered=Altered(frozenset(map(int, self._lines("altered"))), self.spec.interval_ms),
        )

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().split("\n")[:-1] if file.exists() else []


class Altered(Container[tuple[str, int]]):
    """The candles around a time at which the exchange served one wrongly."""

    def __init__(self, struck_ms: frozenset[int], interval_ms: int) -> None:
        self._struck_ms, self._interval_ms = sorted(struck_ms), interval_ms

    def __contains__(self, candle: object) -> bool:
        _, open_ms = cast("tuple[str, int]", candle)
        near_ms = 3 * self._interval_ms
        first = bisect.bisect_left(self._struck_ms, open_ms - near_ms)
        return first < len(self._struck_ms) and self._struck_ms[first] <= open_ms + near_ms


def served_by(market: SimulatedMarket) -> Served:
    """Return the candles and settlements of *market*."""
    base = market.base
    columns = (base.open, base.high, base.low, base.close)
    prices = [
        [Decimal(int(price)).scaleb(-base.price_decimals) for price in each] for each in columns
    ]
    volumes = [Decimal(int(each)).scaleb(-base.volume_decimals) for each in base.volume]
    candles_ = dict(
        zip(map(int, base.open_time_ms), zip(*prices, volumes, strict=True), strict=True)
    )
    settled: dict[int, Decimal] = {}
    at_ms = next_funding_ms(
        market, min(BEGIN_MS, *candles_) - 1
    )  # also of a symbol that is listed later
    while at_ms <= max(candles_) + base.interval_ms:
        settled[at_ms] = Decimal(funding_rate(market, at_ms)).scaleb(-RATE_DECIMALS)
        at_ms = next_funding_ms(market, at_ms)
    return Served(base.interval_ms, candles_, settled)


def _verdict(files: Sequence[Path], truth: Truth) -> tuple[list[Violation], dict[str, int]]:
    """Return what the checker and the product's own checks refuse, and counts of the record."""
    broken, counts = violations(files, truth), totals(files)
    database = files[-1]
    newest = "(SELECT run_id FROM runs ORDER BY run_key DESC LIMIT 1)"
    decided = _column([database], f"SELECT 1 FROM v_decisions WHERE run_id = {newest} LIMIT 1")
    own = [("audit", "verify", "last"), ("verify", "last")] if decided else []
    commands = [(*command, "--db", str(database)) for command in own]
    if len(chain := _of_newest_account(files)) > 1:
        commands.append(("audit", "verify", *map(str, chain)))
    for command in commands:
        code, output = _run_command([*command])
        if code:
            broken.append(Violation(" ".join(command[:2]), f"exit code {code}: {output[-600:]}"))
    if decided:
        broken += _replayed(database)
    return broken, counts


def _of_newest_account(files: Sequence[Path]) -> list[Path]:
    """Return the last of *files*: other symbols begin an account, whose run follows none."""
    first = "SELECT run_id FROM runs WHERE parent_run_id IS NULL"
    begun = [place for place, file in enumerate(files) if place and _column([file], first)]
    return [*files[max(begun, default=0) :]]


def _replayed(database: Path) -> list[Violation]:
    """Return whether a replay of the record comes to other decisions."""
    again = database.with_name("again.db")
    for command in (
        ("replay", "--data", f"{database}#last", "--db", str(again), "--json"),
        ("parity", f"{database}#last", f"{again}#last"),
    ):
        code, output = _run_command([*command])
        if code:
            return [Violation(command[0], f"exit code {code}: {output[-600:]}")]
    return []


def _add_views(database: Path) -> None:
    """Give a record the views that its lives may have left out, which the checks read."""
    with closing(sqlite3.connect(database)) as connection:
        made = {kind for (kind,) in connection.execute("SELECT type FROM sqlite_schema")}
        if "table" in made and "view" not in made:
            for view in VIEWS:
                connection.execute(view.sql)


def _run_command(arguments: list[str]) -> tuple[int, str]:
    """Run a command of the product in this process; return its exit code and what it printed."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            code = invoke(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    return code, output.getvalue()


def _refused_as_newer(database: Path) -> str:
    """Return how a start did not refuse a record of a later version; empty if it did."""

    def number(more: int) -> None:
        with closing(sqlite3.connect(database)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {version + more}")

    number(1)
    before = database.read_bytes()
    try:
        open_writer(database).close()
    except DataInvalid as error:
        is_named = "version" in str(error) or "newer" in str(error)
        problem = "" if is_named else f"it answered: {error}"
    else:
        problem = "it was opened"
    if not problem and database.read_bytes() != before:
        problem = "it was refused, and changed"
    number(-1)
    return problem


def _column(files: Sequence[Path], query: str) -> list[str]:
    """Return what *query* finds in each of *files*."""
    found: list[str] = []
    for file in files:
        with closing(sqlite3.connect(file)) as connection:
            found += [each for (each,) in connection.execute(query)]
    return found


def _stored_steps(database: Path) -> int:
    """Return the steps of the longest run; the log of a life stays for the next one to recover.

    The connection is closed before the next fork: SQLite's locks belong to a process.
    """
    if not database.exists():
        return 0
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            query = "SELECT coalesce(max(step_count), 0) FROM runs"
            return int(connection.execute(query).fetchone()[0])
        except sqlite3.OperationalError:  # the tables were not made yet
            return 0


def _classes(files: Sequence[Path]) -> int:
    return len({*_column(files, "SELECT strategy_sha256 FROM v_runs")})


def _rotated(database: Path, killed_at: int) -> None:
    """Rotate *database*; die before the file operation *killed_at* of it, and end this process."""
    operations = itertools.count()

    def die(event: str, arguments: tuple[object, ...]) -> None:
        is_sync = event == "open" and arguments[0] == str(database.parent)
        is_operation = event in FILE_EVENTS and str(database) in str(arguments[0])
        if (is_operation or is_sync) and next(operations) == killed_at:
            os._exit(KILLED)

    sys.addaudithook(die)
    try:
        rotate(database)
    except DataInvalid as error:
        if (offered := re.search(r"db rotate (\S+)`", str(error))) is None:
            raise
        rotate(database, Path(offered[1]))
    os._exit(0)


# ---------------------------------------------------------------- processes


def _forked(work: Callable[[], object]) -> int:
    """Do *work* in a forked child and return its exit code."""
    sys.stdout.flush()
    pid = FORK()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent tells of it
            traceback.print_exc()
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def prepare(folder: Path) -> None:
    """Do once, in this process, what each life would do again: a fork then shares it.

    That is to import, which a daemon without faults tells, to read the cards of models and the
    sources, and to make a strategy.
    """
    short = calm(drawn(0, bars=3, kind="plain", minutes=60))

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder), installed(Disk()):
        short_history = History(short, folder)
        short_history._life(0, Shared()).run()
        _verdict([folder / "run.db"], short_history._truth())
    shutil.rmtree(folder)
    for minutes in INTERVALS:
        preflight_engine(load(drawn(0, kind="plain", minutes=minutes).config), None)
    code_version()
    gc.freeze()


def history(spec: Spec, folder: Path, *, is_traced: bool = False, until: str = "") -> Outcome:
    """Play *spec* in a new *folder*, which stays where a law was broken or ticks are traced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.chdir(folder):
        outcome = History(spec, folder, is_traced=is_traced, until=until).play()
    if not outcome.violations and not is_traced:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
