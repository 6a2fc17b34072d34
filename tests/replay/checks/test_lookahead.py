"""``lookahead`` says no: honest strategies pass, and every leak that people write is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks import lookahead as lookahead_module
from tracepaper.replay.checks.compare import CheckFinding
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import lookahead
from tracepaper.replay.checks.probes import Limits
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed

_NUMBERS = count()
FEW = Limits(probes=2)


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(160))


@pytest.fixture(scope="module")
def other() -> Candles:
    return replace(made_candles(walk_rows(160, seed=2)), symbol="ETHUSDT")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, walk: Candles) -> Iterator[FreshProcesses]:
    """Start children with a variable, and in a folder, that tell something of the walk."""
    folder = tmp_path_factory.mktemp("working")
    (folder / "future.flag").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OWN_FUTURE", str(int(walk.close[80])))
        patch.chdir(folder)
        with FreshProcesses() as server:
            patch.chdir(Path(__file__).parent)
            yield server


def configured(strategy: dict[str, Any], *candles: Candles) -> Config:
    return load(
        None,
        {
            "strategy": strategy,
            "sizing": {"mode": "fixed", "quantity": "1"},
            "market": {"symbols": [part.symbol for part in candles] or ["BTCUSDT"]},
        },
    )


class Checks:
    """Checks classes that are written into files of one folder."""

    def __init__(self, folder: Path, fresh: FreshProcesses, walk: Candles) -> None:
        self.folder = folder
        self._fresh, self._walk = fresh, walk
        self.limits = FEW

    def __call__(self, *candles: Candles, allow: str = "", **bodies: str) -> CheckFinding:
        name = f"own_{next(_NUMBERS)}"
        (self.folder / f"{name}.py").write_text(users.source(**bodies))
        given = candles or (self._walk,)
        config = configured({"name": f"{name}:Mine"}, *given)
        with users.importable(self.folder):
            return lookahead(config, MarketData(given), self._fresh, self.limits, allow=[allow])


@pytest.fixture
def check(tmp_path: Path, fresh: FreshProcesses, walk: Candles) -> Checks:
    hours = tmp_path / "hourly.csv"
    opens = walk.open_time_ms[::60].tolist()
    closes = walk.close[59::60].tolist()
    rows = [f"{at},{close}" for at, close in zip(opens, closes, strict=False)]
    hours.write_text("open_time,close\n" + "\n".join(rows))
    np.save(tmp_path / "closes.npy", walk.close)
    return Checks(tmp_path, fresh, walk)


# ---------------------------------------------------------------- honest ones pass

HONEST: list[dict[str, Any]] = [
    {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
    {"name": "persistence"},
]
FAIR: dict[str, dict[str, str]] = {
    "the last bar": {"decide": "return by(bar.close > bar.open)"},
    "a numpy indicator": {
        "top": "import numpy as np\nfrom collections import deque",
        "init": "self.seen = deque(maxlen=9)",
        "observe": "self.seen.append(bar.close)",
        "decide": "return by(bar.close > np.mean(self.seen))",
    },
    "a helper beside it": {
        "top": "import own_helper",
        "decide": "return by(own_helper.rises(bar))",
    },
    "polars without a file": {
        "top": "import polars",
        "decide": "return by(polars.Series([bar.open, bar.close]).mean() > bar.open)",
    },
    "a database in memory": {
        "top": "import sqlite3",
        "init": "self.table = sqlite3.connect(':memory:')",
        "decide": "rows = self.table.execute('SELECT ? > ?', (bar.close, bar.open))\n"
        "return by(rows.fetchone()[0])",
    },
    "history": {
        "init": "self.warmup = 9",
        "decide": "return by(now.close > now.history.close.mean())",
    },
    "declared columns, one of which is smoothed endlessly": {
        "top": "from tracepaper.strategies.indicators import ema, highest",
        "init": "self.warmup = 9",
        "columns": "return {'mean': ema(history.close, 4), 'high': highest(history.high, 9)}",
        "decide": "of = now.columns\nreturn by(2 * now.close > of['mean'][-1] + of['high'][-2])",
    },
    "a kept view of history and its base": {
        "top": "import numpy as np",
        "init": "self.warmup, self.kept = 9, None",
        "decide": "before, self.kept = self.kept, now.history.close\n"
        "return by(before is None or now.close > np.frombuffer(before.base)[-1])",
    },
}


@pytest.mark.parametrize("strategy", HONEST)
def test_a_strategy_of_ours_passes(
    strategy: dict[str, Any], walk: Candles, fresh: FreshProcesses
) -> None:
    finding = lookahead(configured(strategy), MarketData([walk]), fresh, Limits(probes=6))
    assert finding.passes, finding.differences
    assert finding.verdict == "nothing moved"
    assert (finding.probes, finding.bars, finding.without_later) == (6, 160, 160)
    assert finding.compared > 3 * 160
    assert finding.depends == finding.unproved == []


@pytest.mark.parametrize("name", FAIR)
def test_an_honest_class_passes(check: Checks, name: str) -> None:
    (check.folder / "own_helper.py").write_text("def rises(bar):\n    return bar.close > bar.open")
    finding = check(**FAIR[name])
    assert finding.passes, (finding.differences, finding.because, finding.opened)
    assert finding.without_later == finding.bars == 160
    assert finding.depends == []
    unheard = {"polars without a file": "polars", "a database in memory": "sqlite3"}
    words = "which files {} opened, since native code is not observed"
    texts = [words.format(unheard[name])] if name in unheard else []
    assert finding.unproved == texts


@pytest.mark.parametrize(
    "writes",
    ["now.history.close[-1] = 0", "now.history.close.setflags(write=True)", "now.close = 0"],
)
def test_a_class_that_writes_into_what_it_sees_is_ended_in_a_sentence(
    check: Checks, writes: str
) -> None:
    with pytest.raises(StrategyFailed, match=r"^Mine failed in decide with .* mend it"):
        check(decide=f"{writes}\nreturn by(True)")


# ---------------------------------------------------------------- what is read

JOINED = {
    "top": "import csv, pathlib",
    "init": "with pathlib.Path('{}/hourly.csv').open() as file:\n"
    "    self.hours = {int(r['open_time']): int(r['close']) for r in csv.DictReader(file)}",
    "decide": "hour = bar.open_time_ms // 3_600_000 * 3_600_000\n"
    "return by(self.hours.get(hour, 0) > bar.close)",
}
READ: dict[str, dict[str, str]] = {
    "hourly closes joined on their open time": JOINED,
    "a source file that it writes": {
        "init": "import pathlib\nmemo = pathlib.Path('{}/memo.py')\n"
        "if not memo.exists():\n    memo.write_text('KNOWN = {}')"
    },
    "a source that is imported, and read as well": {
        "top": "import own_helper",
        "init": "self.text = open('{}/own_helper.py').read()",
        "decide": "return by('#' in self.text)",
    },
    "a source by its loader": {
        "top": "import own_helper",
        "init": "self.text = own_helper.__loader__.get_source('own_helper')",
        "decide": "return by('#' in self.text)",
    },
}


@pytest.mark.parametrize("name", READ)
def test_a_class_that_opens_a_file_is_refused_and_the_file_named(check: Checks, name: str) -> None:
    (check.folder / "own_helper.py").write_text("# 103000 103500")
    (check.folder / "future.py").write_text("103000 103500")
    bodies = {part: text.replace("{}", str(check.folder)) for part, text in READ[name].items()}
    finding = check(**bodies)
    assert (finding.verdict, finding.passes) == ("read", False)
    assert len(finding.opened) == 1
    assert Path(finding.opened[0].name).parent == check.folder


TABLES = {
    "a list": "FUTURE = {}",
    "a tuple in a function": "def future():\n    return {}",
    "a docstring that is read": '"""{}"""\nFUTURE = __doc__',
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("is_in_source", [True, False])
def test_a_table_in_a_source_is_refused_and_named(
    check: Checks, walk: Candles, name: str, *, is_in_source: bool
) -> None:
    text = TABLES[name].format([int(close) for close in walk.close])
    if is_in_source:
        (check.folder / f"own_table_{len(name)}.py").write_text(text)
        text = f"import own_table_{len(name)}"
    finding = check(top=text, decide="return by(bar.close > bar.open)")
    assert (finding.verdict, finding.passes) == ("read", False)
    assert [item.what for item in finding.opened] == ["table"]
    assert "the strategy opens a table in " in finding.sentence()
    (allowed,) = (item.name for item in finding.opened)
    if is_in_source:
        assert check(allow=allowed, top=text, decide="return by(bar.close > bar.open)").passes


def test_a_small_table_a_docstring_and_a_warning_are_no_reading(check: Checks) -> None:
    hours = f'"""{"what it does " * 99}"""\nimport warnings\nHOURS = {list(range(24))}'
    (check.folder / "own_hours.py").write_text(hours)
    top = "import own_hours, warnings\nwarnings.simplefilter('always')"
    finding = check(top=top, init="warnings.warn('old')", decide="return by(bar.close > bar.open)")
    assert finding.passes, finding.sentence()


def test_the_c_library_is_refused_and_named(check: Checks) -> None:
    path = check.folder / "hourly.csv"
    finding = check(init=f"import ctypes\nctypes.CDLL(None).open({str(path)!r}.encode(), 0)")
    assert finding.verdict == "read"
    assert [(item.what, item.name) for item in finding.opened] == [("program", "ctypes.CDLL(None)")]


@pytest.mark.parametrize("allowed", ["hourly.csv", "."])
def test_what_is_allowed_is_not_refused_and_stays_unproved(check: Checks, allowed: str) -> None:
    bodies = {part: text.replace("{}", str(check.folder)) for part, text in JOINED.items()}
    finding = check(allow=str(check.folder / allowed), **bodies)
    assert finding.passes
    assert [Path(item.name).name for item in finding.allowed] == ["hourly.csv"]
    assert "whether what it was allowed to open tells the future" in finding.unproved[0]
    assert finding.depends[0].startswith("it depends on the date")


def test_a_declared_file_is_not_refused_and_stays_unproved(check: Checks) -> None:
    path = check.folder / "hourly.csv"
    bodies = {**JOINED, "init": JOINED["init"].replace("pathlib.Path('{}/hourly.csv')", "{}")}
    bodies["init"] = bodies["init"].replace("{}", "self.files['hourly.csv']", 1)
    finding = check(head="files = ('hourly.csv',)", **bodies)
    assert finding.passes, finding.sentence()
    assert finding.unproved == [f"whether its declared files tell the future: {path}"]


def test_another_file_than_the_declared_one_is_refused(check: Checks) -> None:
    bodies = {part: text.replace("{}", str(check.folder)) for part, text in JOINED.items()}
    checks = check(head="files = ('closes.npy',)", **bodies)
    assert checks.sentence().startswith(
        f"read: the strategy reads {check.folder}/hourly.csv, which `files` does not name; "
    )


# ---------------------------------------------------------------- what moves

FUTURE = "it depends on bars that are still to come"
CLOCK = "it depends on the machine's clock"
HASHES = "the order of a set of texts, which Python changes in each process"
WALK = """
frame = sys._getframe()
while frame is not None and 'replay' not in frame.f_locals:
    frame = frame.f_back
candles = None if frame is None else frame.f_locals['replay'].feed.candles[0]
"""
AHEAD = """
if candles is None:
    return by(False)
after = int((candles.open_time_ms <= bar.open_time_ms).sum()) + {}
return by(after < len(candles) and int(candles.close[after]) > bar.close)
"""
LEAKS: dict[str, tuple[str, dict[str, str]]] = {
    "a walk up the stack": (FUTURE, {"top": "import sys", "decide": WALK + AHEAD.format(0)}),
    "all objects": (
        FUTURE,
        {
            "top": "import gc",
            "decide": "found = [x for x in gc.get_objects() if type(x).__name__ == 'Candles']\n"
            "candles = max(found, key=len, default=None)" + AHEAD.format(0),
        },
    ),
    "a note of a bar to come": (
        FUTURE,
        {
            "top": "import sys",
            "decide": WALK + "after = 0 if candles is None else int(candles.close[-1])\n"
            "return Signal(Action.HOLD, 'so', note={'after': after})",
        },
    ),
    "a note of the time": (
        CLOCK,
        {
            "top": "import time",
            "decide": "return Signal(Action.HOLD, 'so', note={'day': time.time() // 86_400})",
        },
    ),
    "the second": (CLOCK, {"top": "import time", "decide": "return by(time.time() % 60 < 30)"}),
    "the time of its making": (
        CLOCK,
        {
            "top": "import time",
            "init": "self.day = int(time.time() // 86_400)",
            "decide": "return by((bar.close + self.day) % 7 < 3)",
        },
    ),
    "memory of earlier runs": (
        "it remembers earlier runs of its process",
        {
            "top": "KNOWN = {}\nLAST = [0]",
            "observe": "KNOWN[LAST[0]] = bar.close\nLAST[0] = bar.open_time_ms",
            "decide": "return by(KNOWN.get(bar.open_time_ms, 0) > bar.close)",
        },
    ),
    "an environment variable": (
        "it depends on the environment, OWN_FUTURE; pass",
        {
            "top": "import os",
            "decide": "return by(bar.close > int(os.environ.get('OWN_FUTURE', '0')))",
        },
    ),
    "an environment variable that must be there": (
        "it depends on the environment",
        {
            "top": "import os\nKNOWN = int(os.environ['OWN_FUTURE'])",
            "decide": "return by(bar.close > KNOWN)",
        },
    ),
    "the working folder": (
        "it depends on the working folder",
        {"top": "import os", "decide": "return by(os.path.exists('future.flag'))"},
    ),
    "the order of a set": (
        HASHES,
        {"decide": "return by(next(iter({f'{bar.close} up', f'{bar.close} down'})).endswith('p'))"},
    ),
    "an unseeded draw": (
        "two equal runs differ",
        {"top": "import random", "decide": "return by(random.random() < 0.5)"},
    ),
    "the bytes it was given at its import": (
        "two equal runs differ",
        {
            "top": "import os\nKEY = int.from_bytes(os.urandom(8))",
            "decide": "return by((bar.close + KEY) % 97 < 48)",
        },
    ),
}


def test_a_declared_column_that_looks_ahead_is_named_though_no_decision_moves(
    check: Checks,
) -> None:
    finding = check(
        top="import numpy as np",
        columns="later = np.append(history.close[1:], history.close[-1])\n"
        "return {'now': history.close, 'later': later}",
        decide="return by(now.columns['now'][-1] > 0)",
    )
    assert (finding.verdict, finding.because) == ("moved", FUTURE)
    assert finding.differences[0].field == "column 'later'"


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found_and_called_what_it_is(check: Checks, name: str) -> None:
    because, bodies = LEAKS[name]
    finding = check(**bodies)
    assert (finding.verdict, finding.passes) == ("moved", False)
    assert because in finding.because
    assert because == FUTURE or FUTURE not in finding.because
    assert finding.differences[0].instrument == "linear:BTCUSDT"


def test_a_variable_that_cannot_tell_is_allowed_by_its_name(check: Checks) -> None:
    bodies = {"top": "import os\nos.environ['OWN_FUTURE']", "decide": "return by(True)"}
    assert check(allow="OWN_FUTURE", **bodies).passes


def test_objects_that_share_one_state_are_told_apart_from_memory(
    check: Checks, walk: Candles, other: Candles
) -> None:
    checks = check(
        walk,
        other,
        init="type(self).last = 0",
        observe="self.before, type(self).last = type(self).last, bar.close",
        decide="return by(self.before % 1_000 > bar.close % 1_000)",
    )
    assert "its objects share something" in checks.because


def test_a_draw_for_each_of_two_symbols_is_told_apart_from_all_else(
    check: Checks, walk: Candles, other: Candles
) -> None:
    draws = check(walk, other, top="import random", decide="return by(random.random() < 0.5)")
    assert "two equal runs differ" in draws.because


PAIR_BY_GLOBAL = {
    "top": "LAST = {}",
    "decide": "LAST[bar.instrument] = bar\n"
    "other = LAST.get('linear:ETHUSDT' if 'BTC' in bar.instrument else 'linear:BTCUSDT')\n"
    "if other is None or other.open_time_ms != bar.open_time_ms:\n"
    "    return Signal(Action.HOLD, 'the other has not closed')\n"
    "return by(other.close % 1_000 > bar.close % 1_000)",
}


def test_a_pair_over_a_module_global_is_decided_otherwise_alone(
    check: Checks, walk: Candles, other: Candles
) -> None:
    finding = check(walk, other, **PAIR_BY_GLOBAL)
    assert finding.verdict == "moved"
    assert finding.because.endswith("let one PortfolioStrategy decide for all")


def test_a_class_that_only_holds_is_said_to_prove_nothing(check: Checks) -> None:
    finding = check(decide="return Signal(Action.HOLD, 'the other symbol is unknown')")
    assert finding.passes
    (sentence,) = finding.unproved
    assert sentence == (
        "anything of what it would do. The strategy asked for no position on 160 of 160 bars. Its "
        "reason on 160: the other symbol is unknown"
    )


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("rule", "on"),
    [
        ("bar.open_time_ms > 1_750_000_000_000", "on the date"),
        ("bar.close > 2_000_000", "on the absolute price"),
    ],
)
def test_what_a_decision_depends_on_is_named_and_not_refused(
    check: Checks, rule: str, on: str
) -> None:
    finding = check(decide=f"return by({rule})")
    assert finding.passes
    assert len(finding.depends) == 1
    assert f"it depends {on}, first at linear:BTCUSDT bar " in finding.depends[0]


def test_what_the_time_does_not_suffice_for_is_said(fresh: FreshProcesses, walk: Candles) -> None:
    finding = lookahead(configured(HONEST[0]), MarketData([walk]), fresh, Limits(seconds=0.0))
    assert not finding.passes
    assert finding.without_later == 0
    assert len(finding.unproved) == 6  # of one symbol the other probes have nothing to try
    assert all("the time was over" in sentence for sentence in finding.unproved)
    assert len(finding.unfinished) == 6
    assert finding.verdict == "nothing moved so far"
    assert finding.sentence() == (
        "not probed to the end: 0 of 160 bars decided without a later one, 0 of 12 futures "
        "corrupted or cut off, 0 steps compared, nothing moved so far; give more --seconds, or "
        "fewer --bars."
    )


def test_too_little_data_is_refused_with_a_sentence(fresh: FreshProcesses, walk: Candles) -> None:
    far = {"name": "sma_cross", "fast": 5, "slow": 400}
    with pytest.raises(ConfigInvalid, match="warm after 400 bars, and only 160 are given; give"):
        lookahead(configured(far), MarketData([walk]), fresh, FEW)


@pytest.mark.parametrize(
    ("decide", "words"),
    [
        ("raise ValueError('no')", "failed in decide"),
        ("exit(3)", "failed in decide with SystemExit"),
    ],
)
def test_a_class_that_fails_ends_the_check_with_its_sentence(
    check: Checks, decide: str, words: str
) -> None:
    with pytest.raises(StrategyFailed, match=words):
        check(decide=decide)
    assert check(decide="return by(bar.close > bar.open)").passes  # and the server goes on


HANGS = "import threading; threading.Event().wait()"


def test_a_class_that_hangs_does_not_hang_the_check(
    check: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookahead_module, "GRACE_S", 0.3)
    check.limits = Limits(seconds=0.2)
    with pytest.raises(StrategyFailed, match=r"did not get through a replay within 0\.2 s"):
        check(decide=HANGS)


def test_a_class_that_hangs_later_is_not_proved_to_the_end(
    check: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookahead_module, "GRACE_S", 0.3)
    check.limits = Limits(seconds=2.0)
    later = "self.seen = getattr(self, 'seen', 0) + 1; Mine.all = getattr(Mine, 'all', 0) + 1"
    finding = check(observe=f"{later}\nif Mine.all > 200: {HANGS}", decide="return by(True)")
    sentence = "a second run in one process: not probed to the end, the time was over"
    assert sentence in finding.unproved
    assert finding.verdict == "nothing moved so far"
    assert f"{finding.without_later} of 160 bars decided" in finding.sentence()


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(here: Path, walk: Candles, other: Candles) -> Iterator[Path]:
    """Write two files of candles, and a class that reads one of them; work there."""
    for part in (walk, other):
        columns = (part.open_time_ms, part.open, part.high, part.low, part.close, part.volume)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        lines = [",".join(map(str, row)) for row in rows]
        text = "open_time,open,high,low,close,volume\n" + "\n".join(lines) + "\n"
        (here / f"{part.symbol}.csv").write_text(text)
    reads = users.source(
        init="open('BTCUSDT.csv').close()", decide="return by(bar.close > bar.open)"
    )
    (here / "peeking.py").write_text(reads)
    (here / "peeking.toml").write_text('[strategy]\nname = "peeking:Mine"\n')
    with users.importable(here):
        yield here


BOTH = ["--data", "BTCUSDT.csv", "--data", "ETHUSDT.csv", "--probes", "1"]


def test_the_command_names_what_was_read_and_exits_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["lookahead", "-c", "peeking.toml", *BOTH]) == 1
    printed = capsys.readouterr().out
    assert f"reads {folder}/BTCUSDT.csv, which `files` does not name; declare the files" in printed
    assert "--allow-reading" in printed


def test_the_command_that_did_not_probe_all_exits_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two more interpreters alone take longer than the second."""
    (folder / "peeking.py").write_text(users.source(decide="return by(bar.close > bar.open)"))
    short = ["lookahead", "-c", "peeking.toml", *BOTH, "--seconds", "1", "--bars", "100"]
    assert invoke(short) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("lookahead: not probed to the end: ")
    assert "the 120 bars after the first 100; give more --bars." in printed
    assert invoke([*short, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passes"] is False
