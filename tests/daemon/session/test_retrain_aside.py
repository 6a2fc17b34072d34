"""A retraining delays no decision, even on a full or stalled disk, or when symbols close together.

The daemon is real. The training process gives an answer that the test chose.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bybit_server import ScriptedServer
from daemon_under_test import daemon
from exchange_client import candles, walk_rows
from retrain_cases import CONTEXT, PlantedTraining, decide, full_disk, has, until_has
from several_live import SPEED, Live, trading
from waiting import deadline_s

from tracepaper.daemon.config.loading import Config, load, render
from tracepaper.daemon.session import loop, retraining
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.retraining import BARS, CANDIDATE
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.types.market import ModelChange, RetrainingEnd

pytestmark = pytest.mark.sockets

SYMBOLS = ("AAAUSDT", "BBBUSDT")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlantedTraining:
    files = PlantedTraining(tmp_path)
    monkeypatch.setattr(retraining, "PROGRAM", files.command)
    return files


# ---------------------------------------------------------------- a full disk


async def test_a_full_disk_is_said_leaves_nothing_and_a_later_training_is_promoted(
    planted: PlantedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full first for its configuration, then its files, then the candidate's copy."""
    work = planted.folder / "run.db.retrain"
    work.mkdir()
    (work / retraining.CONFIG_FILE).symlink_to("/dev/full")
    fills = (
        f"state = folder / '{CANDIDATE}.training'; state.mkdir(); (state / 'x').write_bytes(b'x')\n"
        f"(folder / '.{CANDIDATE}-half').mkdir(); (folder / {BARS!r}).write_bytes(bytes(9))\n"
        "print('no room', file=sys.stderr); sys.exit(1)"
    )
    kept = checkpoints.kept_folder(planted.database, planted.candidate.id)
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await until_has(running, RetrainingEnd)
            (work / retraining.CONFIG_FILE).unlink()
            planted.answers(fills)
            await decide(running, 11, 10)
            await until_has(running, RetrainingEnd, 2)
            left = {path.name for path in work.iterdir()}
            planted.judges()
            with full_disk(monkeypatch, kept):
                await decide(running, 21, 10)
                await until_has(running, RetrainingEnd, 3)
            siblings = [path.name for path in kept.parent.iterdir()]
            await decide(running, 31, 10)
            await until_has(running, ModelChange, 2)
            await decide(running, 41, 1)
    planted.check()
    assert planted.outcomes() == ["failed", "failed", "failed", "promoted"]
    reasons = [event.reason for event in planted.events()]
    assert f"it could not begin in {work}" in reasons[0]
    assert "No space left on device" in reasons[0]
    assert reasons[1] == "the training ended with 1: no room"
    assert left == {retraining.CONFIG_FILE, retraining.LOG_FILE}
    assert "cannot be promoted" in reasons[2]
    assert "No space left on device" in reasons[2]
    assert siblings == [planted.running.id]
    # A judged candidate used its level, although the disk had no room for it.
    assert [event.test for event in planted.events()] == [0, 0, 1, 2]
    assert planted.decided_by() == [(planted.running.id, 41), (planted.candidate.id, 1)]


# ---------------------------------------------------------------- waiting stages


class Gate:
    """A point where a thread of the retraining waits until the test opens it."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(deadline_s())

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold the loading of the candidate until the gate is opened."""
    gate, real = Gate(), forecaster_of

    def slow(folder: Path, config: Any, *, mode: str) -> Forecaster:
        gate.wait()
        return real(folder, config, mode=mode)

    monkeypatch.setattr(retraining, "forecaster_of", slow)
    yield gate
    gate.open()


@pytest.fixture
def warming(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold the warm-up of the candidate until the gate is opened."""
    gate, real = Gate(), loop.PromotedModel.warm

    def slow(promoted: loop.PromotedModel) -> None:
        gate.wait()
        real(promoted)

    monkeypatch.setattr(loop.PromotedModel, "warm", slow)
    yield gate
    gate.open()


@contextmanager
def reading(pipe: Path) -> Iterator[None]:
    """Read from a named pipe, so that its writer can continue."""
    place = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(place)


async def test_no_decision_waits_for_any_stage_of_a_retraining(
    planted: PlantedTraining, loading: Gate, warming: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage (files, process, model) is held until two more bars are decided."""
    work, go_on = planted.folder / "run.db.retrain", planted.folder / "go_on"
    work.mkdir()
    begun = threading.Event()

    def rendered(config: Config) -> str:
        begun.set()
        return render(config)

    monkeypatch.setattr(retraining, "render", rendered)
    pipe = work / retraining.CONFIG_FILE
    os.mkfifo(pipe)  # a stalled disk: the writer waits for a reader of the pipe
    planted.judges()
    judgement = (planted.folder / "answer.py").read_text(encoding="utf-8")
    planted.answers(
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)\n{judgement}"
    )
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await running.until(begun.is_set)
            await decide(running, 11, 2)
            assert not (work / retraining.LOG_FILE).exists()
            with reading(pipe):
                await running.until((work / retraining.LOG_FILE).exists)
            await decide(running, 13, 2)
            assert not loading.reached.is_set()
            go_on.touch()
            await running.until(loading.reached.is_set)
            await decide(running, 15, 2)
            assert not has(running.steps, RetrainingEnd)
            loading.open()
            await running.until(warming.reached.is_set)
            await decide(running, 17, 2)
            assert not has(running.steps, ModelChange, 2)
            warming.open()
            await until_has(running, ModelChange, 2)
            await decide(running, 19, 2)
    planted.check()  # the candidate was stepped through the meantime's bars, to the bit
    assert planted.decided_by() == [(planted.running.id, 19), (planted.candidate.id, 2)]
    refused = "SELECT count(*) FROM v_decisions WHERE refused_by IN ('late', 'deadline', 'gap')"
    assert planted.rows(refused) == [(0,)]


# ---------------------------------------------------------------- several symbols


async def close(live: Live, count: int) -> None:
    """Close this many minutes of every symbol, and await each decision."""
    for _ in range(count):
        await live.close_bar(set(SYMBOLS))


def forecasts_of(planted: PlantedTraining, *, closes: int) -> tuple[list[float], list[float]]:
    """Return the volatility said at the first close that the candidate decides, as it is stored.

    Beside it what the candidate says that was warmed with every bar before and nothing else.
    """
    kept = checkpoints.kept_folder(planted.database, planted.candidate.id)
    config = load(None, planted.sections)
    forecaster = forecaster_of(kept, config, mode="batched")
    at = forecaster.horizons.index(config.gate.horizon)
    with Reader.open(planted.database) as reader:
        run_id = reader.find("last")
        run = reader.run(run_id)
        at_ms = run.period_start_ms + closes * run.interval_ms
        past = {item.id: reader.bars(run_id, item.id) for item in run.instruments}
    for name, bars in past.items():
        forecaster.warm(name, [bar for bar in bars if bar.open_time_ms < at_ms])
    closed = [next(bar for bar in bars if bar.open_time_ms == at_ms) for bars in past.values()]
    forecasts = [
        forecast.volatility[at]
        for forecast in forecaster.predict_many(closed)
        if forecast is not None
    ]
    query = f"SELECT volatility FROM v_decisions WHERE open_time_ms = {at_ms} ORDER BY instrument"
    return [row[0] for row in planted.rows(query)], forecasts


async def test_symbols_that_close_at_once_go_over_to_the_promoted_model_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warming: Gate
) -> None:
    planted = PlantedTraining(tmp_path, *SYMBOLS)
    monkeypatch.setattr(retraining, "PROGRAM", planted.command)
    planted.judges()
    data = [
        candles(walk_rows(CONTEXT + 60, seed=at), symbol=symbol)
        for at, symbol in enumerate(SYMBOLS)
    ]
    served = ExchangeSettings(candles=tuple(data), manual=True, start=CONTEXT + 10, speed=SPEED)
    sections = {**planted.sections, "market": {"symbols": list(SYMBOLS)}}
    async with EmbeddedExchange(served) as exchange:
        async with trading(exchange, planted.database, **sections) as live:
            await live.listening(6)
            await close(live, 11)
            await live.until(warming.reached.is_set)
            await close(live, 2)  # of both together; the candidate was stepped through it later
            warming.open()
            await live.until(lambda: has(live.steps, ModelChange, 2))
            await close(live, 2)
        async with trading(exchange, planted.database, **sections) as live:
            await live.listening(6)
            await close(live, 2)
    planted.check()
    running, other = planted.running.id, planted.candidate.id
    assert planted.decided_by() == [(running, 26), (other, 8)]
    stored, wanted = forecasts_of(planted, closes=13)
    assert stored == pytest.approx(wanted, rel=1e-5)
    modes = "SELECT DISTINCT json_extract(content, '$.mode') FROM v_events WHERE kind = "
    assert planted.rows(f"{modes} 'model_change'") == [("batched",)]
    by_close = (
        "SELECT count(DISTINCT model_id), count(*) FROM v_decisions GROUP BY open_time_ms "
        "HAVING count(DISTINCT model_id) > 1 OR count(*) <> 2"
    )
    assert planted.rows(by_close) == []  # one model decides the whole close


# ---------------------------------------------------------------- a symbol that is warmed in turn
