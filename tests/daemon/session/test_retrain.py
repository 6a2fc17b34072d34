"""A model is retrained during a run, judged, and promoted or refused with the reason.

The daemon is real. The training process gives an answer that the test chose.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builders import present
from bybit_server import ScriptedServer
from daemon_under_test import RunningDaemon, ServersClock, daemon, settings
from msgspec.structs import replace
from programs import environment
from retrain_cases import NOTHING, PlantedTraining, decide, has, until_has
from waiting import deadline, deadline_s

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session import retraining
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.daemon.session.child import DAEMON_GONE
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.retraining import CandidateJudgement, level_of, with_verdict
from tracepaper.daemon.session.run_row import preflight_engine
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage import checkpoints
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import ModelChange, RetrainingEnd, RetrainOutcome, RunKind

pytestmark = pytest.mark.sockets


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlantedTraining:
    files = PlantedTraining(tmp_path)
    monkeypatch.setattr(retraining, "PROGRAM", files.command)
    return files


# ---------------------------------------------------------------- promotion


SEVERAL = {
    name: {"name": of, "share": "0.3"}
    for name, of in (("a", "attention"), ("b", "attention"), ("c", "sma_cross"))
}


@pytest.mark.parametrize(
    "given",
    [{"strategy": {"name": "attention"}}, {"strategies": SEVERAL}],
    ids=["alone", "several"],
)
async def test_a_better_model_takes_over_within_its_run(
    planted: PlantedTraining, given: dict[str, Any]
) -> None:
    planted.judges()
    del planted.sections["strategy"]
    planted.sections |= given
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await until_has(running, ModelChange, 2)
            await decide(running, 11, 3)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 14, 2)
    planted.check()
    (event,) = planted.events()
    assert (event.outcome, event.test) == (RetrainOutcome.PROMOTED, 1)
    assert event.level == level_of(0.05, 1)
    first, other = planted.running.id, planted.candidate.id
    assert planted.decided_by() == [(first, 11), (other, 5)]
    assert planted.rows("SELECT count(*) FROM models") == [(2,)]
    thresholds = "SELECT count(DISTINCT threshold) FROM gate_sets WHERE gate = 'direction'"
    assert planted.rows(thresholds) == [(2,)]
    of_strategies = (
        "SELECT strategy, count(DISTINCT json_extract(gates, '$.direction[1]')) "
        "FROM v_strategy_decisions GROUP BY 1"
    )
    counts = [("a", 2), ("b", 2), ("c", 0)] if "strategies" in given else []
    assert planted.rows(of_strategies) == counts
    changes = (
        "SELECT json_extract(content, '$.model_id'), json_array_length(content, '$.warm_from') "
        "FROM v_events WHERE kind = 'model_change' ORDER BY sequence"
    )
    assert planted.rows(changes) == [(first, 1), (other, 0), (other, 1)]


async def test_a_promotion_that_was_cut_off_is_taken_up_by_the_next_start(
    planted: PlantedTraining,
) -> None:
    planted.judges()
    steps: list[Step] = []

    def watch(step: Step) -> bool:
        """Return False once the promotion is stored, so that the daemon ends before the change."""
        steps.append(step)
        return not isinstance(step.event, RetrainingEnd)

    async with ScriptedServer() as server:
        planted.known_to(server)
        given = load(None, settings(server, **planted.sections))
        clock = ServersClock(server)
        cut = Daemon(given, planted.database, kind=RunKind.LIVE, watch=watch, clock=clock)
        task = asyncio.create_task(cut.run())
        running = RunningDaemon(server, task, clock)
        running.steps = steps
        await decide(running, 0, 11)
        async with deadline():
            await task
        assert not has(steps, ModelChange, 2)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 11, 3)
    planted.check()
    assert planted.decided_by() == [(planted.running.id, 11), (planted.candidate.id, 3)]
    assert planted.outcomes() == ["promoted"]


async def test_without_the_key_the_configured_model_decides_again(planted: PlantedTraining) -> None:
    planted.judges()
    off = {**planted.sections, "model": {"checkpoint": str(planted.folder / "running")}}
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await until_has(running, ModelChange, 2)
            await decide(running, 11, 1)
        async with daemon(server, planted.database, **off) as running:
            await decide(running, 12, 2)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 14, 1)
    planted.check(runs=3)
    first, other = planted.running.id, planted.candidate.id
    assert planted.decided_by() == [(first, 11), (other, 1), (first, 2), (other, 1)]
    (warnings,) = planted.rows("SELECT warnings FROM v_runs")[2]
    assert f"the model {other} was promoted in service in place of {first}" in warnings


# ---------------------------------------------------------------- no promotion


@pytest.mark.parametrize(
    ("part", "tests"),
    [(slice(0, 5), [1, 2, 3, 0, 0]), (slice(5, None), [0, 1, 2])],
)
async def test_what_is_not_better_or_breaks_off_is_an_event_and_changes_nothing(
    part: slice, tests: list[int], planted: PlantedTraining
) -> None:
    """One daemon, one retraining after another; each bar is decided meanwhile.

    A round of eleven bars has one, that is due every ten: after ten rounds it could have two.
    """
    broken = "print('The loss is NaN.', file=sys.stderr); sys.exit(1)"
    cases: list[tuple[Callable[[], None], str, str]] = [
        (lambda: planted.judges(0.0), "refused", "is not below 0.025, the share of test 1"),
        (lambda: planted.judges(0.002), "refused", "the share of test 2"),
        (lambda: planted.judges(-0.002), "refused", "p 0.058 is not below 0.0042, the share of"),
        (lambda: planted.judges(reason="BTCUSDT has 3 bars", **NOTHING), "skipped", "has 3 bars"),
        (lambda: planted.answers(broken), "failed", "ended with 1: The loss is NaN"),
        (lambda: planted.judges(running_sha256="0" * 64), "failed", "another model than the one"),
        (lambda: planted.judges(candidate_sha256="0" * 64), "failed", "not the model that was"),
        (lambda: planted.judges(candidate="nowhere"), "failed", "cannot be promoted"),
    ][part]
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            for number, (plant, _, _) in enumerate(cases):
                plant()
                await decide(running, number * 11, 11)
                await until_has(running, RetrainingEnd, number + 1)
    planted.check()
    assert [event.outcome.value for event in planted.events()] == [case for _, case, _ in cases]
    for event, (_, _, reason) in zip(planted.events(), cases, strict=True):
        assert reason in event.reason
    spent = [event.test for event in planted.events()]
    assert spent == tests
    assert planted.decided_by() == [(planted.running.id, 11 * len(cases))]


async def test_it_ends_with_its_daemon_and_the_next_start_trains_again(
    planted: PlantedTraining,
) -> None:
    pid = planted.folder / "pid"
    planted.answers(f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await running.until(lambda: pid.exists() and pid.read_text())
            await decide(running, 11, 2)  # during the training
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
        assert planted.events() == []
        planted.judges()
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 13, 1)
            await until_has(running, ModelChange, 2)
    planted.check()
    assert planted.outcomes() == ["promoted"]


def test_what_trains_yields_and_ends_when_its_input_is_closed() -> None:
    code = (
        "import os, time\n"
        "from tracepaper.daemon.session.child import limit_this_process\n"
        "limit_this_process(memory_mb=512)\n"
        "import resource\n"
        "print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE,\n"
        "      resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        assert present(process.stdout).readline().split() == ["19", "True", "512"]
        present(process.stdin).close()
        assert process.wait(timeout=deadline_s()) == DAEMON_GONE


# ---------------------------------------------------------------- rules


def test_all_judgements_together_spend_no_more_than_alpha() -> None:
    shares = [level_of(0.05, test) for test in range(1, 10_000)]
    assert 0.0499 < sum(shares) <= 0.05
    assert shares == sorted(shares, reverse=True)
    judgement = replace(
        CandidateJudgement(RetrainOutcome.SKIPPED, ""),
        difference=-0.01,
        error=0.001,
        p=0.01,
        days=28,
        horizon=30,
    )
    assert [with_verdict(judgement, test=test, alpha=0.05).outcome.value for test in (1, 2)] == [
        "promoted",
        "refused",
    ]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"model": {"retrain": "7d"}, "retrain": {"recipe": "no.toml"}},
            "[retrain] names no.toml, which is no file",
        ),
        (
            {"model": {"retrain": "7d"}, "retrain": {"data": ["BTCUSDT=none.db"]}},
            "[retrain] names BTCUSDT=none.db, which is no file",
        ),
    ],
)
def test_what_cannot_be_retrained_is_refused_before_the_run(
    planted: PlantedTraining, sections: dict[str, Any], sentence: str
) -> None:
    given = {**planted.sections, **sections}
    given["model"] = {**planted.sections["model"], **sections["model"]}
    config = load(None, given)
    with pytest.raises(ConfigInvalid, match=re.escape(sentence)):
        preflight_engine(config, load_forecaster(config) if needs_forecaster(config) else None)


# ---------------------------------------------------------------- the record


FORGED = {
    "level": "json_set(content, '$.level', 0.05)",
    "test level": "json_set(content, '$.test', 2, '$.level', 0.05 / 6)",
    "reason": "replace(content, 'over 28 days', 'over 280 days')",
    "level reason": "replace(replace(content, '0.025', '0.25'), 'in 0.05', 'in 0.5')",  # both alike
    "running_sha256": "json_set(content, '$.running_sha256', 'another')",
}
"""Forged fields of an event that follow from its other figures, with the finding of each."""


async def test_a_forged_promotion_or_a_lost_model_is_found(planted: PlantedTraining) -> None:
    planted.judges()
    async with ScriptedServer() as server:
        planted.known_to(server)
        async with daemon(server, planted.database, **planted.sections) as running:
            await decide(running, 0, 11)
            await until_has(running, ModelChange, 2)
            await decide(running, 11, 1)
    with closing(sqlite3.connect(planted.database)) as db, db:
        db.execute("DELETE FROM models WHERE model_sha256 = ?", (planted.candidate.sha256,))
    with Reader.open(planted.database) as reader:
        problem = present(audit(reader.connection, reader.find("last")).problem)
        assert "which a run was changed to, is missing" in problem.sentence
    with closing(sqlite3.connect(planted.database)) as db, db:
        query = "SELECT content FROM events WHERE kind = 'retrained'"
        (honest,) = db.execute(query).fetchone()
        db.execute(
            "UPDATE events SET content = json_set(content, '$.difference', 0.01) "
            "WHERE kind = 'retrained'"
        )
    with Reader.open(planted.database) as reader:
        run_id = reader.find("last")
        assert not verify_chain(reader.connection, run_id).passes
        verification = verify_run(reader, planted.database, run_id)
        fields = [difference.field.partition(" (")[0] for difference in verification.differences]
        assert fields == ["event.p", "event.outcome", "event.reason", "the chain"]
    with closing(sqlite3.connect(planted.database)) as db:
        for due, change in FORGED.items():
            with db:
                db.execute("UPDATE events SET content = ? WHERE kind = 'retrained'", (honest,))
                db.execute(f"UPDATE events SET content = {change} WHERE kind = 'retrained'")
            with Reader.open(planted.database) as reader:
                verification = verify_run(reader, planted.database, run_id)
            named = {difference.field.partition(" (")[0] for difference in verification.differences}
            assert named == {"the chain", *(f"event.{name}" for name in due.split())}
    kept = checkpoints.kept_folder(planted.database, planted.candidate.id)
    kept.rename(planted.folder / "elsewhere")
    with (
        Reader.open(planted.database) as reader,
        pytest.raises(CheckpointMismatch, match="restore"),
    ):
        verify_run(reader, planted.database, run_id)
