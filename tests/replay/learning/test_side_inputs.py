"""Side inputs of networks: covariates, order books, and another symbol's bars.

Each is a scene: a small network that was trained by it, and a run. What holds of all is asked of
every scene; what is of one alone stands below. Covariates say the next half hour's volatility
beforehand; of order books the second to the fifth level lean as it will be, the others are noise.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import book_modality_cases as book_cases
import numpy as np
import other_symbol_cases as other_cases
import pytest
import stock_files
from book_modality_cases import ENDS, EVERY_MS, LEVELS, SPLIT, leans, write_books
from killed_replays import killed, resumed
from learning import MINUTE_MS, START_MS, Say, choose, learnable, write_csv
from other_symbol_cases import LEADER, LED, closes
from recordings import record
from records import run_again

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.config.loading import load as load_config
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    Worker,
    WorkerPredictor,
    drive,
    gathered,
)
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_row import continues, start_event
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import ScanPredictor
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.learning.dataset import Dataset, joined_to, read_files
from tracepaper.replay.learning.recipe import kind_of, recipe_of
from tracepaper.replay.learning.recipe_data import DataRequest, read_dataset
from tracepaper.replay.learning.side_inputs import BookInputs, CovariateInputs
from tracepaper.replay.learning.splits import Part, Segment, Split, segments_of
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.checkpoints import Checkpoint, load
from tracepaper.storage.covariates import kept_covariates, read_covariates
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.book_features import RunBooks, reading_of
from tracepaper.strategies.covariates import (
    CovariateColumns,
    CovariateScale,
    FixedCovariates,
    rows_of,
    run_source,
)
from tracepaper.strategies.features.rows import (
    FeatureStreams,
    columns,
    compute,
    schema,
    with_covariates,
)
from tracepaper.strategies.forecasters.build import build as forecaster_of
from tracepaper.strategies.order_book import Books
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Event

pytestmark = pytest.mark.sockets

COUNT, SHORT, MANY = book_cases.COUNT, 640, 12_000  # bars that train, of a run, of eight days
FIRST = 700  # the first bar that any covariate is known at
HOLE = (600, 605)  # bars without a book, or without the leader's bar
AT = START_MS + MINUTE_MS * np.arange(FIRST, COUNT, 7) + 30_000
NUMBERS = np.random.default_rng(5).normal(size=(len(AT), 2)) * (1.0, 900.0)
CSV = f"bybit_linear_{LED}_1m.csv.gz"
GATES = choose("strategy.name=attention", "gate.edge=0.001")
FEW = choose("evaluation.explained_bars=500", "evaluation.threads=1")


def written(path: Path, names: Sequence[str] = ("mood", "heat"), *, changed_after: int = 0) -> Path:
    """Write the covariates with columns in any order; values after a given time differ."""
    series: dict[str, Any] = {"mood": NUMBERS[:, 0], "heat": NUMBERS[:, 1]}
    rows = [",".join(("time", *names))]
    for place, at in enumerate(AT.tolist()):
        is_other = changed_after and at > changed_after
        cells = (repr(9.0 if is_other else float(series[name][place])) for name in names)
        rows.append(",".join([str(at), *cells]))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Scene:
    """A network with side inputs, in a folder with all its files."""

    name: str
    folder: Path
    candles: dict[str, Candles]
    """The training bars by symbol."""
    options: tuple[object, ...]
    """The options that name its files for ``train`` and ``evaluate``."""
    warm: int
    """Bars of a run before the first answer."""
    lacks: Sequence[int]
    """Bars of a run that lack side inputs."""
    bars: int = SHORT
    """Of a run."""

    def data(self, *symbols: str, folder: Path | None = None) -> list[object]:
        """Return the options that name candle files, by default of all symbols."""
        root = self.folder if folder is None else folder
        names = [f"bybit_linear_{symbol}_1m.csv.gz" for symbol in symbols or self.candles]
        return [word for name in names for word in ("--data", root / name)]

    def training(self, out: Path, *more: object) -> list[str]:
        """Return the arguments of a training."""
        words = ("train", self.folder / "recipe.toml", *self.data(), *self.options, "--out", out)
        return [str(word) for word in (*words, *more)]

    def config(self, *, file: Path | None = None) -> Config:
        """Return the configuration of a run, which reads covariates of *file*."""
        sections: dict[str, dict[str, Any]] = {
            "market": {"symbols": list(self.candles)},
            "strategy": {"name": "attention"},
            "gate": {"horizon": 30, "direction": "0.3", "edge": "0.001"},
            "model": {"checkpoint": str(self.folder / "out"), "threads": 1},
        }
        if self.name == "books":
            sections["market"] |= {"depth": LEVELS, "depth_every_ms": EVERY_MS}
        if self.name == "covariates":
            sections["model"]["covariates"] = str(file or self.folder / "run.csv")
        return load_config(None, sections)

    def fed(self, *, books: Path | None = None, other_from: int | None = None) -> MarketData:
        """Return a run's events; from the leader's bar *other_from* on, closes differ."""
        series = [candles[: self.bars] for candles in self.candles.values()]
        if self.name != "another symbol":
            file = books or self.folder / "books.depth"
            return MarketData(series, depth=[read_depth(file)] if self.name == "books" else [])
        led, leader = series
        close = leader.close.copy()
        if other_from is not None:
            close[other_from] = (leader.high[other_from] + leader.low[other_from]) // 2 + 3
        leader = replace(leader, close=close)
        return MarketData([led, leader[np.delete(np.arange(self.bars), self.lacks)]])

    def run(self, path: Path, mode: str = "scan", **changed: Any) -> Path:
        """Record a run with the changes *changed* into *path*; return it."""
        config = self.config(file=changed.pop("file", None))
        data = self.fed(**changed)
        record(path, config, data.candles, depth=data.depth, mode=mode)
        return path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The trained checkpoint."""
        return load(self.folder / "out")

    @cached_property
    def database(self) -> Path:
        """A run."""
        return self.run(self.folder / "run.db")


def _covariates(folder: Path) -> Scene:
    written(folder / "news.csv")
    written(folder / "run.csv", ("heat", "mood"))  # found by their names
    (folder / "recipe.toml").write_text(book_cases.RECIPE + SPLIT, "utf-8")
    options = ("--covariates", folder / "news.csv")
    return Scene(
        "covariates", folder, {LED: learnable(COUNT)}, options, 495, range(495, FIRST), 900
    )


def _books(folder: Path) -> Scene:
    write_books(folder / "books.depth", COUNT, gaps=(HOLE,))
    (folder / "recipe.toml").write_text(book_cases.RECIPE + SPLIT, "utf-8")
    options = ("--depth", folder / "books.depth")
    return Scene("books", folder, {LED: book_cases.candles(COUNT)}, options, 495, range(*HOLE))


def _another(folder: Path) -> Scene:
    (folder / "recipe.toml").write_text(other_cases.RECIPE + other_cases.SPLIT, "utf-8")
    candles = {symbol: other_cases.candles(symbol, COUNT) for symbol in (LED, LEADER)}
    warm = 479 + other_cases.WINDOW - 1
    return Scene("another symbol", folder, candles, (), warm, range(610, 613))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Scene]], Scene]:
    """Return a function that makes a scene, trained once for all tests."""

    @cache
    def of(make: Callable[[Path], Scene]) -> Scene:
        scene = make(tmp_path_factory.mktemp("scene"))
        for candles in scene.candles.values():
            write_csv(candles, scene.folder)
        assert invoke(scene.training(scene.folder / "out")) == 0
        (scene.folder / "few").mkdir()
        for candles in scene.candles.values():
            write_csv(candles[: scene.bars], scene.folder / "few")
        return scene

    return of


@pytest.fixture(params=[_covariates, _books, _another])
def scene(request: pytest.FixtureRequest, scenes: Callable[..., Scene]) -> Scene:
    """Return each scene in turn."""
    trained: Scene = scenes(request.param)
    return trained


@pytest.fixture
def news(scenes: Callable[..., Scene]) -> Scene:
    """Return the scene of covariates."""
    return scenes(_covariates)


@pytest.fixture
def books(scenes: Callable[..., Scene]) -> Scene:
    """Return the scene of order books."""
    return scenes(_books)


@pytest.fixture
def other(scenes: Callable[..., Scene]) -> Scene:
    """Return the scene of another symbol."""
    return scenes(_another)


def answers(database: Path) -> dict[int, float | None]:
    """Return the forecast mean of each bar of the led symbol, by index."""
    query = (
        "SELECT open_time_ms, mean_return FROM v_decisions WHERE instrument = ? ORDER BY sequence"
    )
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute(query, (f"linear:{LED}",)).fetchall()
    return {(at - START_MS) // MINUTE_MS: mean for at, mean in rows}


def compared(left: Path, right: Path) -> int:
    """Return the number of common decisions of the newest runs of two databases, all identical."""
    with Reader.open(left) as first, Reader.open(right) as second:
        parity = compare_runs(*(ComparedRun(db, db.find("last")) for db in (first, second)))
    assert parity.differences == []
    return parity.compared


def check(database: Path) -> None:
    with Reader.open(database) as reader:
        assert verify_run(reader, database, reader.find("last")).differences == []


# ---------------------------------------------------------------- what holds of all


def test_a_run_verifies_and_refuses_the_bars_that_lack_it(scene: Scene) -> None:
    check(scene.database)
    by_place = answers(scene.database)
    assert [place for place, mean in by_place.items() if mean is None] == sorted(
        {*range(scene.warm), *scene.lacks}
    )
    query = "SELECT refused_by, count(*) FROM v_decisions WHERE instrument = ? GROUP BY 1"
    with closing(sqlite3.connect(scene.database)) as opened:
        refused = dict(opened.execute(query, (f"linear:{LED}",)).fetchall())
    assert (refused["warm"], refused["finite"]) == (scene.warm, len(scene.lacks))


def test_what_comes_later_moves_no_answer_and_what_came_before_moves_them(
    scene: Scene, tmp_path: Path
) -> None:
    """Covariates, books or a close of the leader differ from a time on."""
    base, cut = answers(scene.database), START_MS + MINUTE_MS * 800
    at_ms = START_MS + MINUTE_MS * 560
    changes: list[tuple[int, dict[str, Any]]]
    if scene.name == "covariates":
        file = written(tmp_path / "other.csv", changed_after=cut)
        # The first row after the cut counts for the bar that closed after it.
        changes = [(int(AT[cut < AT][0] - 30_000 - START_MS) // MINUTE_MS, {"file": file})]
    elif scene.name == "books":  # a book of the very close counts for its bar
        changes = [
            (first, {"books": write_books(tmp_path / f"{first}.depth", COUNT, gaps=(HOLE,),
                                          other_from_ms=from_ms)})
            for first, from_ms in ((560, at_ms + 1), (559, at_ms))
        ]  # fmt: skip
    else:
        changes = [(600, {"other_from": 600, "mode": mode}) for mode in ("scan", "step")]
    for number, (first, changed) in enumerate(changes):
        moved = answers(scene.run(tmp_path / f"{number}.db", **changed))
        assert next(place for place in base if base[place] != moved[place]) == first
        assert sum(base[place] != moved[place] for place in base) > 10


@pytest.mark.parametrize("make", [_books, _another])
def test_a_replay_killed_anywhere_goes_on_as_if_it_had_not_been(
    make: Callable[[Path], Scene],
    scenes: Callable[..., Scene],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = scenes(make)
    data, last = scene.fed(), scene.lacks[-2] * len(scene.candles)
    cut = killed(
        lambda path: build(scene.config(), data, started_at_ms=0, database=path),
        tmp_path,
        monkeypatch,
        bars=last,
        every=1,
        group_steps=1,
    )
    resumed(cut, data)
    assert compared(scene.database, cut) == sum(map(len, data.candles))
    check(cut)


def test_the_full_explanation_has_the_share_of_each_part(scene: Scene, say: Say) -> None:
    query = "SELECT max(sequence) FROM v_decisions WHERE instrument = ?"
    with closing(sqlite3.connect(scene.database)) as opened:
        (sequence,) = opened.execute(query, (f"linear:{LED}",)).fetchone()
    words = ("explain", f"last:{sequence}", "--full", "--db", scene.database)
    code, out, err = say(*words, "--json")
    assert code == 0, err
    attribution = json.loads(out)["full"]["attribution"]
    of, key = ("frames", "symbol") if scene.name == "another symbol" else ("modalities", "modality")
    shares = {part[key]: part["weight"] for part in attribution[of]}
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
    code, out, err = say(*words)
    assert code == 0, err
    if scene.name == "another symbol":
        # Rollout keeps half at each of two reads (A34): the other symbol has 1 - 0.5².
        assert shares[LEADER] == pytest.approx(0.75, abs=1e-6)
        assert [frame["bars"] for frame in attribution["frames"]] == [9, other_cases.WINDOW]
        assert attribution["largest_bucket_difference"] < 1e-6
        assert "By symbol and timeframe, of closed bars" in out
        assert f"{LEADER} 1m" in out
        return
    name = {"covariates": "vectors", "books": "book"}[scene.name]
    assert shares.keys() == {"price", "volume", "time", name}
    assert shares[name] > 0
    if scene.name == "books":
        levels = attribution["modalities"][-1]["levels"]
        assert levels.keys() == {"mid", "1", "2_5", "6"}
        assert sum(levels.values()) == pytest.approx(shares[name], rel=1e-5)
        assert "By levels of the order book" in out


def test_what_judges_a_checkpoint_takes_it_and_asks_for_it(scene: Scene, say: Say) -> None:
    folder, data = scene.folder / "out", scene.data()
    sentence = {
        "covariates": "was trained with the covariates mood, heat; give a file of them by --covar",
        "books": "was trained with order books; give files of them by --depth",
        "another symbol": f"reads {LEADER} too, and no --data holds",
    }[scene.name]
    lacking = scene.data(LED)
    for command, more in (("models check", ()), ("evaluate", FEW)):
        words = (*command.split(), folder)
        code, out, err = say(*words, *data, *scene.options, *more, "--json")
        assert code == 0, (out, err)
        code, out, err = say(*words, *lacking, *more)
        if command == "evaluate" and scene.name == "books":
            assert "seven days are needed" in out  # nothing is said of few books
        elif command == "evaluate" and scene.name == "covariates":
            assert "--covariates FILE" in err
        else:
            assert sentence in err, err
            assert code != 0


def test_what_cannot_be_is_refused_in_a_sentence_and_leaves_nothing(
    news: Scene, books: Scene, other: Scene, tmp_path: Path, say: Say
) -> None:
    few = write_books(tmp_path / "few.depth", 40, every_ms=30_000)
    spot = write_books(tmp_path / "spot.depth", 40, of=f"spot:{LED}")
    late, strange = tmp_path / "late.csv", tmp_path / "strange.csv"
    late.write_text(f"time,mood\n{START_MS + MINUTE_MS * (COUNT + 9)},1\n", encoding="utf-8")
    strange.write_text(f"time,symbol,mood,heat\n{START_MS},BBBUSDT,1,2\n", encoding="utf-8")
    mood = written(tmp_path / "one.csv", ("mood",))
    names = sorted(path.name for path in tmp_path.iterdir())

    def train(of: Scene, *words: object, data: Sequence[object] = ()) -> tuple[object, ...]:
        candles = data or of.data()
        return ("train", of.folder / "recipe.toml", *candles, *words, "--out", tmp_path / "o")

    def run(of: Scene, *words: object, symbols: Sequence[str] = ()) -> tuple[object, ...]:
        model = f"model.checkpoint={of.folder / 'out'}"
        options = (*GATES, *choose("gate.horizon=30", model, "model.threads=1"))
        candles = of.data(*symbols, folder=of.folder / "few")
        return ("replay", *candles, *options, *words, "--db", tmp_path / "r.db")

    def fed(file: object) -> tuple[str, ...]:
        return choose(f"model.covariates={file}")

    depth, rows, file = ("--depth", books.folder / "books.depth"), "--covariates", "news.csv"
    its = fed(news.folder / file)
    modality = "they are a modality of the kind trading"
    only = choose('modalities=["price", "volume", "time"]')
    asks = choose('modalities=["price", "book"]')
    nothing = ("train", "--data", "x.csv", "--out", "y", rows, "v.csv")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (train(news, rows, late), 1, "no value that is known at a bar of the candles"),
        ((*nothing, *choose("model.kind=flash")), 2, modality),
        (("evaluate", "default", *news.data(), *news.options), 2, "was trained without covariates"),
        (run(news), 2, "the covariates mood, heat; name a file of them by [model] covariates"),
        (run(news, *fed(tmp_path / "none.csv")), 1, "none.csv cannot be read"),
        (run(news, *fed(mood)), 1, "lacks the column 'heat', which the model was trained with"),
        (run(news, *fed(strange)), 1, "has no row of AAAUSDT; add some"),
        (run(news, *its, *choose("model.class=tree:Tree")), 2, "covariates are for checkpoints"),
        (train(books, *depth, *only), 2, "name book as well, or leave --depth out"),
        (train(books, *asks), 2, "No feature is of the modality book; leave it out, give --depth"),
        (train(books, *depth, rows, "x.csv"), 2, "give one of them"),
        (train(books, *depth, *depth), 1, "of the same time"),
        (train(books, *depth, "--depth", few), 1, "of one depth and pace"),
        (train(books, "--depth", spot), 1, f"books of spot:{LED}, and the candles are of linear:"),
        (("evaluate", "default", *books.data(), *depth), 2, "without order books; leave --depth"),
        (run(books), 2, "order books of 6 levels each 20,000 ms, and [market] has depth = 0"),
        (run(books, *depth, *fed("x.csv")), 2, "take out [model] covariates"),
        (run(other, symbols=[LED]), 2, f"has {LED} alone; add {LEADER} to market.symbols"),
        (run(other, symbols=[LEADER]), 2, "for another symbol, and the run has none"),
        (run(other, *choose("market.gather_ms=0")), 2, "decides each bar alone; set it above 0"),
        (train(other, data=other.data(LED)), 1, f"reads {LEADER} too, and no --data holds"),
        (train(other, data=other.data(LEADER)), 1, "no bars of another symbol at the same time"),
        (train(other, *choose("ensemble.kind=tree")), 2, "leave other_symbol out"),
        (
            train(other, *choose("features.schema_id=v2", "features.intervals=1m,5m")), 2,
            "bars of one interval; name one",
        ),
        (train(other, rows, "x.csv"), 2, "has no encoder for covariates"),
    ]  # fmt: skip
    wrong = []
    for words, code, sentence in cases:
        status, _, err = say(*words)
        if status != code or sentence not in err or "Traceback" in err:
            wrong.append((sentence, status, err))
    assert wrong == []
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# ---------------------------------------------------------------- covariates


def test_the_card_names_columns_scale_and_file(news: Scene) -> None:
    card = news.checkpoint.card
    file = read_covariates(news.folder / "news.csv")
    of, until = card["features"]["vectors"], START_MS + MINUTE_MS * ENDS[0]
    before = NUMBERS[until > AT]
    assert of["columns"] == ["mood", "heat"]
    assert of["sha256"] == file.sha256
    assert of["centre"] == pytest.approx(before.mean(axis=0).tolist())
    assert of["scale"] == pytest.approx(before.std(axis=0).tolist())
    assert card["features"]["names"][-3:] == ["vector_mood", "vector_heat", "vector_age"]
    assert "vectors" in card["architecture"]["modalities"]


def learnt_by(news: Scene, file: Path) -> Segment:
    """Return the bars of a training with the covariates in *file*."""
    first, second, third = (START_MS + MINUTE_MS * end for end in ENDS)
    split = Split(first, second, third, embargo_bars=30)
    supplied = CovariateInputs(read_covariates(file))
    data = [str(news.folder / CSV)]
    return Dataset.read(data, lambda _: split, (5, 30), vectors=supplied).segments[0]


def test_what_is_learnt_begins_with_the_first_bar_that_has_a_vector(news: Scene) -> None:
    segment = learnt_by(news, news.folder / "news.csv")
    assert segment.first == FIRST  # whose close is the first at or after the first row's time
    rows = np.searchsorted(AT, segment.close_time_ms[FIRST:], side="right") - 1
    assert (
        np.diff(segment.values[FIRST:, 78]).astype(bool).tolist()
        == np.diff(rows).astype(bool).tolist()
    )
    assert np.isnan(segment.values[FIRST - 1]).all()


def test_verify_says_which_file_was_changed_and_which_is_missing(news: Scene, say: Say) -> None:
    (copy,) = kept_covariates(news.database).iterdir()
    content = copy.read_bytes()
    copy.write_bytes(content.replace(b",-", b",", 1))
    code, _, err = say("verify", "last", "--db", news.database)
    assert code != 0
    assert f"{copy} was changed after the run" in err
    copy.unlink()
    code, _, err = say("verify", "last", "--db", news.database)
    copy.write_bytes(content)
    assert code != 0
    assert "covariates that the run used are not kept any more" in err


def test_a_run_does_not_go_on_with_another_file(news: Scene) -> None:
    file = news.folder / "run.csv"
    with Reader.open(news.database) as reader:
        run = reader.stored_run(reader.find("last")).run
    config, content = restore(run.config), file.read_text("utf-8")
    goes_on = []
    for text in (content.replace(",-", ",", 1), content):
        file.write_text(text, encoding="utf-8")
        model = load_forecaster(config, mode="scan")
        goes_on.append(continues(run, config, model))
    assert goes_on == [False, True]


def test_a_bar_that_a_sessions_end_cuts_short_has_no_row_of_later(tmp_path: Path) -> None:
    hour, half = 3_600_000, 1_800_000
    path = stock_files.write(
        tmp_path / "nasdaq_AAA_30m.csv", stock_files.opens("2015-01-02", "2015-06-30", half)
    )
    [hours] = read_files([f"AAA={path}"], (hour,), asset="stock").candles[hour]
    evening = np.flatnonzero(np.diff(hours.closes_ms) > 10 * hour)
    at = hours.closes_ms[evening] + 600_000  # before an hour after the last bar's open is over
    rows = rows_of(at, np.arange(1.0, 1 + len(at))[:, None] / 100)
    joined = CovariateColumns(
        CovariateScale(("mood",), (0.0,), (1.0,)), FixedCovariates("", {"": rows})
    )
    (segment,) = joined_to(segments_of(hours, schema("v2-1h")), joined)
    first, values = segment.first, segment.values[segment.first :]
    counts = np.searchsorted(at, hours.closes_ms[first:], side="right")
    assert values[:, 78] == pytest.approx(counts / 100)
    assert set(np.flatnonzero(np.diff(counts)) + first) <= set(evening)
    wide, bars = with_covariates(schema("v2-1h"), joined), hours.bars()
    assert np.array_equal(compute(wide, columns(bars)).values[first:], values)
    streams = FeatureStreams(wide)
    stepped = np.concatenate([streams.step([bar]).values for bar in bars])
    assert np.array_equal(stepped[first:, 78:], values[:, 78:])


def test_rows_after_a_fit_move_nothing_that_it_learns(news: Scene, tmp_path: Path) -> None:
    until = START_MS + MINUTE_MS * ENDS[0]
    usual = learnt_by(news, written(tmp_path / "usual.csv"))
    changed = learnt_by(news, written(tmp_path / "changed.csv", changed_after=until))
    learnt = usual.close_time_ms < until
    assert np.array_equal(usual.values[learnt], changed.values[learnt], equal_nan=True)
    assert not np.array_equal(usual.values, changed.values, equal_nan=True)


# ---------------------------------------------------------------- order books


def by_hand(newest: Books, before: Books | None, levels: int) -> dict[str, float]:
    """Return some features of a book, computed level by level as D21 defines them."""
    bids, asks = (
        [
            (float(p), float(s))
            for p, s in zip(newest.price[0, side], newest.size[0, side], strict=True)
        ]
        for side in (0, 1)
    )
    mid = (bids[0][0] + asks[0][0]) / 2
    first, last = 2, min(5, levels)
    sides = {"bid": bids[first - 1 : last], "ask": asks[first - 1 : last]}
    size = {side: sum(s for _, s in ladder) for side, ladder in sides.items()}
    name = f"{first}_{last}"
    features = {
        "mid_spread": (asks[0][0] - bids[0][0]) / mid * 1e4,
        f"{name}_imbalance": (size["bid"] - size["ask"]) / (size["bid"] + size["ask"]),
    }
    total = sum(s for _, s in bids + asks)
    for side, ladder in sides.items():
        features[f"{name}_{side}_share"] = size[side] / total
        features[f"{name}_{side}_wall"] = max(s for _, s in ladder) / size[side]
        features[f"{name}_{side}_distance"] = (
            sum(s * abs(p - mid) for p, s in ladder) / size[side] / mid * 1e4
        )
    if before is None:
        return features | {"mid_moved": 0.0, f"{name}_bid_grown": 0.0, f"{name}_ask_grown": 0.0}
    was = {side: float(before.size[0, at, first - 1 : last].sum()) for at, side in enumerate(sides)}
    mid_before = float(before.price[0, 0, 0] + before.price[0, 1, 0]) / 2
    grown = {f"{name}_{side}_grown": math.log(size[side] / was[side]) for side in sides}
    return features | grown | {"mid_moved": (mid / mid_before - 1) * 1e4}


def test_a_row_is_what_a_reader_of_the_rule_would_compute(books: Scene) -> None:
    supplied = BookInputs.read([books.folder / "books.depth"])
    (file,) = supplied.files[LED]
    closes = START_MS + MINUTE_MS * np.arange(1, 40, dtype=np.int64)
    rows = supplied.source.at(LED, closes)
    assert rows.time_ms.tolist() == closes.tolist()  # a book of the very millisecond counts
    names = supplied.reading.columns
    for place, close_ms in enumerate(closes.tolist()):
        at = int(np.searchsorted(file.times, close_ms, side="right")) - 1
        before = file.part(at - 1, at) if at else None
        row = dict(zip(names, rows.values[place].tolist(), strict=True))
        expected = by_hand(file.part(at, at + 1), before, LEVELS)
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_training_and_a_run_have_the_same_row_of_each_bar(books: Scene) -> None:
    """Rows from the file equal rows from the run's events in order."""
    supplied = BookInputs.read([books.folder / "books.depth"])
    reading = reading_of(books.checkpoint.card)
    assert reading == supplied.reading
    live = RunBooks(supplied.reading)
    with Reader.open(books.database) as reader:
        events = [event for _, _, event, _ in reader.events(reader.find("last"))]
    for event in events:
        live.see(event)
    closes = np.array([event.close_time_ms for event in events if isinstance(event, Bar)])
    file_rows, run_rows = supplied.source.at(LED, closes), live.at(LED, closes)
    assert np.array_equal(file_rows.values, run_rows.values, equal_nan=True)
    assert np.array_equal(file_rows.time_ms, run_rows.time_ms)
    lacks = np.isnan(file_rows.values).any(axis=1)
    assert np.flatnonzero(lacks).tolist() == list(range(*HOLE))


def test_bars_without_a_book_are_no_samples(books: Scene) -> None:
    first, second, third = (START_MS + MINUTE_MS * end for end in ENDS)
    split = Split(first, second, third, embargo_bars=30)
    supplied = BookInputs.read([books.folder / "books.depth"])
    data = Dataset.read([str(books.folder / CSV)], lambda _: split, (5, 30), vectors=supplied)
    (segment,) = data.segments
    lacks = segment.lacks
    assert lacks is not None
    assert np.flatnonzero(lacks).tolist() == list(range(*HOLE))
    assert np.isfinite(segment.values[segment.first :]).all()
    without = Dataset.read([str(books.folder / CSV)], lambda _: split, (5, 30))
    assert without.segments[0].lacks is None


def test_the_card_says_which_books_and_claims_nothing_of_few(books: Scene) -> None:
    card = books.checkpoint.card
    of = card["features"]["book"]
    assert (of["levels"], of["every_ms"]) == (LEVELS, EVERY_MS)
    assert [file["name"] for file in of["files"]] == ["books.depth"]
    assert set(card["architecture"]["levels"]) == {"", "mid", "1", "2_5", "6"}
    assert card["model"]["trained"] is False
    assert "figures" not in card
    first, second = card["honesty"]["sentences"]
    assert first.startswith("untrained: 2,595.0 minutes of depth, seven days are needed")
    assert "loopback are no recording of the exchange itself" in second


def test_a_run_whose_books_begin_late_is_sampled_where_there_is_none(
    books: Scene, tmp_path: Path, say: Say
) -> None:
    """Known bars and single steps agree, also at a bar without a book."""
    write_books(tmp_path / "late.depth", SHORT, gaps=((0, SHORT - 5),))
    books.run(tmp_path / "late.db", books=tmp_path / "late.depth")
    by_place = answers(tmp_path / "late.db")
    assert [mean is not None for mean in by_place.values()][-6:] == [False] + 5 * [True]
    check(tmp_path / "late.db")
    query = "SELECT min(sequence) FROM v_decisions WHERE refused_by = 'finite'"
    code, out, _ = say("audit", "sql", query, "--db", tmp_path / "late.db")
    sequence = out.split()[-1]
    code, _, err = say("explain", f"last:{sequence}", "--full", "--db", tmp_path / "late.db")
    assert code == 1
    assert "has no forecast of a model" in err


def test_a_run_is_fed_its_own_books_and_decides_the_same(books: Scene, tmp_path: Path) -> None:
    copy = tmp_path / "again.db"
    rerun = run_again(books.database, copy)
    assert (rerun.compared, rerun.identical, rerun.differences) == (SHORT, SHORT, [])
    check(copy)


def test_heads_are_told_at_bars_that_were_answered(books: Scene, say: Say) -> None:
    code, out, err = say("report", "last", "--heads", "--db", books.database, "--json")
    assert code == 0, err
    assert json.loads(out)["heads"]["decisions"] > 0


def test_what_a_killed_recorder_left_is_told_and_left_out(
    books: Scene, tmp_path: Path, say: Say
) -> None:
    torn, text = tmp_path / "torn.depth", "The last 12 bytes of"
    torn.write_bytes((books.folder / "books.depth").read_bytes() + b"half a block")
    code, _, err = say(*replace(books, options=("--depth", torn)).training(tmp_path / "out"))
    assert code == 0
    assert text in err
    with Reader.open(books.run(tmp_path / "torn.db", books=torn)) as reader:
        warnings = reader.run(reader.find("last")).warnings
    assert [text in line and line.endswith("left out") for line in warnings].count(True) == 1


def test_of_seven_days_it_learns_the_levels_that_tell_and_is_judged(
    books: Scene, tmp_path: Path, say: Say
) -> None:
    """With books the forecast volatility follows their lean, without them only in part."""
    write_csv(book_cases.candles(MANY), tmp_path)
    write_books(tmp_path / "books.depth", MANY, every_ms=MINUTE_MS, source="exchange")
    (tmp_path / "recipe.toml").write_text(book_cases.RECIPE, "utf-8")
    more = ("training.steps=200", "training.batch=8", "training.learning_rate=0.003")
    scene = replace(books, folder=tmp_path, options=("--depth", tmp_path / "books.depth"))
    words = scene.training(tmp_path / "with", *choose(*more))
    code, _, err = say(*words)
    assert code == 0, err
    at = words.index("--depth")
    words[words.index("--out") + 1] = str(tmp_path / "without")
    code, _, err = say(*words[:at], *words[at + 2 :])
    assert code == 0, err
    followed = {}
    for name in ("with", "without"):
        model = load(tmp_path / name)
        supplied = BookInputs.read([tmp_path / "books.depth"]) if name == "with" else None
        request = DataRequest([str(tmp_path / CSV)], inputs=supplied)
        data = read_dataset(recipe_of(model.card), request, model.card)
        forecasts = kind_of(model.card).load(model.card, model.tensors).answers(data, Part.TEST)
        (segment,), shortest = data.segments, forecasts.at(forecasts.horizons[0])
        places = np.flatnonzero(np.isin(segment.keys, shortest.keys))
        assert len(places) == len(shortest.keys) > 1_000
        forecast = np.log(shortest.value("scale") * shortest.labels["unit"])
        followed[name] = float(np.corrcoef(forecast, leans(MANY)[places])[0, 1])
    assert followed["with"] > 0.8
    assert followed["without"] < 0.7
    assert load(tmp_path / "with").card["figures"]
    judging = (
        "evaluate", tmp_path / "with", "--data", tmp_path / CSV, "--depth",
        tmp_path / "books.depth", *choose("evaluation.explained_bars=500"), "--json",
    )  # fmt: skip
    code, out, err = say(*judging)
    assert code == 0, err
    assert json.loads(out)["id"] == load(tmp_path / "with").id
    code, _, err = say(*judging[:4], *choose("evaluation.explained_bars=500"))
    assert code == 2
    assert "order books of 6 levels each 60,000 ms; give files of them by --depth" in err


# ---------------------------------------------------------------- another symbol


def test_the_card_has_both_symbols_and_the_columns_of_the_other(other: Scene) -> None:
    card = other.checkpoint.card
    assert card["architecture"]["other_symbol"] == LEADER
    assert card["market"]["symbols"] == [LED, LEADER]
    names = card["features"]["names"]
    assert names[78:] == [f"other_{name}" for name in names[:78]]
    assert card["figures"]["30"]["bars"] <= COUNT  # the leader's own bars are not judged


def test_a_step_for_each_bar_decides_as_one_pass_over_known_bars(
    other: Scene, tmp_path: Path
) -> None:
    step = other.run(tmp_path / "step.db", mode="step")
    assert compared(other.database, step) == 2 * SHORT - len(other.lacks)


async def test_the_live_loop_decides_as_the_replay(other: Scene, tmp_path: Path) -> None:
    """The model runs in its worker thread, event by event; verify derives it again."""
    path = tmp_path / "live.db"
    audit = SqlAuditLog.open(path)
    replay = build(other.config(), other.fed(), started_at_ms=0, database=path, mode="step")
    model = replay.forecaster
    assert model is not None
    history = BarHistory([item.id for item in replay.instruments], context=model.context)
    predictor = WorkerPredictor(
        model, history, Worker("live"), period_start_ms=replay.run.period_start_ms,
        deadline_ms=600_000,
    )  # fmt: skip
    start = start_event(model, warm_from=(), market_ms=replay.feed.period_start_ms)

    async def feed() -> AsyncIterator[Event]:
        for event in chain((start,), replay.feed.events()):
            yield event

    audit.begin(replay.run, replay.engine.gate_sets)
    await drive(feed(), predictor.predict, replay.engine, audit.append)
    audit.end(1)
    audit.close()
    assert compared(other.database, path) == 2 * SHORT - len(other.lacks)
    check(path)


def test_a_forged_bar_of_the_other_is_found_at_the_decisions_that_asked_it(
    other: Scene, tmp_path: Path, say: Say
) -> None:
    forged = tmp_path / "forged.db"
    shutil.copy(other.database, forged)
    shutil.copytree(f"{other.database}.checkpoints", f"{forged}.checkpoints")
    at_ms = START_MS + 600 * MINUTE_MS
    with closing(sqlite3.connect(forged)) as opened:
        of = "SELECT max(sequence) FROM v_decisions WHERE instrument = ? AND open_time_ms = ?"
        (sequence,) = opened.execute(of, (f"linear:{LEADER}", at_ms)).fetchone()
        of = "SELECT sequence FROM steps ORDER BY sequence LIMIT 1 OFFSET ?"
        (step,) = opened.execute(of, (sequence,)).fetchone()
        opened.execute("UPDATE steps SET close = close + 5000 WHERE sequence = ?", (step,))
        opened.commit()
    code, out, _ = say("audit", "verify", "last", "--db", forged)
    assert code == 1, out
    with Reader.open(forged) as reader:
        verdict = verify_run(reader, forged, reader.find("last"))
    assert verdict.differences
    assert any(LED in str(difference) for difference in verdict.differences)


def forecaster(other: Scene) -> Forecaster:
    checkpoint = other.checkpoint
    return forecaster_of(checkpoint.card, checkpoint.tensors)


def means(predictions: Iterator[tuple[Event, object]]) -> dict[int, Any]:
    """Return the forecast of each bar of the led symbol, in bytes."""
    return {
        (event.open_time_ms - START_MS) // MINUTE_MS: answer
        for event, answer in predictions
        if isinstance(event, Bar) and event.instrument.endswith(LED)
    }


def by_step(model: Forecaster, events: Sequence[Event]) -> Iterator[tuple[Event, object]]:
    history = BarHistory([f"linear:{LED}", f"linear:{LEADER}"], context=model.context)
    predictor = InlinePredictor(model, history, period_start_ms=0)
    start = start_event(model, warm_from=(), market_ms=START_MS)
    for unit in gathered([start, *events]):
        forecasts = predictor.predict(unit)
        bars = getattr(unit, "bars", None)
        yield from zip([unit] if bars is None or not isinstance(bars, list) else [unit, *bars],
                       forecasts, strict=True)  # fmt: skip


def by_scan(other: Scene, events: Sequence[Event]) -> Iterator[tuple[Event, object]]:
    model, keys = forecaster(other), [f"linear:{LED}", f"linear:{LEADER}"]
    predictor = ScanPredictor(model, forecaster(other), keys, period_start_ms=0)
    start = start_event(model, warm_from=(), market_ms=START_MS)
    for event in predictor.read_ahead([start, *events]):
        yield event, predictor.predict(event)[0]
    assert predictor.probed


def test_a_late_bar_of_the_other_is_the_same_live_in_one_pass_and_after_a_warm_start(
    other: Scene,
) -> None:
    """Four closes lack the leader's bar, which arrives after the fourth of the led symbol."""
    events = list(closes(SHORT, lacks=[610], late=3))
    live = means(by_step(forecaster(other), events))
    scanned = means(by_scan(other, events))
    assert list(map(str, live.values())) == list(map(str, scanned.values()))  # NaN is itself here
    answered = [
        place for place in range(other.warm, SHORT) if np.isfinite(live[place].mean_return[0])
    ]
    assert [*range(other.warm, SHORT)] == sorted([*answered, 610, 611, 612, 613])
    on_time = means(by_step(forecaster(other), list(closes(SHORT))))
    for place in (614, 625, SHORT - 1):  # what came late is known by then, as if it had been early
        assert live[place].mean_return == on_time[place].mean_return
    never = means(by_step(forecaster(other), list(closes(SHORT, lacks=[610]))))
    assert never[625].mean_return != on_time[625].mean_return
    model = forecaster(other)
    source = run_source(model)
    assert source is not None
    for event in events:
        source.see(event)
    led = [bar for bar in events if isinstance(bar, Bar) and bar.instrument.endswith(LED)]
    for place in (611, 620, SHORT - 1):
        model.warm(led[0].instrument, led[place - model.context : place])
        stepped = model.step(led[place])
        assert str(stepped) == str(live[place])
    assert isinstance(live[SHORT - 1], Forecast)
