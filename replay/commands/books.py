"""What ``train``, ``evaluate`` and ``explain`` do with order books."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from tracepaper.daemon.commands.options import print_json
from tracepaper.strategies.errors import ConfigInvalid

ARCHITECTURE: Final = ("window", "layers", "dim", "heads", "horizons")
TRAINING: Final = {
    "steps": "steps",
    "windows": "windows",
    "learning_rate": "learning_rate",
    "threads": "threads",
}
"""Options of ``train`` that a fit on books takes, and its own names for them."""
_ZONE: Final = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_NUMBER: Final = re.compile(r"\d+")
THREADS: Final = 1


def train_books(
    given: Mapping[str, Mapping[str, Any]],
    data: Sequence[str],
    out: Path,
    *,
    seeds: Sequence[int],
    others: Sequence[str],
    as_json: bool,
) -> None:
    """Fit a network of order books on files of ``data record``; write it with its card.

    *others* names options beside *given* that were given too. Raises ``ConfigInvalid`` for every
    option that means nothing here.
    """
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.training.book_data import BookMaterial
    from tracepaper.replay.training.book_fit import BookFitOptions
    from tracepaper.replay.training.book_fit import train_books as fit
    from tracepaper.strategies.networks.orderbook import OrderBookConfig

    taken = {("model", "kind"), ("model", "name")}
    taken |= {("architecture", name) for name in ARCHITECTURE}
    taken |= {("training", name) for name in TRAINING}
    strange = [*others]
    for section, options in given.items():
        strange += [
            name
            for name, value in options.items()
            if value is not None and (section, name) not in taken
        ]
    if strange or len(seeds) > 1:
        raise ConfigInvalid(
            f"A network of order books takes no {strange[0] if strange else 'second --seed'}; it "
            f"takes --data, --out, --name, --seed, "
            f"{', '.join('--' + name.replace('_', '-') for name in (*ARCHITECTURE, *TRAINING))}."
        )
    material = BookMaterial.read(data)
    architecture = {
        name: value
        for name, value in given["architecture"].items()
        if value is not None and name != "horizons"
    }
    if (horizons := given["architecture"]["horizons"]) is not None:
        architecture["horizons"] = _wholes(horizons)
    chosen = {
        TRAINING[name]: value
        for name, value in given["training"].items()
        if value is not None and name in TRAINING
    }
    found = fit(
        material,
        OrderBookConfig.read({**architecture, "levels": material.header.levels}),
        BookFitOptions(**chosen, seed=seeds[0] if seeds else 0),
        out,
        name=given["model"]["name"] or out.name,
        created_ms=SystemClock().wall_ms(),
        say=lambda sentence: typer.echo(sentence, err=True),
    )
    if as_json:
        print_json({"folder": str(out), "id": found.id, "card": found.card})
        return
    typer.echo(f"Wrote {out}, checkpoint {found.id}.")
    for sentence in found.card["honesty"]["sentences"]:
        typer.echo(f"  {sentence}")
    typer.echo(f"Look at it: tracepaper explain --depth {data[0]} --checkpoint {out}.")


def _wholes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigInvalid(
            f"--horizons is {text!r}; write numbers of books by commas, such as 1,10,60."
        ) from None


def evaluate_books(folder: Path, data: Sequence[str], *, threads: int, as_json: bool) -> None:
    """Judge a network of order books on *data*, or say why nothing can be said of it."""
    from tracepaper.replay.training.book_map import evaluated

    said, figures = evaluated(folder, data, threads=threads)
    if as_json:
        print_json({"says": said, "figures": figures})
        return
    for sentence in said:
        typer.echo(sentence)
    for horizon, found in figures.items():
        typer.echo(f"{horizon} books ahead")
        for name, value in found.items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            typer.echo(f"  {name.replace('_', ' '):32} {shown}")


def explain_book(
    depth: Path | None, checkpoint: str | None, at: str | None, *, threads: int, as_json: bool
) -> None:
    """Print the map of level and time of one answer."""
    from rich.console import Console

    from tracepaper.replay.explain.book import map_document, show_map
    from tracepaper.replay.training.book_map import book_map
    from tracepaper.storage.checkpoints import locate

    if depth is None or checkpoint is None:
        raise ConfigInvalid("Give --depth FILE and --checkpoint FOLDER together, or a RUN alone.")
    at_ms = None if at is None else _instant(at)
    found = book_map(locate(checkpoint), depth, at_ms, threads=threads)
    if as_json:
        print_json(map_document(found))
        return
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(show_map(found))


WIDE: Final = 132
"""A pipe has no width, and a map cut to 80 columns would hide shares."""


def _instant(text: str) -> int:
    """Return the UTC milliseconds of a time with its zone; raise ``ConfigInvalid``."""
    from tracepaper.replay.archive.times import instant

    if not _NUMBER.fullmatch(text) and not _ZONE.search(text):
        raise ConfigInvalid(
            f"--at is {text!r}, a time without a zone; write it as 2026-08-09T21:27:30Z."
        )
    return instant(text)
