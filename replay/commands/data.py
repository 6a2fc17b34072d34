"""``tracepaper data import|check|list|fetch``: candle archives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Category

if TYPE_CHECKING:
    from tracepaper.replay.quality import Quality

app = typer.Typer(help="Import, check, list and fetch candles.")

GAPS_SHOWN: Final = 5

PathsArgument = Annotated[
    list[str],
    typer.Argument(metavar="PATH…", help="Candle files; SYMBOL=PATH where the name lacks it."),
]
SymbolOption = Annotated[
    str | None, typer.Option("--symbol", help="The symbol, where the file's name lacks it.")
]
CategoryOption = Annotated[
    Category | None, typer.Option("--category", help="The category; by default from the name.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse what would be dropped and said.")
]


@app.command()
def check(
    paths: PathsArgument,
    *,
    symbol: SymbolOption = None,
    category: CategoryOption = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Read candle files, and say for each what it holds or why it cannot be believed."""
    from dataclasses import asdict

    from tracepaper.replay.importers import read_candles
    from tracepaper.replay.quality import quality

    documents: list[dict[str, object]] = []
    refused = 0
    for path in paths:
        try:
            found = quality(read_candles(path, symbol=symbol, category=category, strict=strict))
        except DataInvalid as error:
            refused += 1
            documents.append({"path": path, "valid": False, "error": str(error)})
            if not json:
                typer.echo(f"✗ {error}")
            continue
        documents.append({"valid": True, **asdict(found)})
        if not json:
            typer.echo("\n".join(_lines(found)))
    if json:
        print_json({"files": documents, "refused": refused})
    if refused:
        raise typer.Exit(1)


def _lines(found: Quality) -> list[str]:
    """Return the report of one file for people."""
    from tracepaper.replay.importers.times import iso
    from tracepaper.replay.quality import interval_text

    gaps = [f"{iso(start)} to {iso(until)}" for start, until in found.gaps[:GAPS_SHOWN]]
    if len(found.gaps) > GAPS_SHOWN:
        gaps.append(f"and {len(found.gaps) - GAPS_SHOWN} more")
    span = f"{found.rows:,} candles that open from {iso(found.first_ms)} to {iso(found.last_ms)}"
    scales = f"prices to {_unit(found.price_decimals)}, volume to {_unit(found.volume_decimals)}"
    holes = f"{len(found.gaps)} holes, {found.missing:,} candles missing"
    lines = [
        f"✓ {found.path}",
        f"  {found.instrument}, {interval_text(found.interval_ms)}, {span}",
        f"  {scales}, turnover {_unit(found.turnover_decimals)}",
        f"  {found.zero_volume:,} without volume, {found.flat:,} with one price alone",
        f"  {holes}{': ' if gaps else ''}{'; '.join(gaps)}",
    ]
    if found.open_is_previous_close is not None:
        lines.append(f"  {found.open_is_previous_close:.1%} open at the close before")
    return lines + [f"  {note}" for note in found.notes]


def _unit(decimals: int | None) -> str:
    """Return the unit of so many decimals as text: ``0.01``."""
    if decimals is None:
        return "missing"
    return f"0.{'0' * (decimals - 1)}1" if decimals else "1"
