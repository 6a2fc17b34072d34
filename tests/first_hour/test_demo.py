"""A newcomer's first command: the demo. What it prints is compared with its record by SQL."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal

import pytest
from newcomer import Shell, rows

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def numbers(pattern: str, text: str) -> list[Decimal]:
    """Return the numbers that the groups of *pattern* match in *text*, which must have them."""
    match = re.search(pattern, text)
    assert match is not None, f"{pattern}\n{text}"
    return [Decimal(group.replace(",", "")) for group in match.groups()]


def test_the_demo_says_what_its_record_holds_and_its_commands_work(shell: Shell) -> None:
    answer = shell("tracepaper demo")
    (record,) = shell.folder.glob("demo-*.db")
    left = {path.name.removeprefix(record.stem) for path in shell.folder.glob("demo-*")}
    assert left == {".db", ".db.checkpoints", ".log", ".toml"}
    happened = answer[answer.index("What happened:") :]

    ((decided, closed, equity),) = rows(
        record,
        "SELECT (SELECT count(*) FROM v_decisions), (SELECT count(*) FROM v_trades), "
        "(SELECT equity_text FROM v_equity ORDER BY sequence DESC LIMIT 1)",
    )
    assert numbers(r"What happened: ([\d,]+) decisions", happened) == [decided]
    begun, ended = numbers(r"([\d,.]+\d) became ([\d,.]+\d)\.", happened)
    assert ended == round(Decimal(equity), 2)
    percent, traded = numbers(r"Was it any good\? It \w+ ([\d.]+) % in ([\d,]+) trades", happened)
    assert traded == closed
    assert percent == abs(round(100 * (Decimal(equity) / begun - 1), 2))
    assert numbers(r"identical ([\d,]+) of ([\d,]+) decisions", happened) == [decided, decided]
    ((steps,),) = rows(record, "SELECT max(last_sequence) + 1 FROM v_commits")
    assert numbers(r"the chain of ([\d,]+) steps holds", happened) == [steps]

    # The incidents: what HALT refused, and bars that came late by REST.
    refused, halted, resumed = numbers(
        r"RESUME: ([\d,]+) decisions between step ([\d,]+) and step ([\d,]+)", answer
    )
    between = f"sequence BETWEEN {halted} AND {resumed} AND refused_by = 'operator'"
    assert rows(record, f"SELECT count(*) FROM v_decisions WHERE {between}") == [(refused,)]
    commands = rows(record, "SELECT kind FROM v_commands ORDER BY sequence")
    assert commands == [("HALT",), ("RESUME",)]
    ((missing,),) = rows(record, "SELECT count(*) FROM v_gaps WHERE repaired_by = ''")
    assert missing == 0

    # The commands that it names do what it says.
    typed = re.search(r"What to type: (tracepaper explain last:(\d+) .*?\.db)", answer)
    assert typed is not None
    ((instrument, time, action),) = rows(
        record,
        f"SELECT instrument, open_time_iso, action FROM v_decisions WHERE sequence = {typed[2]}",
    )
    assert f"{instrument} at {time}: {action}" in shell(typed[1])
    opened = re.search(r"What to open: (tracepaper ui .*?\.db)", answer)
    assert opened is not None
    assert shlex.split(opened[1])[-1] == record.name
    assert f"{decided} of" in shell(f"tracepaper verify last --db {record.name}").replace(",", "")
