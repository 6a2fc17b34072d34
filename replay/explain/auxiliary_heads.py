"""Auxiliary heads of one decision, and the depth map of an order book decision.

Tails, drawdown, regimes and path stand in no record; the network is asked anew with the stored
bars, and takes the factors of its calibration slice from the card, as ``evaluate`` does.

The rule is docs/models.md, L61.

The strategy is made again from the run's configuration, and sees the books that the run stored.
The rule is docs/orderbook.md, D18.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.models import checkpoint_folder, checkpoint_sha256, make_orderbook
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.learning.evaluation.auxiliary_heads import (
    TAILS,
    Said,
    with_factors,
)
from tracepaper.replay.learning.samples import path_steps
from tracepaper.replay.report.honesty import shown_sentences
from tracepaper.storage.checkpoints import read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.networks.architecture import DRAWDOWN_LEVELS, SHARES
from tracepaper.strategies.order_book import LATER_BOOKS, SIDES, OrderBookHistory
from tracepaper.strategies.types.decisions import Run
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    from tracepaper.strategies.networks.architecture import Network, Outputs


@dataclass(frozen=True)
class TailAhead:
    """The loss that a share of returns exceeds, and the mean of those: log returns."""

    position: str  # long or short
    share: float
    value_at_risk: float
    expected_shortfall: float


@dataclass(frozen=True)
class DrawdownAhead:
    """A quantile of the largest fall of a close below an earlier one, as a log return."""

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


def further_ahead(
    network: Network, outputs: Outputs, sigma: float, levels: Mapping[str, Any]
) -> tuple[FurtherAhead, ...]:
    """Return the auxiliary heads' forecasts in *outputs* [1, 1, ..] of a decision, where any.

    *sigma* is the volatility of a bar, *levels* the card's ``calibration.further``. Raises
    ``CheckpointMismatch`` for levels that do not fit the heads.
    """
    names = sorted(network.further_heads)
    every: dict[str, Said] = {name: getattr(outputs, name)[0].float().numpy() for name in names}
    return tuple(
        _to_horizon(
            horizon,
            with_factors({name: said[:, at] for name, said in every.items()}, levels, horizon),
            sigma,
        )
        for at, horizon in enumerate(network.config.horizons if names else ())
    )


def _to_horizon(horizon: int, said: Mapping[str, Said], sigma: float) -> FurtherAhead:
    unit = sigma * math.sqrt(horizon)
    tails: list[TailAhead] = []
    if "tails" in said:
        for position, by_share in zip(TAILS, said["tails"][0].tolist(), strict=True):
            for share, (at_risk, shortfall) in zip(SHARES, by_share, strict=True):
                tails.append(TailAhead(position, share, unit * at_risk, unit * shortfall))
    falls = said["drawdown"][0].tolist() if "drawdown" in said else []
    steps = said["path"][0].tolist() if "path" in said else []
    bars = path_steps(horizon) if steps else ()
    return FurtherAhead(
        horizon,
        tuple(tails),
        tuple(
            DrawdownAhead(level, unit * fall)
            for level, fall in zip(DRAWDOWN_LEVELS if falls else (), falls, strict=True)
        ),
        _regimes(said, unit),
        tuple(
            PathStepAhead(count, *(sigma * math.sqrt(count) * one for one in quantiles))
            for count, quantiles in zip(bars, steps, strict=True)
        ),
    )


def _regimes(said: Mapping[str, Said], unit: float) -> tuple[RegimeAhead, ...]:
    if "regimes" not in said:
        return ()
    odds, mean = np.exp(said["regimes"][0, :2].astype(np.float64))
    pairs = zip(odds.tolist(), np.sqrt(mean).tolist(), strict=True)
    return tuple(RegimeAhead(share, unit * root) for share, root in pairs)


def decided_map(database: Path, run_id: str, sequence: int, stored: StoredDecision) -> BookMap:
    """Return the depth map of a decision, recomputed by the run's own checkpoint.

    Raises ``DataInvalid`` where it asked no network or the run no longer has the books, and
    ``CheckpointMismatch`` where the checkpoint is another one now.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        config = _config_of(run)
        strategy = make_orderbook(config)
        bar = reader.step(run_id, sequence).step.event
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
            *shown_sentences(card),
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
