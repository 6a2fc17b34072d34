"""Auxiliary heads of one decision, and the depth map of an order book decision.

The forecasts of the heads are read from the record, or recomputed from the stored bars if the
record lacks them (docs/models.md, L61). The depth map is recomputed by the strategy that the run's
configuration declares, from the stored books (docs/orderbook.md, D18).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.models import checkpoint_folder, checkpoint_sha256, make_orderbook
from tracepaper.replay.document.values import Table, table_of
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.storage.checkpoints import read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.order_book import LATER_BOOKS, OrderBookHistory
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    SHARES,
    TAILS,
    Forecast,
    RunRow,
    path_steps,
)
from tracepaper.strategies.types.market import Bar


def auxiliary_tables(forecast: Forecast) -> tuple[Table, ...]:
    """Return the forecasts of the auxiliary heads, one row per horizon and number; no empty table.

    Returns, volatilities and losses are log returns. Drawdown and run-up are the largest fall and
    rise from one close to a later one.
    """
    if forecast.heads is None:
        return ()
    horizons = list(enumerate(forecast.horizons))

    def numbers(head: str, width: int) -> Iterator[tuple[int, int, tuple[float, ...]]]:
        """Yield (horizon, index, row) for each row of *width* numbers of a head."""
        for at, horizon in horizons:
            flat = iter(forecast.head(head, at))
            for place, row in enumerate(zip(*[flat] * width, strict=True)):
                yield horizon, place, row

    losses = list(product(TAILS, SHARES))
    steps = {horizon: path_steps(horizon) for horizon in forecast.horizons}
    extremes = (("drawdown", "drawdown"), ("run-up", "runup"))
    tables = (
        table_of(
            "tails",
            "The loss that a share of returns exceeds, and the mean of those, in bp",
            {"bars ahead": "count", "position": "text", "share": "share", "value at risk": "bp",
             "expected shortfall": "bp"},
            [(horizon, *losses[place], *pair) for horizon, place, pair in numbers("tails", 2)],
        ),
        table_of(
            "extremes",
            "The largest fall and rise from one close to a later one, in bp, by quantile",
            {"bars ahead": "count", "extreme": "text", "quantile": "share", "return": "bp"},
            [
                (horizon, name, DRAWDOWN_LEVELS[place], *value)
                for name, head in extremes
                for horizon, place, value in numbers(head, 1)
            ],
        ),
        table_of(
            "regimes",
            "The odds of each regime, and the volatility to the horizon in it, in bp",
            {"bars ahead": "count", "regime": "count", "odds": "share", "volatility": "bp"},
            [(horizon, place + 1, *pair) for horizon, place, pair in numbers("regimes", 2)],
        ),
        table_of(
            "paths",
            "The forecast path, in bp: 5, 50 and 95 % of the return",
            {"bars ahead": "count", "after bars": "count", "5 %": "bp", "50 %": "bp",
             "95 %": "bp"},
            [(horizon, steps[horizon][place], *row) for horizon, place, row in numbers("path", 3)],
        ),
        table_of(
            "quantiles",
            "The forecast return, in bp, by the quantiles of the card",
            {"bars ahead": "count", "number": "count", "return": "bp"},
            [(horizon, place + 1, *row) for horizon, place, row in numbers("quantiles", 1)],
        ),
    )  # fmt: skip
    return tuple(table for table in tables if table.rows)


def decided_map(database: Path, run_id: str, sequence: int, stored: StoredDecision) -> BookMap:
    """Return the depth map of a decision, recomputed by the run's checkpoint.

    Raises ``DataInvalid`` if the decision asked no network, and ``CheckpointMismatch`` if the
    checkpoint has changed.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        config = _config_of(run)
        strategy = make_orderbook(config)
        bar = reader.step(run_id, sequence).event
        assert isinstance(bar, Bar)
        record = OrderBookHistory(strategy.books)
        needed = strategy.books + LATER_BOOKS
        for depths in reader.depths(run_id, bar.instrument, until=sequence, books=needed):
            record.add(depths)
    books = strategy.usable(record.until(bar.close_time_ms), bar.close_time_ms)
    if isinstance(books, str):
        raise DataInvalid(f"Decision {sequence} of run {run_id} asked no network: {books}.")
    (item,) = (item for item in run.instruments if item.id == bar.instrument)
    attribution, card = strategy.model.attribution(books), read_card(checkpoint_folder(config))
    sentences = (
        *card_sentences(card),
        *_difference(stored, attribution.probabilities[strategy.at].tolist()),
    )
    return BookMap(
        bar.instrument,
        card,
        books,
        attribution,
        strategy.config.horizons,
        every_ms=strategy.model.every_ms,
        decimals=(item.price_decimals, item.quantity_decimals),
        sentences=sentences,
    )


def _difference(stored: StoredDecision, odds: Sequence[float]) -> tuple[str, ...]:
    """Return a sentence on how far the recomputed odds differ from those noted, if they do."""
    noted = {row["name"]: row["number"] for row in stored.notes}
    names = ("p_down", "p_flat", "p_up")
    furthest = max(
        (
            abs(noted[name] - probability)
            for name, probability in zip(names, odds, strict=True)
            if name in noted
        ),
        default=0.0,
    )
    if furthest == 0.0:
        return ()
    return (f"The recomputed odds differ from the stored ones by up to {furthest:.1e}.",)


def _config_of(run: RunRow) -> Config:
    config = restore(run.config)
    if (sha256 := checkpoint_sha256(config)) != run.strategy_sha256:
        raise CheckpointMismatch(
            f"The checkpoint {config.strategy.options.get('checkpoint')} is {sha256[:12]} now, and "
            f"{run.strategy_sha256[:12]} decided; restore it."
        )
    return config
