"""A lasting state of a run is shown everywhere, from the step at which it begins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders import MINUTE, START_MS, bar
from command_line import Cli
from engines import engine_of
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from forging import verified
from recordings import commanded
from records import rows, tamper

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.restart import Restart
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.report.states import LIMITS, LastingState, lasting_states
from tracepaper.replay.run import Run
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Command, CommandKind

HOUR = 3_600_000
CROSS = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}


def ran(
    path: Path,
    risk: dict[str, Any],
    words: dict[int, Command],
    *,
    long_only: bool = False,
    lacking: range = range(0),
) -> str:
    """Replay 240 hours under the limits *risk*, without the bars *lacking*; return the run's id.

    A word comes after so many bars.
    """
    sections: dict[str, dict[str, Any]] = {
        "market": {"symbols": ["BTCUSDT"], "interval": "60"},
        "strategy": {**CROSS, "long_only": long_only},
        "sizing": {"mode": "equity", "fraction": "0.5"},
        "risk": risk,
    }
    kept = [place for place in range(240 + len(lacking)) if place not in lacking]
    times_ms = [FIRST_MS + place * HOUR for place in kept]
    candles = [made_candles(walk_rows(240), interval_ms=HOUR, times_ms=times_ms)]
    replay = build(load(None, sections), MarketData(candles), started_at_ms=1, database=path)
    commanded(replay, SqlAuditLog.open(path, group_steps=64), words)
    return replay.run.run_id


def word(kind: CommandKind, note: str = "") -> Command:
    return Command(kind, note, 0, 0)


def states_of(path: Path, until: int | None = None) -> tuple[LastingState, ...]:
    with Reader.open(path) as reader:
        return lasting_states(RunColumns(reader, reader.find("last")), until=until)


def kinds(states: Iterable[LastingState]) -> list[tuple[str, int]]:
    return [(lasting_state.kind, lasting_state.sequence) for lasting_state in states]


def test_a_halt_lasts_from_its_breach_to_resume_and_is_counted_by_who_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    words = {120: word(CommandKind.HALT, "news"), 130: word(CommandKind.RESUME)}
    ran(path, {"max_drawdown": "0.004"}, words)
    halts = [at for (at,) in rows(path, "SELECT sequence FROM v_events WHERE kind = 'halted'")]
    spoken = rows(path, "SELECT sequence, content FROM v_events WHERE kind = 'command'")
    kind_at = {at: json.loads(content)["kind"] for at, content in spoken}
    assert len(halts) == 2, "one before RESUME, and one after it"
    decided = rows(
        path,
        "SELECT d.sequence, d.allowed, d.refused_by, g.measure, g.passed FROM v_decisions d "
        "JOIN v_gates g USING (run_id, sequence) WHERE g.gate = 'risk.halt' ORDER BY 1",
    )
    limit: int | None = None
    operator: int | None = None
    refused, allowed_while_halted = 0, 0
    events = sorted([*((at, "halted") for at in halts), *kind_at.items()])
    for at, allowed, by, measure, passed in decided:
        while events and events[0][0] <= at:
            since, kind = events.pop(0)
            if kind == "RESUME":
                limit = operator = None
            elif kind == "HALT":
                operator = since
            else:
                limit, refused = since, 0
        assert (measure, passed) == ((1.0, 0) if limit is not None else (0.0, 1)), at
        refused += by in LIMITS
        allowed_while_halted += bool(limit is not None and allowed)
        if at % 7 == 0 or at in halts:
            wanted = [] if operator is None else [("operator", operator)]
            wanted += [] if limit is None else [("limit", limit)]
            states = states_of(path, at)
            assert kinds(states) == wanted, at
            if limit is not None:
                assert states[-1].refused == refused, at
    assert allowed_while_halted > 0, "what opens nothing is not refused"
    found_again = verified(path)
    assert found_again.passes, found_again.differences[:1]


def test_what_a_halted_run_shows_begins_with_it(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.db"
    run_id = ran(path, {"max_drawdown": "0.004", "on_breach": "flatten"}, {})
    (state,) = states_of(path)
    assert state.refused
    assert state.refused > 20
    run: Run[Any] = Run(path, run_id)
    assert repr(run).splitlines()[0] == state.sentence
    assert run.summary["halted_ms"] == state.since_ms
    report = cli.json("report", "last", "--db", path)
    assert report["states"] == [asdict(state)]
    (part,) = report["stretches"]
    assert (part["part"], part["until_ms"]) == ("until the halt", state.since_ms)
    assert part["exposure"] > report["accounts"][0]["exposure"]
    assert cli.json("explain", f"last:{state.sequence - 1}", "--db", path)["states"] == []
    (then,) = cli.json("explain", "last", "--db", path)["states"]
    assert (then["by"], then["refused"]) == ("risk.drawdown", state.refused)
    for command in ("report", "explain"):
        assert "halted by risk.drawdown since" in cli.out(command, "last", "--db", path)

    with Reader.open(path) as reader:
        assert audit(reader.connection, run_id).passes
        assert verify_run(reader, path, run_id).passes
    tamper(path, "DELETE FROM halts")
    with Reader.open(path) as reader:
        assert not audit(reader.connection, run_id).passes


def test_a_run_that_takes_over_a_halted_one_records_its_halt_at_once() -> None:
    def engine() -> Any:
        strategy = {**CROSS, "fast": 1, "slow": 2}
        sections: dict[str, dict[str, Any]] = {
            "strategy": strategy,
            "sizing": {"mode": "equity", "fraction": "1"},
        }
        return engine_of({**sections, "risk": {"max_daily_loss": "5"}}, period_start_ms=START_MS)

    first, second, third = engine(), engine(), engine()
    closes = (10_000, 10_000, 10_100, 10_200, 9_000, 9_000)
    steps = [first.step(bar(close, index=index), None) for index, close in enumerate(closes)]
    (halted,) = [step.halted for step in steps if step.halted is not None]
    later = Command(CommandKind.HALT, "", START_MS + 9 * MINUTE, START_MS + 9 * MINUTE)
    Restart(second).restore(first.state(), next_sequence=0, taken_over=True)
    assert [second.step(later, None).halted for _ in range(2)] == [halted, None]
    Restart(third).restore(first.state(), next_sequence=first.sequence)
    assert third.step(later, None).halted is None, "the same run has it already"


def test_a_drawdown_that_only_refuses_holds_a_run_without_position_for_good(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    limits = {"max_drawdown": "0.004", "on_breach": "refuse"}
    ran(path, limits, {}, long_only=True)
    (state,) = states_of(path)
    entered = rows(path, "SELECT max(sequence) FROM v_decisions WHERE allowed AND "
                    "action IN ('LONG', 'SHORT')")[0][0]  # fmt: skip
    refused = rows(path, "SELECT count(*), min(sequence) FROM v_decisions WHERE "
                    f"refused_by = 'risk.drawdown' AND sequence > {entered}")  # fmt: skip
    assert [(state.refused, state.sequence)] == refused
    assert not states_of(path, entered)
