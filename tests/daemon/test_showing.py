"""What `run` says when it ends: what happened since its start, and what to type next."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from builders import account, bar, decision, fill, instrument, run, step

from tracepaper.daemon.log import configure
from tracepaper.daemon.showing import Shown
from tracepaper.daemon.view import View
from tracepaper.strategies.types import Gate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def shown() -> Shown:
    configure(stream=io.StringIO())
    found = Shown(View(), limit=None, until_ms=None)
    found.opened(run(instruments=(instrument(),)))
    passing = ((Gate.OPERATOR, 1.0, 1.0, True), (Gate.EDGE, 1.4, 1.0, True))
    allowed = decision(measures=passing)
    refused = decision()
    for sequence, decided in enumerate((allowed, refused, refused)):
        found.watch(
            step(
                bar(index=sequence),
                sequence=sequence,
                decided=decided,
                fills=(fill(),) if decided is allowed else (),
                of=account(99_987),
            )
        )
    return found


def test_a_terminal_is_told_what_happened_and_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, terminal = shown(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    found.farewell(Path("mine.db"))
    said = terminal.getvalue()
    assert "since this start: 3 bars decided, 1 allowed, 1 fills; equity 99,987.00." in said
    assert "Refused most by edge 2." in said
    for words in ("tracepaper report", "tracepaper audit verify"):
        assert any(words in line and "--db mine.db" in line for line in said.splitlines())


def test_elsewhere_it_is_one_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found, log, out = shown(), io.StringIO(), io.StringIO()
    configure(stream=log)
    monkeypatch.setattr(sys, "stdout", out)
    found.farewell(Path("mine.db"))
    (line,) = (json.loads(text) for text in log.getvalue().splitlines())
    assert out.getvalue() == ""
    assert (line["event"], line["bars"], line["refused"]) == ("ended", 3, {"edge": 2})


def test_an_end_before_any_step_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    Shown(View(), limit=None, until_ms=None).farewell(Path("mine.db"))
    assert terminal.getvalue() == ""
