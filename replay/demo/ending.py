"""The demo's last lines: what happened, what it proved, what to open, what to type."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.checks.parity import check_whole
from tracepaper.replay.demo.processes import Demo
from tracepaper.replay.report.terminal import decision_to_explain, program_name
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome
from tracepaper.strategies.units import DAY_MS

FIGURES: Final = """
    SELECT (SELECT count(*) FROM v_decisions WHERE run_id = :run),
        (SELECT count(*) FROM v_decisions WHERE run_id = :run AND refused_by = :late),
        (SELECT max(open_time_ms) - min(open_time_ms) FROM v_decisions WHERE run_id = :run),
        (SELECT count(*) FROM v_trades WHERE run_id = :run),
        (SELECT equity FROM v_equity WHERE run_id = :run ORDER BY sequence DESC LIMIT 1)
"""


@dataclass(frozen=True)
class DemoFigures:
    """The figures of a demo's run."""

    run_id: str
    decisions: int
    late: int  # decisions that came too late to be traded
    days: float
    trades: int  # closed
    start: float  # the account's cash at first, quote currency
    equity: float
    explained_sequence: int | None  # of the decision to look at
    chain: ChainReport

    @property
    def total_return(self) -> float:
        """The account's return, as a fraction."""
        return self.equity / self.start - 1.0


def read(database: Path) -> DemoFigures:
    """Return the end of the newest run of *database*."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        values = {"run": run_id, "late": late.name}
        decisions, count, span_ms, trades, equity = reader.connection.execute(
            FIGURES, values
        ).fetchone()
        cash = float(restore(reader.run(run_id).config).account.cash)
        chain = verify_chain(reader.connection, run_id)
    explained = decision_to_explain(database, run_id)
    days = span_ms / DAY_MS
    return DemoFigures(run_id, decisions, count, days, trades, cash, equity, explained, chain)


def sum_up(database: Path, played: Demo | None, *, as_json: bool) -> None:
    """Print the end of the newest run of *database*; *played* of a show of the bundled month."""
    ending, terminal = read(database), Terminal(highlight=False)
    if not as_json:
        terminal.print(Text(f"What happened: {happened(ending, played)}"), soft_wrap=True)
        sys.stderr.write("The run is replayed from its record, which takes a while.\n")
    parity = check_whole(database, ending.run_id, "parity")
    if as_json:
        print_json({**document(ending, database, played), "parity": parity})
        return
    is_well = parity.outcome is ParityOutcome.IDENTICAL and ending.chain.holds
    proved = Text(f"What it proved: {proof(ending, parity)}", "" if is_well else "bold red")
    terminal.print(proved, soft_wrap=True)
    program, sequence = program_name(), ending.explained_sequence
    decision = "" if sequence is None else f" explain last:{sequence} --full"
    for words, command in (("open", " ui --open"), ("type", decision or " report last")):
        line = f"What to {words}: {program}{command} --db {database}"
        terminal.print(line, soft_wrap=True, markup=False)


def happened(ending: DemoFigures, played: Demo | None) -> str:
    """Return how much was decided, through what, and what the account is worth."""
    through = ""
    if played is not None and (count := len(played.outcomes)):
        through = f" through {count} incidents, in {played.starts} processes"
    too_late = f", {ending.late:,} too late to trade" if ending.late else ""
    return (
        f"{ending.decisions:,} decisions in {ending.days:.1f} days{through}{too_late}; "
        f"{ending.trades} closed trades took {ending.start:,.0f} to {ending.equity:,.2f} "
        f"({ending.total_return:+.2%})."
    )


def proof(ending: DemoFigures, parity: ParityCheck) -> str:
    """Return what the replay from the record came to, and the chain."""
    chain = ending.chain
    holds = "holds" if chain.holds else f"is broken: {chain.problem}"
    return f"replayed from its record, {parity.reason}; the chain of {chain.steps:,} steps {holds}."


def document(ending: DemoFigures, database: Path, played: Demo | None) -> dict[str, Any]:
    """Return the end of the show as one JSON document."""
    show_alone: dict[str, Any] = {}
    if played is not None:
        show_alone = {
            "config": str(played.files.config),
            "log": str(played.files.log),
            "processes": played.starts,
            "incidents": list(played.outcomes),
        }
    return {
        "database": str(database),
        **vars(ending),
        **show_alone,
        "return": ending.total_return,
        "chain": {"holds": ending.chain.holds, "steps": ending.chain.steps},
    }
