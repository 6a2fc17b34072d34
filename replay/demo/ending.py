"""The demo's summary: the result, the checks of the record, and the next commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.checks.parity import check_whole
from tracepaper.replay.demo.processes import Demo
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
    SELECT (SELECT count(*) FROM v_decisions WHERE run_id = :run),
        (SELECT count(*) FROM v_decisions WHERE run_id = :run AND refused_by = :late),
        (SELECT max(open_time_ms) - min(open_time_ms) FROM v_decisions WHERE run_id = :run),
        (SELECT equity FROM v_equity WHERE run_id = :run ORDER BY sequence DESC LIMIT 1)
"""


def read(database: Path) -> tuple[dict[str, Any], ChainReport]:
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
        "late": late_count,  # decisions that the gate ``late`` refused
        "days": span_ms / DAY_MS,
        "trades": len(closed),
        "start": cash,
        "equity": equity,
        "return": equity / cash - 1.0,
        "judgement": judgement(record, closed),
        "explained_sequence": decision_to_explain(database, run_id),
    }
    return figures, chain


def sum_up(database: Path, played: Demo | None, *, as_json: bool) -> None:
    """Print the summary of the newest run; *played* is the demo of the bundled month, if any."""
    (ending, chain), terminal = read(database), Terminal(highlight=False)
    if not as_json:
        for sentence in (f"What happened: {happened(ending, played)}", ending["judgement"]):
            terminal.print(Text(sentence), soft_wrap=True)
        sys.stderr.write("The run is replayed from its record, which takes a while.\n")
    parity = check_whole(database, ending["run_id"], "parity")
    if as_json:
        demo_document = (
            {}
            if played is None
            else {
                "config": str(played.files.config),
                "log": str(played.files.log),
                "processes": played.starts,
                "incidents": played.outcomes,
            }
        )
        checks = {"chain": {"passes": chain.passes, "steps": chain.steps}, "parity": parity}
        print_json(ending | demo_document | {"database": str(database)} | checks)
        return
    passes = parity.outcome is ParityOutcome.IDENTICAL and chain.passes
    verdict = "holds" if chain.passes else f"is broken: {chain.problem}"
    sentence = (
        f"What it proved: replayed from its record, {parity.reason}; the chain of "
        f"{chain.steps:,} steps {verdict}."
    )
    terminal.print(Text(sentence, "" if passes else "bold red"), soft_wrap=True)
    program, sequence = program_name(), ending["explained_sequence"]
    decision = "" if sequence is None else f" explain last:{sequence} --full"
    for words, command in (("open", " ui --open"), ("type", decision or " report last")):
        line = f"What to {words}: {program}{command} --db {database}"
        terminal.print(line, soft_wrap=True, markup=False)


def happened(ending: Mapping[str, Any], played: Demo | None) -> str:
    """Return one sentence: decisions, incidents, and the account's equity."""
    through = ""
    if played is not None and (count := len(played.outcomes)):
        starts = count_of(played.starts, "start")
        through = f" through {count_of(count, 'incident')} and {starts} of the daemon"
    too_late = f", {ending['late']:,} too late to trade" if ending["late"] else ""
    return (
        f"{ending['decisions']:,} decisions in {ending['days']:.1f} days{through}{too_late}; "
        f"{ending['start']:,.2f} became {ending['equity']:,.2f}."
    )
