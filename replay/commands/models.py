"""``tracepaper models``: list checkpoints with their cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tracepaper.daemon.commands.options import DatabaseOption, JsonOption, print_json
from tracepaper.strategies.errors import DataInvalid, shown


def models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER…", help="Bundled ones, checkpoints, folders that hold some."
        ),
    ] = None,
    *,
    db: DatabaseOption = None,
    card: Annotated[bool, typer.Option("--card", help="Print the whole cards.")] = False,
    json: JsonOption = False,
) -> None:
    """List the bundled checkpoints, those kept beside a database, and those in FOLDER."""
    from tracepaper.storage.checkpoints import BUNDLED, CARD_NAME, kept_folder, listed, locate

    given = [locate(str(folder)) for folder in folders or [BUNDLED]]
    if db is not None:
        given.append(kept_folder(db, ""))
    found = list(listed(given))
    if json:
        print_json({"models": [{"folder": str(place), "card": read} for place, read in found]})
        return
    if not found:
        raise DataInvalid("No checkpoint lies there; `tracepaper train` makes one.")
    for place, read in found:
        typer.echo((place / CARD_NAME).read_text() if card else "\n".join(_lines(place, read)))


def _lines(place: Path, card: dict[str, Any]) -> list[str]:
    """Return what a reader wants to know first."""
    model, architecture = card["model"], card["architecture"]
    layers, window = architecture.get("layers"), architecture.get("window")
    whole = isinstance(layers, int) and isinstance(window, int)
    horizons = architecture.get("horizons")
    kind = f"{model.get('kind')!s:.20}"
    facts: tuple[str, ...] = (
        f"{kind}: {shown(layers)} layers, window {shown(window)}" if layers else kind,
        f"context {_rows(architecture)} bars" if whole else _lookback(card),
        f"horizons {', '.join(map(str, horizons[:16])) if isinstance(horizons, list) else '?'}",
        f"interval {card['market'].get('interval')!s:.20}",
        f"features {card['features'].get('schema_id')!s:.40}",
        f"made {model.get('created', 'at an unknown time')}",
    )
    if shares := _shares(card):
        facts = (*facts, f"the network's share of the log variance {shares}")
    return [
        f"{model.get('id', '')}  {model.get('name', '')}  ({place})",
        f"  {'; '.join(facts)}",
        *(f"  {sentence}" for sentence in card.get("honesty", {}).get("sentences", [])),
    ]


def _shares(card: dict[str, Any]) -> str:
    """Return the network's share in an ensemble by horizon; empty for other models."""
    section = card.get("ensemble")
    shares = section.get("network_share") if isinstance(section, dict) else None
    if not isinstance(shares, dict):
        return ""
    return ", ".join(
        f"{share:.2f} at {key!s:.10}"
        for key, share in list(shares.items())[:16]
        if isinstance(share, int | float)
    )


def _rows(architecture: dict[str, Any]) -> int:
    """Return how many rows an answer depends on: layers of a sliding window reach further back."""
    layers, window = int(architecture["layers"]), int(architecture["window"])
    return layers * (window - 1) + 1 if architecture.get("mask") == "window" else window


def _lookback(card: dict[str, Any]) -> str:
    """Return how far the rows look back of a model that sees one row."""
    bars = card["features"].get("lookback")
    one_row = isinstance(bars, int) and "window" not in card["architecture"]
    return f"context {bars} bars" if one_row else "context unknown"
