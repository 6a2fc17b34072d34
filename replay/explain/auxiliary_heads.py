"""Auxiliary heads of one decision, and the depth map of an order book decision.

They are in the record; of a run from before that, the network is asked anew with the stored bars.

The rule is docs/models.md, L61.

The strategy is made again from the run's configuration, and sees the books that the run stored.
The rule is docs/orderbook.md, D18.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from pathlib import Path

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.models import checkpoint_folder, checkpoint_sha256, make_orderbook
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.storage.checkpoints import read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.order_book import LATER_BOOKS, SIDES, OrderBookHistory
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    SHARES,
    TAILS,
    Forecast,
    Run,
    path_steps,
)
from tracepaper.strategies.types.market import Bar


@dataclass(frozen=True)
class TailAhead:
    """The loss that a share of returns exceeds, and the mean of those: log returns."""

    position: str  # long or short
    share: float
    value_at_risk: float
    expected_shortfall: float


@dataclass(frozen=True)
class DrawdownAhead:
    """A quantile of the largest fall, or rise, from one close to a later one, as a log return."""

    level: float
    drawdown: float


@dataclass(frozen=True)
class RegimeAhead:
    """With what odds the variance comes from a regime, and the volatility to the horizon in it."""

    probability: float
    volatility: float


@dataclass(frozen=True)
class PathStepAhead:
    """The 5, 50 and 95 % quantiles of the log return after so many bars."""

    bars: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class FurtherAhead:
    """All of it to one horizon, in bars; empty where the network has no such head."""

    horizon: int
    tails: tuple[TailAhead, ...]
    drawdown: tuple[DrawdownAhead, ...]
    regimes: tuple[RegimeAhead, ...]
    path: tuple[PathStepAhead, ...]
    quantiles: tuple[float, ...] = ()  # of the log return, at the levels of the card
    allocation: float | None = None  # the position that the network itself would hold
    runup: tuple[DrawdownAhead, ...] = ()


def further_ahead(forecast: Forecast) -> tuple[FurtherAhead, ...]:
    """Return the auxiliary heads' forecasts of one decision by horizon; none where it has none."""
    if forecast.heads is None:
        return ()
    return tuple(
        FurtherAhead(
            horizon,
            tuple(_tails(forecast.head("tails", at))),
            tuple(map(DrawdownAhead, DRAWDOWN_LEVELS, forecast.head("drawdown", at))),
            tuple(starmap(RegimeAhead, _rows(forecast.head("regimes", at), 2))),
            tuple(
                PathStepAhead(bars, *quantiles)
                for bars, quantiles in zip(
                    path_steps(horizon), _rows(forecast.head("path", at), 3), strict=False
                )
            ),
            forecast.head("quantiles", at),
            forecast.allocation(at),
            tuple(map(DrawdownAhead, DRAWDOWN_LEVELS, forecast.head("runup", at))),
        )
        for at, horizon in enumerate(forecast.horizons)
    )


def _rows(flat: Sequence[float], width: int) -> Iterator[tuple[float, ...]]:
    """Yield *flat* numbers by rows of *width*."""
    return zip(*[iter(flat)] * width, strict=True)


def _tails(flat: Sequence[float]) -> Iterator[TailAhead]:
    for (position, share), pair in zip(product(TAILS, SHARES), _rows(flat, 2), strict=False):
        yield TailAhead(position, share, *pair)


def decided_map(database: Path, run_id: str, sequence: int, stored: StoredDecision) -> BookMap:
    """Return the depth map of a decision, recomputed by the run's own checkpoint.

    Raises ``DataInvalid`` where it asked no network or the run no longer has the books, and
    ``CheckpointMismatch`` where the checkpoint is another one now.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        config = _config_of(run)
        strategy = make_orderbook(config)
        bar = reader.step(run_id, sequence).event
        assert isinstance(bar, Bar)
        record = OrderBookHistory(strategy.books)
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
            *card_sentences(card),
            *_difference(stored, odds, strategy.at),
        ),
    )


def _difference(
    stored: StoredDecision, odds: tuple[tuple[float, ...], ...], at: int
) -> tuple[str, ...]:
    """Say how far the recomputed odds differ from those noted, where they do."""
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
