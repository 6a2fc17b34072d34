"""The command ``report``."""

from __future__ import annotations

from pathlib import Path

from command_line import Cli


def test_the_terminal_names_accounts_costs_and_refusals(attention_database: Path, cli: Cli) -> None:
    code, out, err = cli("report", "last", "--db", attention_database)
    assert (code, err) == (0, "")
    for word in (
        "ungated",
        "buy and hold",
        "Costs",
        "confidence",
        "random",
        "--html FILE",
        "--json",
    ):
        assert word in out
    assert "predicted no momentum" not in out  # folded under one line
    assert "more to know before believing any of it: --notes" in out
    unfolded = cli("report", "last", "--db", attention_database, "--notes")[1]
    assert "predicted no momentum" in " ".join(unfolded.split())
