"""The log lines of a run in progress, and its summary."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from builders import account, bar, bars, decision, fill, forecast, instrument, run, step
from fakes import ManualClock

from tracepaper.daemon.terminal.console import configure
from tracepaper.daemon.terminal.watcher import RunWatcher
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause


def test_elsewhere_each_second_has_one_decision_line(log: io.StringIO) -> None:
    clock = ManualClock()
    watcher = RunWatcher(clock)
    watcher.opened(run())
    for number, candle in enumerate(bars(30)):
        watcher.watch(step(candle, sequence=number, decided=decision(), prediction=forecast()))
        clock.advance(network_s=0.1)
    documents = [json.loads(line) for line in log.getvalue().splitlines()]
    decisions = [line for line in documents if line["event"] == "decision"]
    assert all(line["reason"] for line in decisions)
    assert 3 <= len(decisions) <= 4
    assert decisions[0]["action"] == "HOLD"
    assert decisions[0]["refused_by"] == "edge"
    assert decisions[0]["confidence_entropy"] == 0.2
    assert decisions[0]["equity"] == "100000"


def test_fills_gaps_and_commands_are_never_left_out(log: io.StringIO) -> None:
    gap_step = step(Gap("linear:BTCUSDT", 0, 60_000, GapCause.MISSED, "", 0, 0))
    halt_step = step(Command(CommandKind.HALT, "news", 0, 0))
    watcher = RunWatcher(ManualClock())
    watcher.opened(run())
    for each in (*(step(bar(), fills=(fill(),)) for _ in range(3)), gap_step, halt_step):
        watcher.watch(each)
    documents = [json.loads(line) for line in log.getvalue().splitlines()]
    events = [line["event"] for line in documents]
    assert events.count("fill") == 3
    (gap,) = (line for line in documents if line["event"] == "gap")
    assert (gap["cause"], gap["repaired_by"]) == ("missed", "never")
    (command,) = (line for line in documents if line["event"] == "command")
    assert (command["kind"], command["note"]) == ("HALT", "news")
    (first, *_) = (line for line in documents if line["event"] == "fill")
    assert (first["side"], first["quantity"], first["price"]) == ("BUY", "1", "101")


# What `run` says when it ends: what happened since its start, and what to type next.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watcher() -> RunWatcher:
    configure(stream=io.StringIO())
    run_watcher = RunWatcher(ManualClock())
    run_watcher.opened(run(instruments=(instrument(),)))
    passing = (("operator", 1.0, 1.0, True), ("edge", 1.4, 1.0, True))
    allowed = decision(measures=passing)
    refused = decision()
    for sequence, decided in enumerate((allowed, refused, refused)):
        run_watcher.watch(
            step(
                bar(index=sequence),
                sequence=sequence,
                decided=decided,
                fills=(fill(),) if decided is allowed else (),
                of=account(99_987),
            )
        )
    return run_watcher


def test_a_terminal_is_told_what_happened_and_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_watcher, terminal = watcher(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run_watcher.print_summary(Path("mine.db"))
    output = terminal.getvalue()
    assert "since this start: 3 bars decided, 1 allowed, 1 fill; equity 99,987.00." in output
    assert "Refused most by edge 2." in output
    for words in ("tracepaper report", "tracepaper audit verify"):
        assert any(words in line and "--db mine.db" in line for line in output.splitlines())


def test_elsewhere_it_is_one_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run_watcher, log, out = watcher(), io.StringIO(), io.StringIO()
    configure(stream=log)
    monkeypatch.setattr(sys, "stdout", out)
    run_watcher.print_summary(Path("mine.db"))
    (line,) = (json.loads(text) for text in log.getvalue().splitlines())
    assert out.getvalue() == ""
    assert (line["event"], line["bars"], line["refused"]) == ("ended", 3, {"edge": 2})
