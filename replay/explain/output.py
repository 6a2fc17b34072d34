"""What ``tracepaper explain`` does: read, recompute where asked, and print, encode or draw."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.sections import ORDERBOOK, TOGETHER
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.explain.asked import ALONE, ComparedWith, TypedMethod
from tracepaper.replay.explain.stored import StoredDecision, flips_of, locate, read_stored
from tracepaper.replay.explain.terminal import show_stored
from tracepaper.replay.report.listed import listed
from tracepaper.strategies.errors import AttentionInvalid, CheckpointMismatch, DataInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from tracepaper.replay.explain.by_feature import ByFeature
    from tracepaper.replay.explain.by_method import ByMethod
    from tracepaper.replay.explain.compared import SideBySide
    from tracepaper.replay.explain.influence import Influence
    from tracepaper.replay.explain.recomputed import Full
    from tracepaper.replay.training.book_map import BookMap


class Recomputed(NamedTuple):
    """What the model said again: where a network looked, what a tree's or a glm's features added.

    An ensemble says both, and a decision of which nothing was asked again neither. ``by_method``
    is where a network looked by the method that was asked for, ``influence`` where one over several
    assets did, ``books`` where one of order books did.
    """

    full: Full | None = None
    by_feature: ByFeature | None = None
    by_method: ByMethod | None = None
    compared: SideBySide | None = None
    influence: Influence | None = None
    books: BookMap | None = None


def explain_decision(
    decision: str,
    database: Path | None,
    *,
    full: bool,
    png: Path | None,
    as_json: bool,
    page: Path | None = None,
    asked: TypedMethod | None = None,
    beside: ComparedWith = ALONE,
) -> None:
    """Explain *decision* (``RUN:SEQUENCE``); what was stored is shown even where --full fails.

    *asked* is the method of one's choice, *beside* what it is compared with; a *page* takes
    all that --full does. Raises ``DataInvalid``, ``AttentionInvalid`` or
    ``CheckpointMismatch`` where what was asked for cannot be had.
    """
    require("matplotlib", "--png", png)
    require("plotly", "--page", page)
    beside.check()
    if asked:
        from tracepaper.replay.explain.by_method import check_asked

        check_asked(asked)
    path, run_id, sequence = locate(decision, database)
    stored = read_stored(path, run_id, sequence)
    found = Recomputed()
    missing: DataInvalid | CheckpointMismatch | AttentionInvalid | None = None
    if full or asked or beside or page is not None:
        try:
            found = _asked_again(
                path,
                run_id,
                sequence,
                stored,
                full=full or page is not None,
                asked=asked,
                beside=beside,
            )
        except (DataInvalid, CheckpointMismatch, AttentionInvalid) as error:
            missing = error
    if as_json:
        print_json(document(stored, found, None if missing is None else str(missing)))
    else:
        _print(stored, found)
    if missing is not None:
        raise missing
    if png is not None:
        from tracepaper.replay.explain.picture import draw

        draw(path, stored, found.full, png)
        _say(f"The picture is {png}.")
    if page is not None:
        _write(page, path, stored, found)
        _say(f"The page is {page}.")


def _write(page: Path, path: Path, stored: StoredDecision, found: Recomputed) -> None:
    """Write the page of a decision; raise ``DataInvalid`` for one without attention."""
    if found.full is None:
        raise DataInvalid(
            "A page shows where a network looked, and this model has no attention; leave --page "
            "out."
        )
    from tracepaper.replay.explain.page import read_heads_at, write_page
    from tracepaper.replay.explain.recomputed import open_past

    past = open_past(path, str(stored.run["run_id"]), int(stored.decision["sequence"]))
    write_page(page, stored, found.full, read_heads_at(path, past), found.compared)


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(sentence, highlight=False, markup=False)


def document(stored: StoredDecision, found: Recomputed, missing: str | None) -> dict[str, Any]:
    """Return everything about one decision as plain values; returns are log returns."""
    flips = asdict(flips_of(stored))
    margins = flips.pop("gates")
    names = ("unit", "words", "margin", "share")
    return {
        "run": {name: stored.run[name] for name in ("run_id", "kind", "strategy", "interval")},
        "decision": stored.decision,
        "notes": {
            row["name"]: row["number"] if row["text"] is None else row["text"]
            for row in stored.notes
        },
        "orders": listed(stored.orders, title="").documents(),
        "gates": [
            {**row, **{name: margin[name] for name in names}}
            for row, margin in zip(stored.gates, margins, strict=True)
        ],
        "flips": flips,
        "buckets": stored.buckets,
        "no_attribution": stored.no_attribution,
        "full": None if found.full is None else asdict(found.full),
        "by_feature": None if found.by_feature is None else asdict(found.by_feature),
        "by_method": None if found.by_method is None else asdict(found.by_method),
        "compared": None if found.compared is None else compared_document(found.compared),
        "influence": None if found.influence is None else asdict(found.influence),
        "books": None if found.books is None else _books_document(found.books),
        "full_missing": missing,
    }


def compared_document(found: SideBySide) -> dict[str, Any]:
    """Return a comparison as plain values."""
    from tracepaper.replay.explain.compared import as_document

    return as_document(found)


def _compared(path: Path, run_id: str, sequence: int, beside: ComparedWith) -> SideBySide:
    """Return the decision compared with what *beside* names."""
    from tracepaper.replay.explain.compared import by_model, compare, sided
    from tracepaper.replay.explain.recomputed import open_past

    past = open_past(path, run_id, sequence)
    if beside.model is not None:
        other, name = by_model(path, past, beside.model), beside.model
        own = past.forecaster.model_id
    else:
        assert beside.decision is not None
        place = locate(beside.decision, None if "#" in beside.decision else path)
        other, name = open_past(*place), f"decision {place[2]:,}"
        own = f"decision {sequence:,}"
    return compare(sided(past, own), sided(other, name))


def _asked_again(
    path: Path,
    run_id: str,
    sequence: int,
    stored: StoredDecision,
    *,
    full: bool,
    asked: TypedMethod | None,
    beside: ComparedWith,
) -> Recomputed:
    """Return what is said again of a decision, by whatever decided it."""
    strategy = stored.run["strategy"]
    if not beside:
        if strategy in TOGETHER:
            return _over_assets(path, run_id, sequence, asked)
        if strategy == ORDERBOOK and not asked:
            return _over_books(path, run_id, sequence, stored)
    return _recomputed(path, run_id, sequence, full=full, asked=asked, beside=beside)


def _over_assets(path: Path, run_id: str, sequence: int, asked: TypedMethod | None) -> Recomputed:
    """Return where a decision over several assets looked, by the rollout that was asked."""
    from tracepaper.replay.explain.influence import influence

    return Recomputed(influence=influence(path, run_id, sequence, asked))


def _over_books(path: Path, run_id: str, sequence: int, stored: StoredDecision) -> Recomputed:
    """Return at which level and time a decision by order books looked."""
    from tracepaper.replay.explain.depth import decided_map

    return Recomputed(books=decided_map(path, run_id, sequence, stored))


def _books_document(found: BookMap) -> dict[str, Any]:
    """Return a map of level and time as plain values."""
    from tracepaper.replay.explain.book import map_document

    return map_document(found)


def _recomputed(
    path: Path,
    run_id: str,
    sequence: int,
    *,
    full: bool,
    asked: TypedMethod | None,
    beside: ComparedWith,
) -> Recomputed:
    from tracepaper.replay.explain.by_feature import by_feature, of_rows, share_of_rows
    from tracepaper.replay.explain.recomputed import explain_fully, open_any, open_past
    from tracepaper.strategies.forecasters.rowwise import RowForecaster

    # On anything but a terminal the status prints nothing.
    with Console(stderr=True).status("Asking the model again; this takes some seconds."):
        chosen = None
        if asked:
            from tracepaper.replay.explain.by_method import explain_by

            chosen = explain_by(open_past(path, run_id, sequence), asked)
        compared = _compared(path, run_id, sequence, beside) if beside else None
        if not full:
            return Recomputed(by_method=chosen, compared=compared)
        past = open_any(path, run_id, sequence)
        rows = of_rows(past)
        added = None if rows is None else by_feature(rows, share=share_of_rows(past))
        if isinstance(past.forecaster, RowForecaster):
            return Recomputed(None, added)
        return Recomputed(explain_fully(open_past(path, run_id, sequence)), added, chosen, compared)


def _print(stored: StoredDecision, found: Recomputed) -> None:
    console = Terminal()
    console.print(show_stored(stored))
    if found != Recomputed():
        from tracepaper.replay.explain.terminal_full import (
            show_by_feature,
            show_by_method,
            show_compared,
            show_full,
        )

        if found.full is not None:
            console.print(show_full(found.full))
        if found.by_feature is not None:
            console.print(show_by_feature(found.by_feature))
        if found.by_method is not None:
            console.print(show_by_method(found.by_method))
        if found.compared is not None:
            console.print(show_compared(found.compared))
        if found.influence is not None:
            from tracepaper.replay.explain.influence import show_influence

            console.print(show_influence(found.influence))
        if found.books is not None:
            from tracepaper.replay.explain.book import show_map

            console.print(show_map(found.books))
