"""An operator's first daemon: start, look, halt, resume, flatten, stop, start again.

It trades against the embedded exchange. What the operator reads is compared with the record by
SQL: what ``status`` says belongs to the event that it names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from newcomer import Shell, account_of, rows, shown
from programs import Program

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SAMPLE = "samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
TURN = '''\
import tracepaper as tp


class Turn(tp.Strategy):
    """Long after a falling bar, flat after a rising one."""

    def decide(self, context):
        if context.close < context.open:
            return tp.Signal(tp.Action.LONG, "it fell", stop=tp.Percent(1))
        return tp.Signal(tp.Action.FLAT, "it rose")
'''
PAPER = """\
[market]
symbols = ["BTCUSDT"]
interval = "1"
[strategy]
name = "turn:Turn"
[exchange]
rest_url = "{rest_url}"
stream_url = "{stream_url}"
time_scale = {speed}
[http]
port = 0
"""
COUNTS = re.compile(
    r"since this start: ([\d,]+) bars? decided, [\d,]+ warm-up bars?, ([\d,]+) fills?; "
    r"the run is at event ([\d,]+)"
)
HELD = "SELECT 1000 * quantity FROM v_equity ORDER BY sequence DESC LIMIT 1"


@dataclass(frozen=True)
class Operator:
    """An operator's shell, and the record of the daemon in its folder."""

    shell: Shell

    @property
    def record(self) -> Path:
        return self.shell.folder / "tracepaper.db"

    def value(self, query: str) -> int:
        """Return the one value of *query*; 0 for null."""
        ((value,),) = rows(self.record, query)
        return int(value or 0)

    def count(self, query: str) -> int:
        return self.value(f"SELECT count(*) FROM {query}")

    @contextmanager
    def running(self, command: str, name: str) -> Iterator[Program]:
        """Run *command* until the block ends; then stop it as Ctrl-C or systemd does."""
        words, folder = self.shell.words(command), self.shell.folder
        program = Program(words, folder, name=name)
        try:
            yield program
            ended = program.stop()
            shown("kill -TERM", f"{ended.err[-400:]}exit {ended.code}\n")
            assert ended.code == 0
        finally:
            program.kill()

    def wait(self, daemon: Program, condition: Callable[[], bool]) -> None:
        """Wait until *daemon* has decided a bar and *condition* holds."""
        daemon.wait_until(lambda: '"event": "decision"' in daemon.err and condition())

    def status(self) -> str:
        """Return ``status``, whose counts are those of the record at the event that it names."""
        status = self.shell("tracepaper status")
        counts = COUNTS.search(status)
        assert counts is not None, status
        decided, filled, event = (int(text.replace(",", "")) for text in counts.groups())
        stop = "SELECT max(sequence) FROM v_events WHERE kind = 'end'"
        within = f"sequence > coalesce(({stop}), -1) AND sequence <= {event}"
        assert decided == self.count(f"v_decisions WHERE {within}")
        assert filled == self.count(f"v_fills WHERE {within}")
        return status

    def halt_and_resume(self, daemon: Program) -> None:
        """HALT refuses new exposure, and each surface says who halted and why; RESUME lifts it."""
        self.shell('tracepaper command HALT --note "the funding looks odd"')
        refused = "v_decisions WHERE refused_by = 'operator'"
        self.wait(daemon, lambda: self.count(refused) >= 2)
        assert "halted by operator" in self.status()
        newest = self.value(f"SELECT max(sequence) FROM {refused}")
        explained = self.shell(f"tracepaper explain last:{newest}")
        assert "Refused by operator" in explained
        assert "The operator gave HALT" in explained
        assert "the funding looks odd" in explained

        self.shell("tracepaper command RESUME")
        halted, resumed = (
            self.value(f"SELECT sequence FROM v_commands WHERE kind = '{kind}'")
            for kind in ("HALT", "RESUME")
        )
        self.wait(daemon, lambda: self.count(f"v_orders WHERE sequence > {resumed}") >= 1)
        assert "halted" not in self.status()
        between = f"sequence > {halted} AND sequence < {resumed}"
        assert self.count(f"v_decisions WHERE {between} AND action = 'LONG'") == 0

    def flatten(self, daemon: Program) -> None:
        """FLATTEN closes what is held, and halts."""
        self.wait(daemon, lambda: self.value(HELD) > 0)
        self.shell("tracepaper command FLATTEN")
        self.wait(daemon, lambda: self.value(HELD) == 0)
        status = self.status()
        assert "halted by operator" in status
        assert "position flat" in status


def test_an_operator_starts_looks_halts_resumes_flattens_and_stops(shell: Shell) -> None:
    operator = Operator(shell)
    shell("tracepaper data samples")
    (shell.folder / "turn.py").write_text(TURN)
    serve = f"tracepaper exchange --data {SAMPLE} --speed 60"
    with operator.running(serve, "exchange") as exchange:
        exchange.wait_until(lambda: "\n" in exchange.out)
        (shell.folder / "paper.toml").write_text(PAPER.format(**json.loads(exchange.out)))
        assert "can be used" in shell("tracepaper config check -c paper.toml")
        assert "No daemon runs on tracepaper.db" in shell("tracepaper status", 1)

        with operator.running("tracepaper run -c paper.toml", "daemon") as daemon:
            operator.wait(daemon, lambda: operator.count("v_fills") >= 2)
            assert "running" in operator.status()
            operator.halt_and_resume(daemon)
            operator.flatten(daemon)
            assert "Ctrl-C or SIGTERM stops the daemon" in shell("tracepaper command STOP", 2)
        assert "No daemon runs on tracepaper.db" in shell("tracepaper status", 1)

        # The next start goes on with the same run, which is still halted.
        decided = operator.count("v_decisions")
        with operator.running("tracepaper run -c paper.toml", "again") as daemon:
            operator.wait(daemon, lambda: operator.count("v_decisions") >= decided + 2)
            assert "halted by operator" in operator.status()
            assert operator.count("v_runs") == 1

    # Size and profit, from the fills alone; and every decision follows from the record.
    account = account_of(operator.record)
    assert account.held == 0
    assert 9_900 < account.largest < 10_100  # [sizing] notional, 10,000 USDT
    report = shell("tracepaper report last")
    assert f"{account.equity:,.2f}" in report
    decided = operator.count("v_decisions")
    allowed = operator.count("v_decisions WHERE allowed")
    assert f"{decided} bars decided, {allowed} allowed" in report
    assert f"{decided} of {decided} decisions follow" in shell("tracepaper verify last")
