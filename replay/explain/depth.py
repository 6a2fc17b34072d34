"""The map of level and time of one decision that was taken by order books.

The strategy is made again from the run's configuration, and sees the books that the run stored.
The rule is docs/orderbook.md, D18.
"""

from __future__ import annotations

from pathlib import Path

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.orderbook import checkpoint_folder, checkpoint_sha256, make_orderbook
from tracepaper.replay.explain.stored import StoredDecision
from tracepaper.replay.training.book_map import BookMap
from tracepaper.replay.training.honesty import shown_sentences
from tracepaper.storage.checkpoints import read_card
from tracepaper.storage.reader import Reader
from tracepaper.strategies.book_record import LATER_BOOKS, BookRecord
from tracepaper.strategies.books import SIDES
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.types import Bar, Run


def decided_map(database: Path, run_id: str, sequence: int, stored: StoredDecision) -> BookMap:
    """Return where the decision looked, asked again of the run's own checkpoint.

    Raises ``DataInvalid`` where it asked no network or the run no longer has the books, and
    ``CheckpointMismatch`` where the checkpoint is another one now.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        config = _config_of(run)
        strategy = make_orderbook(config)
        bar = reader.step(run_id, sequence).step.event
        assert isinstance(bar, Bar)
        record = BookRecord(strategy.books)
        wanted = strategy.books + LATER_BOOKS
        for depths in reader.depths(run_id, bar.instrument, until=sequence, books=wanted):
            record.add(depths)
    books = strategy.fit(record.until(bar.close_time_ms), bar.close_time_ms)
    if isinstance(books, str) and any(row["name"] == "p_up" for row in stored.notes):
        raise DataInvalid(
            f"Run {run_id} no longer has the order books that decision {sequence} looked at, as "
            "after a prune: the map of a younger decision can be drawn."
        )
    if isinstance(books, str):
        raise DataInvalid(f"Decision {sequence} of run {run_id} asked no network: {books}.")
    (item,) = (item for item in run.instruments if item.id == bar.instrument)
    look = strategy.model.look(books)
    card = read_card(checkpoint_folder(config))
    odds = tuple(tuple(row) for row in look.probabilities.tolist())
    return BookMap(
        instrument=bar.instrument,
        model_id=str(card["model"]["id"]),
        at_ms=int(books.seen_ms[-1]),
        every_ms=strategy.model.every_ms,
        horizons=strategy.config.horizons,
        probabilities=odds,
        books=books,
        price_decimals=item.price_decimals,
        quantity_decimals=item.quantity_decimals,
        weights=look.weights.numpy().reshape(len(books), len(SIDES), strategy.config.levels),
        l1_error=look.l1_error,
        says=(
            *shown_sentences(card),
            *_difference(stored, odds, strategy.at),
        ),
    )


def _difference(
    stored: StoredDecision, odds: tuple[tuple[float, ...], ...], at: int
) -> tuple[str, ...]:
    """Return in a sentence how far what was said again is from what was noted, where it is."""
    noted = {row["name"]: row["number"] for row in stored.notes}
    names = ("p_down", "p_flat", "p_up")
    furthest = max(
        (
            abs(noted[name] - one)
            for name, one in zip(names, odds[at], strict=True)
            if name in noted
        ),
        default=0.0,
    )
    if furthest == 0.0:
        return ()
    return (f"What it says now differs by up to {furthest:.1e} from what was stored.",)


def _config_of(run: Run) -> Config:
    config = restore(run.config)
    if (found := checkpoint_sha256(config)) != run.strategy_sha256:
        raise CheckpointMismatch(
            f"The checkpoint {config.strategy.options.get('checkpoint')} is {found[:12]} now, and "
            f"{run.strategy_sha256[:12]} decided; restore it."
        )
    return config
