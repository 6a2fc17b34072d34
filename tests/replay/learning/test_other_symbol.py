"""The cross network over another symbol: trained, replayed, verified, killed, explained, judged."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_replays import killed, resumed
from learning import MINUTE_MS, START_MS, Say, choose, write_csv
from other_symbol_cases import COUNT, LEADER, LED, RECIPE, SPLIT, WINDOW, candles, closes
from recordings import record

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load as load_config
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    Worker,
    WorkerPredictor,
    drive,
    gathered,
)
from tracepaper.daemon.session.run_row import start_event
from tracepaper.replay.archive import Candles, slice_candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import ScanPredictor
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.checkpoints import load
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.forecasters.build import build as forecaster_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Event

SHORT = 640
FIRST = 479 + WINDOW - 1  # the first bar that is answered
HOLE = range(610, 613)  # bars of the leader that are missing
CSV = {symbol: f"bybit_linear_{symbol}_1m.csv.gz" for symbol in (LED, LEADER)}


def data_of(folder: Path, *symbols: str) -> list[str]:
    return [str(word) for one in symbols for word in ("--data", folder / CSV[one])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of both symbols and a checkpoint that was trained on them."""
    made = tmp_path_factory.mktemp("other")
    for symbol in CSV:
        write_csv(candles(symbol, COUNT), made)
    (made / "recipe.toml").write_text(RECIPE + SPLIT, "utf-8")
    told = ["train", str(made / "recipe.toml"), *data_of(made, LED, LEADER)]
    assert invoke([*told, "--out", str(made / "out")]) == 0
    return made


def both(count: int = SHORT, *, hole: Sequence[int] = HOLE) -> list[Candles]:
    """Return the candles of both symbols, without the leader's of *hole*."""
    led, leader = candles(LED, count), candles(LEADER, count)
    keep = np.setdiff1d(np.arange(count), hole)
    columns = ("open_time_ms", "open", "high", "low", "close", "volume")
    cut = {name: getattr(leader, name)[keep] for name in columns}
    return [led, replace(leader, **cut)] if hole else [led, leader]


def config(folder: Path, **model: Any) -> Any:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": [LED, LEADER]},
        "strategy": {"name": "attention"},
        "gate": {"horizon": 30, "direction": "0.3", "edge": "0.001"},
        "model": {"checkpoint": str(folder / "out"), "threads": 1, **model},
    }
    return load_config(None, given)


def replayed(folder: Path, database: Path, data: list[Candles], mode: str = "scan") -> str:
    return record(database, config(folder), data, mode=mode)


@pytest.fixture(scope="module")
def database(folder: Path) -> Path:
    """Return a database with one replay, in one pass over known bars."""
    replayed(folder, folder / "run.db", both())
    return folder / "run.db"


def compared(one: Path, other: Path) -> int:
    """Return how many decisions the newest runs of two databases have in common, all identical."""
    with Reader.open(one) as first, Reader.open(other) as second:
        runs = [ComparedRun(reader, reader.find("last")) for reader in (first, second)]
        found = compare_runs(*runs)
    assert found.differences == []
    return found.compared


def check(database: Path) -> None:
    with Reader.open(database) as reader:
        assert verify_run(reader, database, reader.find("last")).differences == []


def answers(database: Path) -> dict[int, float | None]:
    """Return the mean that was forecast of each bar of the led symbol, by its place."""
    asked = (
        "SELECT open_time_ms, mean_return FROM v_decisions WHERE instrument = ? ORDER BY sequence"
    )
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute(asked, (f"linear:{LED}",)).fetchall()
    return {(at - START_MS) // MINUTE_MS: mean for at, mean in rows}


# ---------------------------------------------------------------- runs


def test_the_card_has_both_symbols_and_the_columns_of_the_other(folder: Path) -> None:
    card = load(folder / "out").card
    assert card["architecture"]["other_symbol"] == LEADER
    assert card["market"]["symbols"] == [LED, LEADER]
    names = card["features"]["names"]
    assert names[78:] == [f"other_{name}" for name in names[:78]]
    assert card["figures"]["30"]["bars"] <= COUNT  # the leader's own bars are not judged


def test_a_bar_whose_other_is_missing_is_refused_and_the_others_are_answered(
    database: Path,
) -> None:
    check(database)
    found = answers(database)
    answered = [place for place, mean in found.items() if mean is not None]
    assert answered == [place for place in range(FIRST, SHORT) if place not in HOLE]
    asked = "SELECT DISTINCT refused_by FROM v_decisions WHERE instrument = ?"
    with closing(sqlite3.connect(database)) as opened:
        refused = opened.execute(asked, (f"linear:{LEADER}",)).fetchall()
    assert sorted(refused) == [("finite",), ("gap",), ("warm",)]  # it asks no one


def test_a_step_for_each_bar_decides_as_one_pass_over_known_bars(
    folder: Path, database: Path, tmp_path: Path
) -> None:
    replayed(folder, tmp_path / "step.db", both(), mode="step")
    assert compared(database, tmp_path / "step.db") == 2 * SHORT - len(HOLE)
    assert answers(database) == answers(tmp_path / "step.db")


async def test_the_live_loop_decides_as_the_replay(
    folder: Path, database: Path, tmp_path: Path
) -> None:
    """The model in its worker thread, fed one event after the other; verify derives it again."""
    path = tmp_path / "live.db"
    audit = SqlAuditLog.open(path)
    replay = build(config(folder), MarketData(both()), started_at_ms=0, database=path, mode="step")
    model = replay.forecaster
    assert model is not None
    history = BarHistory([item.id for item in replay.instruments], context=model.context)
    predictor = WorkerPredictor(
        model, history, Worker("live"), period_start_ms=replay.run.period_start_ms,
        deadline_ms=600_000,
    )  # fmt: skip
    start = start_event(model, warm_from=(), market_ms=replay.feed.period_start_ms)

    async def feed() -> AsyncIterator[Event | None]:
        for event in chain((start,), replay.feed.events()):
            yield event

    audit.begin(replay.run, replay.engine.gate_sets)
    await drive(feed(), predictor, replay.engine, audit)
    audit.end(1)
    audit.close()
    assert compared(database, path) == 2 * SHORT - len(HOLE)
    check(path)


def changed(data: list[Candles], symbol: str, place: int) -> list[Candles]:
    """Return *data* with another close of the bar of *symbol* at *place* of its column."""
    made = []
    for one in data:
        close = one.close.copy()
        if one.symbol == symbol:
            close[place] = (one.high[place] + one.low[place]) // 2 + 3
        made.append(replace(one, close=close))
    return made


@pytest.mark.parametrize("mode", ["scan", "step"])
def test_a_later_bar_of_the_other_moves_no_answer_and_an_earlier_one_moves_them(
    folder: Path, database: Path, tmp_path: Path, mode: str
) -> None:
    whole = answers(database)
    replayed(folder, tmp_path / "other.db", changed(both(), LEADER, 600), mode)
    moved = answers(tmp_path / "other.db")
    assert next(place for place in whole if whole[place] != moved[place]) == 600
    assert sum(whole[place] != moved[place] for place in whole) > 20


@pytest.mark.parametrize("after", [2 * 612 - 2])
def test_a_replay_killed_anywhere_goes_on_as_if_it_had_not_been(
    folder: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    cut = killed(
        lambda path: build(config(folder), MarketData(both()), started_at_ms=0, database=path),
        tmp_path,
        monkeypatch,
        bars=after - 1,
        every=1,
        group_steps=1,
    )
    resumed(cut, MarketData(both()))
    assert compared(database, cut) == 2 * SHORT - len(HOLE)
    check(cut)


def test_a_forged_bar_of_the_other_is_found_at_the_decisions_that_asked_it(
    database: Path, tmp_path: Path, say: Say
) -> None:
    forged = tmp_path / "forged.db"
    shutil.copy(database, forged)
    shutil.copytree(f"{database}.checkpoints", f"{forged}.checkpoints")
    at_ms = START_MS + 600 * MINUTE_MS
    with closing(sqlite3.connect(forged)) as opened:
        of = "SELECT max(sequence) FROM v_decisions WHERE instrument = ? AND open_time_ms = ?"
        (sequence,) = opened.execute(of, (f"linear:{LEADER}", at_ms)).fetchone()
        of = "SELECT step FROM steps ORDER BY step LIMIT 1 OFFSET ?"
        (step,) = opened.execute(of, (sequence,)).fetchone()
        opened.execute("UPDATE steps SET close = close + 5000 WHERE step = ?", (step,))
        opened.commit()
    code, out, _ = say("audit", "verify", "last", "--db", forged)
    assert code == 1, out
    with Reader.open(forged) as reader:
        found = verify_run(reader, forged, reader.find("last"))
    assert found.differences
    assert any(LED in str(one) for one in found.differences)


# ---------------------------------------------------------------- late bars


def forecaster(folder: Path) -> Forecaster:
    found = load(folder / "out")
    return forecaster_of(found.card, found.tensors)


def means(predictions: Iterator[tuple[Event, object]]) -> dict[int, Any]:
    """Return what was said of each bar of the led symbol, in bytes."""
    return {
        (event.open_time_ms - START_MS) // MINUTE_MS: said
        for event, said in predictions
        if isinstance(event, Bar) and event.instrument.endswith(LED)
    }


def by_step(model: Forecaster, events: Sequence[Event]) -> Iterator[tuple[Event, object]]:
    history = BarHistory([f"linear:{LED}", f"linear:{LEADER}"], context=model.context)
    predictor = InlinePredictor(model, history, period_start_ms=0)
    start = start_event(model, warm_from=(), market_ms=START_MS)
    for unit in gathered([start, *events]):
        said = predictor.predict(unit)
        bars = getattr(unit, "bars", None)
        yield from zip([unit] if bars is None or not isinstance(bars, list) else [unit, *bars],
                       said, strict=True)  # fmt: skip


def by_scan(folder: Path, events: Sequence[Event]) -> Iterator[tuple[Event, object]]:
    model, keys = forecaster(folder), [f"linear:{LED}", f"linear:{LEADER}"]
    predictor = ScanPredictor(model, forecaster(folder), keys, period_start_ms=0)
    start = start_event(model, warm_from=(), market_ms=START_MS)
    for event in predictor.read_ahead([start, *events]):
        yield event, predictor.predict(event)[0]
    assert predictor.probed


def test_a_late_bar_of_the_other_is_the_same_live_in_one_pass_and_after_a_warm_start(
    folder: Path,
) -> None:
    """Four closes lack the leader's bar, which comes after the fourth of the led symbol."""
    events = list(closes(SHORT, lacks=[610], late=3))
    live = means(by_step(forecaster(folder), events))
    scanned = means(by_scan(folder, events))
    assert list(map(str, live.values())) == list(map(str, scanned.values()))  # NaN is itself here
    answered = [place for place in range(FIRST, SHORT) if np.isfinite(live[place].mean_return[0])]
    assert [*range(FIRST, SHORT)] == sorted([*answered, 610, 611, 612, 613])
    on_time = means(by_step(forecaster(folder), list(closes(SHORT))))
    for place in (614, 625, SHORT - 1):  # what came late is known by then, as if it had been early
        assert live[place].mean_return == on_time[place].mean_return
    never = means(by_step(forecaster(folder), list(closes(SHORT, lacks=[610]))))
    assert never[625].mean_return != on_time[625].mean_return
    model = forecaster(folder)
    source = run_source(model)
    assert source is not None
    for event in events:
        source.see(event)
    own = [one for one in events if isinstance(one, Bar) and one.instrument.endswith(LED)]
    for place in (611, 620, SHORT - 1):
        model.warm(own[0].instrument, own[place - model.context : place])
        said = model.step(own[place])
        assert str(said) == str(live[place])
    assert isinstance(live[SHORT - 1], Forecast)


# ---------------------------------------------------------------- explained, judged, refused


def test_explain_says_how_much_of_the_row_lay_in_the_other_symbol(database: Path, say: Say) -> None:
    with closing(sqlite3.connect(database)) as opened:
        of = "SELECT max(sequence) FROM v_decisions WHERE instrument = ?"
        (sequence,) = opened.execute(of, (f"linear:{LED}",)).fetchone()
    words = ("explain", f"last:{sequence}", "--full", "--db", database)
    code, out, err = say(*words, "--json")
    assert code == 0, err
    found = json.loads(out)["full"]["attribution"]
    shares = {of["symbol"]: (of["bars"], of["weight"]) for of in found["frames"]}
    assert {symbol: bars for symbol, (bars, _) in shares.items()} == {"": 9, LEADER: WINDOW}
    # Rollout keeps half at each of two reads (A34): the other symbol has 1 - 0.5².
    assert shares[LEADER][1] == pytest.approx(0.75, abs=1e-6)
    assert sum(weight for _, weight in shares.values()) == pytest.approx(1.0, abs=1e-6)
    assert found["largest_bucket_difference"] < 1e-6
    code, out, err = say(*words)
    assert code == 0, err
    assert "By symbol and timeframe, of closed bars" in out
    assert f"{LEADER} 1m" in out


def test_it_is_evaluated_on_bars_that_came_after(folder: Path, tmp_path: Path, say: Say) -> None:
    for symbol in CSV:
        late = candles(symbol, 4_000)
        write_csv(slice_candles(late, slice(COUNT, None)), tmp_path)
    given = ("evaluate", folder / "out", *data_of(tmp_path, LED, LEADER))
    code, out, err = say(*given, *choose("evaluation.explained_bars=500"), "--json")
    assert code == 0, err
    assert json.loads(out)["id"] == load(folder / "out").id
    code, out, err = say("models", "check", folder / "out", *data_of(tmp_path, LED, LEADER))
    assert code == 0, (out, err)


def test_what_lacks_the_other_symbol_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    model = choose(f"model.checkpoint={folder / 'out'}", "strategy.name=attention",
                   "gate.horizon=30")  # fmt: skip
    run = ("replay", *model, "--db", tmp_path / "r.db")
    train = ("train", folder / "recipe.toml", "--out", tmp_path / "o")
    pair = data_of(folder, LED, LEADER)
    cases = [
        ((*run, *data_of(folder, LED)), f"has {LED} alone; add {LEADER} to market.symbols"),
        ((*run, *data_of(folder, LEADER)), "for another symbol, and the run has none"),
        ((*run, *pair, *choose("market.gather_ms=0")), "decides each bar alone; set it above 0"),
        ((*run, *pair, *choose("model.retrain=7d")), "is not retrained in service"),
        ((*train, *data_of(folder, LED)), f"asks {LEADER}, and no --data holds enough bars"),
        ((*train, *data_of(folder, LEADER)), "no bars of a symbol of the same time"),
        ((*train, *pair, *choose("other_symbol=CCCUSDT")), "asks CCCUSDT, and no --data holds"),
        ((*train, *pair, *choose("other_symbol=")), "architecture.frame is 1; it must be at least"),
        ((*train, *pair, *choose("ensemble.kind=tree")), "leave other_symbol out"),
        ((*train, *pair, *choose("features.schema_id=v2", "features.intervals=1m,5m")),
         "bars of one interval; name one"),
        ((*train, *pair, "--covariates", "x.csv"), "has no encoder for covariates"),
        (("evaluate", folder / "out", *data_of(folder, LED)), f"asks {LEADER}, and no --data"),
        (("models", "check", folder / "out"), f"asks {LEADER}, and no --data holds"),
    ]  # fmt: skip
    for words, sentence in cases:
        code, out, err = say(*words)
        assert code in {1, 2}, (words, out)
        assert sentence in err, (words, err)
        assert "Traceback" not in err
    assert [one.name for one in tmp_path.iterdir()] == []
