"""``tracepaper doctor``: look whether all is in place for a run on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    print_json,
)


def doctor(
    *,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask the exchange, over the network.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Look at python, packages, SQLite, disk, checkpoint and, if asked, the exchange."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.diagnostics import Verdict, ask_exchange, diagnose
    from tracepaper.daemon.session.shutdown import run_loop

    loaded = load(config)
    findings = list(diagnose(loaded, db or loaded.storage.path))
    if online:
        findings += run_loop(ask_exchange(loaded))
    if json:
        print_json({"findings": findings})
    else:
        marks = {Verdict.OK: "✓", Verdict.WARN: "!", Verdict.FAIL: "✗"}
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            typer.echo(f"{marks[finding.verdict]} {finding.check:<{width}}  {finding.detail}")
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)
