"""Order books beside candles as people give them: typed, from Python, in a sweep, and wrongly."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_strategies as users
from depth_cases import FIRST_MS, walk, write
from msgspec import structs

from tracepaper import ConfigInvalid, backtest, sweep
from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.run import Watch
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.sweep.executor import InThisProcess
from tracepaper.strategies.types.market import Depth

MINUTE_MS = 60_000
BARS = 40
DECIDE = """
books = now.depth
if books is None:
    return Signal(Action.HOLD, 'no book')
seen = {'last_ms': float(books.seen_ms[-1]), 'count': float(len(books))}
heavier = books.size[:, 0, 0].sum() > self.share * books.size[:, 1, 0].sum()
return Signal(Action.LONG if heavier else Action.FLAT, 'as the books stand', note=seen)
"""
SIZED = {
    "sizing": {"mode": "fixed", "quantity": "0.1"},
    "account": {"cash": "1000000"},
    "model": {"checkpoint": "none"},
}


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("books") / "btc.depth"
    write(path, walk(60 * BARS + 1, first_ms=FIRST_MS))
    return path


@pytest.fixture
def place(tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with candles, their books, a strategy and its configuration."""
    rng = np.random.default_rng(1)
    close = 65_000 + rng.integers(-50, 50, BARS + 1).cumsum()
    lines = ["open_time,open,high,low,close,volume"]
    for row in range(BARS):
        first, last = int(close[row]), int(close[row + 1])
        lines.append(
            f"{FIRST_MS + row * MINUTE_MS},{first},{max(first, last)},{min(first, last)},{last},1.5"
        )
    (tmp_path / "BTCUSDT-1m.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(books, tmp_path / "btc.depth")
    (tmp_path / "by_books.py").write_text(
        users.source(
            head="books = 100\n    warmup = 1",
            init="self.share = options.get('share', 1)",
            decide=DECIDE,
        )
    )
    (tmp_path / "run.toml").write_text(
        '[strategy]\nname = "by_books:Mine"\n[sizing]\nmode = "fixed"\nquantity = "0.1"\n'
        '[account]\ncash = "1000000"\n[model]\ncheckpoint = "none"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "trials.db"))
    return tmp_path


def typed(place: Path, *words: str) -> int:
    with users.importable(place):
        return invoke([*words])


REPLAY = ("replay", "BTCUSDT-1m.csv", "-c", "run.toml")


def test_the_typed_command_and_the_call_make_the_same_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(place, *REPLAY, "--depth", "btc.depth", "--db", "a.db", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert typed(place, "verify", "last", "--db", "a.db") == 0
    with users.importable(place):
        run = backtest(
            "by_books:Mine", "BTCUSDT-1m.csv", config=SIZED, depth="btc.depth", db="b.db"
        )
        again = backtest(
            "by_books:Mine", "BTCUSDT-1m.csv", config=SIZED, depth=[Path("btc.depth")], db="c.db"
        )
    assert document["bars"] == BARS
    assert typed(place, "parity", "a.db#last", "b.db#last") == 0
    assert list(run.decisions["action"]) == list(again.decisions["action"])
    assert set(run.decisions["action"]) == {"LONG", "FLAT"}
    noted = run.notes
    last = [
        row for row, name in zip(noted["number"], noted["name"], strict=True) if name == "last_ms"
    ]
    assert last == [FIRST_MS + (bar + 1) * MINUTE_MS for bar in range(BARS)]


def test_what_is_read_by_blocks_is_what_is_read_whole(place: Path) -> None:
    write(place / "btc.depth", walk(70, seed=3, first_ms=FIRST_MS + 50 * MINUTE_MS), cause="stale")
    whole, stored = read_depth(place / "btc.depth"), read_depth(place / "btc.depth")
    assert stored.times.tolist() == whole.times.tolist()
    assert (stored.starts.tolist(), stored.causes) == (whole.starts.tolist(), whole.causes)
    assert stored.units == whole.units
    stored = pickle.loads(pickle.dumps(stored))  # as the processes of a sweep are handed it
    rng = np.random.default_rng(2)
    for start, length in rng.integers(0, 150, (50, 2)).tolist():
        stop = min(start + length + 1, len(whole.read_all()))
        part, two = stored.part(start, stop), whole.part(start, stop)
        assert (part.price == two.price).all()
        assert (part.size == two.size).all()
        assert part.market_ms.tolist() == two.market_ms.tolist()


def test_what_divides_all_prices_is_of_all_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.depth"
    write(path, walk(64))
    coarse = [
        book([(10 * row, 10)], [(10 * row + 10, 20)], seen_ms=FIRST_MS + (63 + row) * 1_000)
        for row in range(1, 65)
    ]
    write(path, coarse, cause="stale")
    assert read_depth(path).units == read_depth(path).units == (1, 1)


def test_a_sweep_takes_books_and_goes_on_with_the_same_ones_alone(place: Path) -> None:
    def swept(**named: Any) -> Any:
        return sweep(
            "by_books:Mine",
            "BTCUSDT-1m.csv",
            {"share": [0.9, 1.1]},
            "return",
            config=SIZED,
            executor=InThisProcess(),
            state="sweep.db",
            **named,
        )

    with users.importable(place):
        trials = swept(depth="btc.depth")
        assert [cell.error for cell in trials.cells] == ["", ""]
        assert trials.cells[0].config_sha256 != trials.cells[1].config_sha256
        assert "--depth btc.depth" in str(trials.command)
        best = trials.best_run("best.db")
        assert "as the books stand" in set(best.decisions["reason"])
        assert [cell.value for cell in swept(depth="btc.depth").cells] == [
            cell.value for cell in trials.cells
        ]
        write(place / "other.depth", walk(60 * BARS, seed=5, first_ms=FIRST_MS))
        with pytest.raises(ConfigInvalid, match=r"holds a sweep with another depth; name another"):
            swept(depth="other.depth")
        with pytest.raises(ConfigInvalid, match=r"holds a sweep with another depth; name another"):
            swept()


def stopped_after(bars: int) -> Watch:
    number = count(1)
    return Watch(stopped=lambda: next(number) > bars)


def test_a_stopped_run_goes_on_with_its_books_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 1)
    given: dict[str, Any] = {"candles": ("BTCUSDT-1m.csv",), "config": Path("run.toml")}
    with users.importable(place):
        whole = RunSpec(depth=(Path("btc.depth"),), database=place / "a.db", **given)
        stopped = make_run(whole, stopped_after(30))
        assert not stopped.tally.finished
        plain = RunSpec(
            **given | {"config": {"strategy": {"name": "sma_cross"}}}, database=place / "plain.db"
        )
        assert not make_run(plain, stopped_after(30)).tally.finished
    assert typed(place, *REPLAY, "--resume", "last", "--db", "a.db") == 2
    assert "was made with order books; give the same --depth." in capsys.readouterr().err
    depth = ("--depth", "btc.depth")
    assert typed(place, "replay", "BTCUSDT-1m.csv", "--resume", "last", *depth, "--db", "plain.db")
    assert "was made without order books; leave --depth out." in capsys.readouterr().err
    assert typed(place, *REPLAY, "--resume", "last", *depth, "--db", "a.db") == 0
    assert typed(place, "verify", "last", "--db", "a.db") == 0
    assert typed(place, *REPLAY, *depth, "--db", "whole.db") == 0
    query = "SELECT name, number, text FROM v_notes ORDER BY sequence, name"
    with closing(sqlite3.connect("a.db")) as cut_db, closing(sqlite3.connect("whole.db")) as two:
        resumed = cut_db.execute(query).fetchall()
        assert resumed == two.execute(query).fetchall()
        assert len(resumed) >= BARS


def of_another_time(place: Path) -> None:
    write(place / "bad", walk(600, first_ms=FIRST_MS + 60 * BARS * MINUTE_MS))


def without_books(place: Path) -> None:
    write(place / "bad", ())


def damaged(place: Path) -> None:
    whole = (place / "btc.depth").read_bytes()
    (place / "bad").write_bytes(whole[:2_000] + b"\0\0\0\0" + whole[2_004:])


def no_depth(place: Path) -> None:
    (place / "bad").write_bytes(gzip.compress(b"open_time,open\n"))


def nothing(_place: Path) -> None:
    return


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "another time": (of_another_time, "give books and candles of one time"),
    "no books": (without_books, "holds no books yet; record some by"),
    "damage": (damaged, "is damaged between its bytes"),
    "no file of books": (no_depth, "is no file of `tracepaper data record`; name another"),
    "no file": (nothing, "cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_books_that_do_not_fit_are_one_sentence_and_leave_nothing(
    place: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, sentence = WRONG[kind]
    plant(place)
    assert typed(place, *REPLAY, "--depth", "bad", "--db", "a.db") == 1
    error = capsys.readouterr().err
    assert sentence in " ".join(error.split())
    assert "Traceback" not in error
    assert not (place / "a.db").exists()


def test_what_is_given_twice_or_in_the_wrong_place_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = ("--depth", "btc.depth")
    assert typed(place, *REPLAY, *depth, "--db", "a.db") == 0
    sentences = {
        ("replay", "--data", "a.db#last", *depth, "--db", "b.db"): "leave --depth out",
        (*REPLAY, *depth, *depth, "--db", "b.db"): "--depth names two files of linear:BTCUSDT",
        (*REPLAY, *depth, "--from", "2025-01-01T00:50:00Z", "--db", "b.db"): "No bar opens from",
        (*REPLAY, "--db", "b.db"): "by_books:Mine reads order books, and market.depth is 0",
    }
    for words, sentence in sentences.items():
        capsys.readouterr()
        assert typed(place, *words) != 0, words
        assert sentence in " ".join(capsys.readouterr().err.split()), words
    wrong: list[Any] = [3, [3], {"BTCUSDT": "btc.depth"}]
    for given in wrong:
        with pytest.raises(ConfigInvalid, match=r"depth is .*; give the path of a file, or a list"):
            backtest("sma_cross", "BTCUSDT-1m.csv", depth=given)


def book(bids: list[tuple[int, int]], asks: list[tuple[int, int]], **keys: int) -> Depth:
    (node,) = walk(1, first_ms=FIRST_MS + MINUTE_MS)
    flat = [np.array(side, dtype="<i8").tobytes() for side in (bids, asks)]
    return structs.replace(node, bids=flat[0], asks=flat[1], **keys)
