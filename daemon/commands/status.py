"""``tracepaper status``: the running daemon at a glance."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    database_path,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

Document = dict[str, object]


def status(
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask /readyz alone: ready, or the reasons.")
    ] = False,
) -> None:
    """Show the running daemon: health, account, and the last decision with its gates.

    Exit code 1 where it is not ready.
    """
    from tracepaper.daemon.http.client import ask, readiness
    from tracepaper.daemon.terminal.console import Terminal

    database = database_path(db, config)
    if ready:
        is_ready, words = readiness(database)
        typer.echo(words)
    else:
        document = ask(database, "/status")
        is_ready = bool(document["ready"])
        if json:
            print_json(document)
        else:
            console = Terminal(highlight=False)
            for part in _parts(document):
                console.print(part)
    if not is_ready:
        raise typer.Exit(1)


def _parts(document: Document) -> list[RenderableType]:
    from rich.text import Text

    state, reasons = document["state"], cast("list[str]", document["not_ready"])
    head = Text.assemble(
        (f"{state}", "bold green" if state == "running" else "bold yellow"),
        "" if document["halted_by"] is None else f" by {document['halted_by']}",
        f"  run {document['run_id']} ({document['kind']}), process {document['pid']}, ",
        f"{document['strategy']} {document['model_id']}".rstrip(),
    )
    counts = (
        f"{document['bars']} bars, {document['decisions']} decisions, {document['fills']} fills "
        f"up to event {document['sequence']}"
    )
    parts: list[RenderableType] = [head, Text(counts, "dim")]
    parts += [Text(f"not ready: {reason}", "yellow") for reason in reasons]
    if (retraining := cast("Document | None", document["retraining"])) is not None:
        parts.append(Text(_retraining(retraining, cast("int", document["market_ms"])), "dim"))
    if document["account"] is not None:
        parts.append(_accounts(document))
    instruments = cast("dict[str, Document]", document["instruments"])
    parts += [_instrument(name, facts) for name, facts in instruments.items()]
    return parts


def _retraining(facts: Document, now_ms: int) -> str:
    """Return one line on how the retraining of the model stands."""
    from tracepaper.strategies.words import duration

    last = cast("Document | None", facts["last"])
    wait_ms = max(cast("int", facts["due_ms"]) - now_ms, 0)
    counts = cast("dict[str, int]", facts["outcomes"])
    parts = [
        "a model is trained now" if facts["training"] else f"retraining in {duration(wait_ms)}",
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count),
        "" if last is None else f"last {last['outcome']}: {last['reason']}",
    ]
    return "; ".join(part for part in parts if part)


def _accounts(document: Document) -> RenderableType:
    from rich.table import Table

    from tracepaper.strategies.words import NOTHING

    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ["equity", "cash", "realized_pnl", "unrealized_pnl", "fees_paid", "funding_paid"]
    if "margin_used" in cast("Document", document["account"]):
        columns.append("margin_used")
    table.add_column("account")
    for column in columns:
        table.add_column(
            column.removesuffix("_paid").removesuffix("_pnl").replace("_", " "), justify="right"
        )
    accounts = {"run": document["account"], **cast("Document", document["twins"])}
    for name, account in accounts.items():
        facts = cast("dict[str, str]", account)
        table.add_row(
            name,
            *(
                f"{Decimal(facts[column]):,.2f}" if column in facts else NOTHING
                for column in columns
            ),
        )
    return table


def _instrument(name: str, facts: Document) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from tracepaper.strategies.gates import measured

    head = Text.assemble(
        (f"\n{name}", "bold"), f"  close {facts['close']}  position {facts.get('quantity', '0')}  "
    )
    if "margin" in facts:
        head.append(
            f"margin {Decimal(str(facts['margin'])):,.2f} at {facts['leverage']} x, liquidated at "
            f"{facts['liquidation_price']}  "
        )
    head.append(f"{facts.get('action', 'no decision yet')} {facts.get('reason', '')}".rstrip())
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "measure", "threshold"):
        table.add_column(column, justify="left" if column == "gate" else "right")
    for gate in cast("list[Document]", facts.get("gates", [])):
        mark, style = ("✓", "green") if gate["passed"] else ("✗", "red")
        measure, threshold = (cast("float | None", gate[key]) for key in ("measure", "threshold"))
        name = str(gate["gate"])
        table.add_row(
            f"[{style}]{mark}[/] {name}", measured(name, measure), measured(name, threshold)
        )
    return Group(head, table)
