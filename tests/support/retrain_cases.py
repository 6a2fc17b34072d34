"""A database whose daemon is to retrain: two small models, and what a training is to answer.

The daemon is the real one; what trains is a process of its own that answers what a test planted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import msgspec
import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer, book, kline
from daemon_under_test import RunningDaemon, price
from records import rows

from tracepaper.daemon.session.child import frame_of
from tracepaper.daemon.session.retraining import CandidateJudgement
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.learning.statistics import chance
from tracepaper.storage import checkpoints
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import RetrainingEnd, RetrainOutcome, RunKind

CONFIG = replace(models.SMALL, layers=1, window=16)
CONTEXT = 16 + 480 - 1
NOTHING: dict[str, Any] = {"bars": 0, "days": 0, "difference": None, "error": None, "p": None}
ANSWERS = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
exec((pathlib.Path(__file__).parent / "answer.py").read_text())
"""


def written(folder: Path, seed: int, *, window: int = 16) -> checkpoints.Checkpoint:
    """Write a small checkpoint; another seed has other weights and other thresholds."""
    config = replace(CONFIG, window=window)
    named = {gate.calibrated_as for gate in GATES.values()} - {""} | {"recent_mass"}
    card = models.card(
        config,
        horizon=30,
        temperature={str(bars): 1.0 for bars in config.horizons},
        slope={str(bars): 1.0 for bars in config.horizons},
        content_free=0.0,
        quantiles={name: [seed * 1e-6 * (1 + at) for at in range(99)] for name in sorted(named)},
    )
    card["model"] = {"kind": "flash", "name": f"seed {seed}"}
    return checkpoints.save(folder, models.network(config, seed=seed).state_dict(), card)


class PlantedTraining:
    """A database, the model it is configured with, and what the training is to answer."""

    def __init__(self, folder: Path, *symbols: str) -> None:
        self.symbols = symbols or ("BTCUSDT",)
        self.program = folder / "program.py"
        self.program.write_text(ANSWERS, encoding="utf-8")
        self.folder, self.database = folder, folder / "run.db"
        self.running = written(folder / "running", 1)
        self.candidate = written(folder / "candidate", 2)
        self.sections: dict[str, Any] = {
            "strategy": {"name": "attention"},
            "model": {"checkpoint": str(folder / "running"), "retrain": "10m"},
            "gate": {"plausible": "10000"},
        }

    @property
    def command(self) -> tuple[str, ...]:
        """What the daemon is to run instead of a training."""
        return sys.executable, "-S", str(self.program)

    def answers(self, code: str) -> None:
        (self.folder / "answer.py").write_text(code, encoding="utf-8")

    def judges(self, difference_: float = -0.01, **figures: Any) -> None:
        """Let the training answer with a judgement of the candidate, of 28 days."""
        p = chance(difference_, 0.001, 28) / 2
        judgement = msgspec.structs.replace(
            CandidateJudgement(RetrainOutcome.SKIPPED, "", running_sha256=self.running.sha256),
            candidate=str(self.folder / "candidate"),
            candidate_sha256=self.candidate.sha256,
            recipe="0123456789ab",
            from_ms=START_MS - 28 * 86_400_000,
            until_ms=START_MS,
            horizon=30,
            bars=40_000,
            days=28,
            difference=difference_,
            error=0.001,
            p=p if difference_ < 0 else 1 - p,
        )
        judgement = msgspec.structs.replace(judgement, **figures)
        self.answers(f"os.write(1, {frame_of(judgement)!r})")

    def known_to(self, server: ScriptedServer) -> None:
        """Have the server know the bars that the model looks back on."""
        for before in range(1, CONTEXT + 2):
            server.add_candle(START_MS - before * MINUTE, price(before))

    def events(self) -> list[RetrainingEnd]:
        with Reader.open(self.database) as reader:
            return [event for _, event in reader.retrainings(RunKind.LIVE, self.symbols)]

    def outcomes(self) -> list[str]:
        return [event.outcome.value for event in self.events()]

    def rows(self, query: str) -> list[Any]:
        return rows(self.database, query)

    def decided_by(self) -> list[Any]:
        """Return how many decisions each model made, in their order."""
        return self.rows(
            "SELECT model_id, count(*) FROM v_decisions GROUP BY run_id, model_id "
            "ORDER BY min(open_time_ms)"
        )

    def check(self, *, runs: int = 1) -> None:
        """Hold the record: its chain, its cards, and every step derived again."""
        with Reader.open(self.database) as reader:
            names = reader.run_ids()
            assert len(names) == runs
            for name in names:
                assert verify_chain(reader.connection, name).passes
                assert audit(reader.connection, name).passes
                verification = verify_run(reader, self.database, name)
                assert (verification.differences, verification.exact) == ([], True)


def has(steps: list[Step], kind: type, count: int = 1) -> bool:
    return sum(isinstance(step.event, kind) for step in steps) >= count


async def until_has(running: RunningDaemon, kind: type, count: int = 1) -> None:
    """Wait for so many events of a kind."""
    await running.until(lambda: has(running.steps, kind, count))


async def until_decided(running: RunningDaemon, count: int) -> None:
    await running.until(lambda: running.decided() >= count)


async def decide(running: RunningDaemon, start: int, count: int) -> None:
    """Close so many minutes from minute *start* on, and await each decision."""
    server, running.minute = running.server, start
    await running.until(lambda: server.sockets and server.subscribed())
    for minute in range(start, start + count):
        before, at = running.decided(), START_MS + (minute + 1) * MINUTE
        running.pass_bars(1)
        close = price(minute)
        ask = f"{float(close) + 0.1:.1f}"
        frames = book(at - 500, close, ask), kline(at - MINUTE, close), book(at + 500, close, ask)
        await server.send(*frames)
        await until_decided(running, before + 1)


@contextmanager
def full_disk(patched: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Let a checkpoint that is written to *folder* find no room, as in ``/dev/full``."""
    real = tempfile.mkdtemp

    def refuse(*words: Any, **given: Any) -> str:
        part: str = real(*words, **given)
        if Path(part).name.startswith(f".{folder.name}-"):
            (Path(part) / checkpoints.WEIGHTS_NAME).symlink_to("/dev/full")
        return part

    with patched.context() as within:
        within.setattr(tempfile, "mkdtemp", refuse)
        yield
