"""The demo's summary: the result, the checks of the record, and the next commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.checks.parity import check_whole
from tracepaper.replay.demo.stage import Demo
from tracepaper.replay.report.judgement import judgement
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.terminal import decision_to_explain, program_name
from tracepaper.replay.report.trades import closed_trades
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.market import ParityOutcome
from tracepaper.strategies.units import DAY_MS, count_of

FIGURES: Final = """
    SELECT count(*), sum(refused_by = :late), max(open_time_ms) - min(open_time_ms),
        (SELECT equity FROM v_equity WHERE run_id = :run ORDER BY sequence DESC LIMIT 1)
    FROM v_decisions WHERE run_id = :run
"""


def _read(database: Path) -> tuple[dict[str, Any], ChainReport]:
    """Return the figures of the newest run of *database*, and the check of its chain."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        row = reader.connection.execute(FIGURES, {"run": run_id, "late": late.name}).fetchone()
        decisions, late_count, span_ms, equity = row
        cash = float(restore(reader.run(run_id).config).account.cash)
        chain = verify_chain(reader.connection, run_id)
        record = read_record(reader, database, run_id)
    closed = closed_trades(record.account)
    figures = {
        "run_id": run_id,
        "decisions": decisions,
        "late": late_count or 0,  # decisions that the gate ``late`` refused
        "days": span_ms / DAY_MS,
        "trades": len(closed),
        "start": cash,
        "equity": equity,
        "return": equity / cash - 1.0,
        "judgement": judgement(record, closed),
        "explained_sequence": decision_to_explain(database, run_id),
        "database": str(database),
    }
    return figures, chain


def sum_up(database: Path, demo: Demo | None, *, as_json: bool) -> None:
    """Print the summary of the newest run; *demo* is that of the bundled month, if it ran."""
    (figures, chain), terminal = _read(database), Terminal(highlight=False)
    if demo is not None:
        figures |= {"config": str(demo.files.config), "log": str(demo.files.log)}
        figures |= {"processes": demo.starts, "incidents": demo.outcomes}
    if not as_json:
        for sentence in (f"What happened: {_happened(figures)}", figures["judgement"]):
            terminal.print(Text(sentence), soft_wrap=True)
        sys.stderr.write("The run is replayed from its record, which takes a while.\n")
    parity = check_whole(database, figures["run_id"], "parity")
    if as_json:
        chained = {"passes": chain.passes, "steps": chain.steps}
        print_json(figures | {"chain": chained, "parity": parity})
        return
    passes = parity.outcome is ParityOutcome.IDENTICAL and chain.passes
    verdict = "holds" if chain.passes else f"is broken: {chain.problem}"
    sentence = (
        f"What it proved: replayed from its record, {parity.reason}; the chain of "
        f"{chain.steps:,} steps {verdict}."
    )
    terminal.print(Text(sentence, "" if passes else "bold red"), soft_wrap=True)
    program, sequence = program_name(), figures["explained_sequence"]
    decision = "" if sequence is None else f" explain last:{sequence} --full"
    for words, command in (("open", " ui --open"), ("type", decision or " report last")):
        line = f"What to {words}: {program}{command} --db {database}"
        terminal.print(line, soft_wrap=True, markup=False)


def _happened(figures: dict[str, Any]) -> str:
    """Return one sentence: decisions, incidents, and the account's equity."""
    through = ""
    if count := len(figures.get("incidents", ())):
        starts = count_of(figures["processes"], "start")
        through = f" through {count_of(count, 'incident')} and {starts} of the daemon"
    too_late = f", {figures['late']:,} too late to trade" if figures["late"] else ""
    return (
        f"{figures['decisions']:,} decisions in {figures['days']:.1f} days{through}{too_late}; "
        f"{figures['start']:,.2f} became {figures['equity']:,.2f}."
    )
