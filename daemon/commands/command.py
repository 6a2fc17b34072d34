"""``tracepaper command``: the operator's word to the running daemon, audited as an event."""

from __future__ import annotations

from typing import Annotated

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    database_path,
    print_json,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import CommandKind


def command(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="HALT|RESUME|FLATTEN",
            help="HALT holds everything, RESUME lifts it, FLATTEN halts and closes.",
        ),
    ],
    *,
    note: Annotated[str, typer.Option(help="Why; stored with the event.")] = "",
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Halt, resume or flatten the running daemon."""
    from tracepaper.daemon.http.client import ask

    if kind.upper() not in set(CommandKind):
        raise ConfigInvalid(f"{kind!r} is no command; write {', '.join(CommandKind)}.")
    body: dict[str, object] = {"kind": kind.upper(), "note": note}
    answer = ask(database_path(db, config), "/command", body)
    if json:
        print_json(answer)
    else:
        typer.echo(f"{kind.upper()} is event {answer['sequence']} of the run.")
