"""Where one decision looked, bar by bar: its own model warmed again with the stored bars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.daemon.config import restore
from tracepaper.daemon.models import default_checkpoint, forecaster_of
from tracepaper.replay.backtest.run import ACTING_ONLY
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecaster import Forecaster
from tracepaper.strategies.forecasters.streaming import Attribution, StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.types import BLOCK_BARS, Bar, Explanation, Forecast, Late, Run, Step

HEAVIEST: Final = 16
"""Past bars that a table shows, and whose contributions are summed apart."""

Explainable = StreamingForecaster | WindowedForecaster


@dataclass(frozen=True)
class Past:
    """What one decision was made of: its own model, and the bars that the model looks back on."""

    run: Run
    sequence: int
    forecaster: Explainable
    forecast: Forecast  # as it was stored
    bars: tuple[Bar, ...]  # oldest first; the last one is the decided bar
    price_decimals: int

    @property
    def decided(self) -> Bar:
        """The bar whose close was decided."""
        return self.bars[-1]


@dataclass(frozen=True)
class FullAttribution:
    """Where one decision looked, bar by bar (oldest first); weights sum to 1 within ``l1_error``.

    Where attention flowed, not why the price will move. ``largest_bucket_difference`` compares
    the sums over 64-bar blocks with what was stored.
    """

    open_time_ms: tuple[int, ...]
    close: tuple[float, ...]
    weights: tuple[float, ...]
    l1_error: float
    largest_bucket_difference: float

    def heaviest(self, count: int) -> list[int]:
        """Return the places of the *count* heaviest bars, heaviest first, the decided one not.

        The decided bar is left out: the residual stream alone gives it a large share.
        """
        past = np.array(self.weights[:-1])
        return [int(place) for place in np.argsort(-past, kind="stable")[:count]]


def open_past(database: Path, run_id: str, sequence: int) -> Past:
    """Return what the decision was made of, with its model warmed up to it.

    Raises ``DataInvalid`` where the decision has no attribution, the run no longer has the bars,
    or the model's checkpoint is gone.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        step = reader.step(run_id, sequence).step
        forecast = _forecast(run, step)
        assert isinstance(step.event, Bar)
        instrument = step.event.instrument
        forecaster = _forecaster(database, run, forecast.model_id)
        bars = reader.bars_until(run_id, instrument, sequence, forecaster.context)
    if len(bars) < forecaster.context:
        raise DataInvalid(
            f"Run {run_id} holds {len(bars):,} bars up to decision {sequence}, and its model looks "
            f"back on {forecaster.context:,}; choose a later decision."
        )
    forecaster.warm(instrument, bars)
    decimals = next(item.price_decimals for item in run.instruments if item.id == instrument)
    return Past(run, sequence, forecaster, forecast, tuple(bars), decimals)


def _forecast(run: Run, step: Step) -> Forecast:
    """Return the stored forecast; raise ``DataInvalid`` where there is nothing to recompute."""
    named = f"Decision {step.sequence} of run {run.run_id}"
    if step.decision is None or not isinstance(step.event, Bar):
        raise DataInvalid(f"Step {step.sequence} of run {run.run_id} is no decision; name one.")
    if not run.model_id:
        raise DataInvalid(
            f"{named} asked no model, so there is nothing to recompute; choose a decision of an "
            "attention run."
        )
    if ACTING_ONLY in run.warnings:
        raise DataInvalid(
            f"{named} cannot be recomputed, for its run kept only the bars it traded on; replay "
            "it with --log full."
        )
    if isinstance(step.answer, Late):
        raise DataInvalid(
            f"{named} has no forecast to take apart, for the model missed its deadline of "
            f"{step.answer.deadline_ms:,} ms; choose another decision."
        )
    if step.answer is None:
        raise DataInvalid(
            f"{named} came before its model was warm, so there is nothing to recompute; choose a "
            "later decision."
        )
    return step.answer


def _forecaster(database: Path, run: Run, model_id: str) -> Explainable:
    """Return the model that decided: kept beside the database, or else the bundled one."""
    folder = default_checkpoint()
    is_kept = checkpoints.kept_folder(database, model_id).is_dir()
    if is_kept or checkpoints.read_card(folder)["model"]["id"] != model_id:
        folder = checkpoints.find_kept(database, model_id)
    found: Forecaster = forecaster_of(folder, restore(run.config), path="step")
    if found.model_id != model_id:
        raise DataInvalid(
            f"{folder} holds the checkpoint {found.model_id}, and {model_id} decided; restore it."
        )
    if not isinstance(found, StreamingForecaster | WindowedForecaster):
        raise DataInvalid(f"The model {model_id} keeps nothing to look back through.")
    return found


def recompute(database: Path, run_id: str, sequence: int) -> FullAttribution:
    """Return where the decision looked, bar by bar; raise ``DataInvalid`` as ``open_past``."""
    return attribute(open_past(database, run_id, sequence))


def attribute(past: Past) -> FullAttribution:
    """Return the attribution at full resolution, compared with the buckets that were stored."""
    found = _attribution(past)
    closes = {bar.open_time_ms: bar.close / 10**past.price_decimals for bar in past.bars}
    return FullAttribution(
        found.open_time_ms,
        tuple(closes[time] for time in found.open_time_ms),
        found.weights,
        found.l1_error,
        _difference(past.forecast.explanation, found, past.decided),
    )


def _attribution(past: Past) -> Attribution:
    instrument = past.decided.instrument
    if isinstance(past.forecaster, StreamingForecaster):
        return past.forecaster.explain(instrument)
    rollout = past.forecaster.explain(instrument)
    weights = tuple(rollout.weights[0, 0].tolist())
    times = tuple(bar.open_time_ms for bar in past.bars[-len(weights) :])
    return Attribution(instrument, times, weights, float(rollout.l1_error[0, 0]))


def _difference(stored: Explanation | None, found: Attribution, decided: Bar) -> float:
    """Return the largest difference between a stored bucket and the sum of its bars' weights."""
    if stored is None:
        return 0.0
    kept = np.append(np.frombuffer(stored.buckets, "<f4").astype(np.float64), stored.older_mass)
    blocks = np.array(found.open_time_ms) // (decided.interval_ms * BLOCK_BARS)
    at = np.minimum(blocks[-1] - blocks, len(kept) - 1)
    sums = np.bincount(at, weights=found.weights, minlength=len(kept))
    return float(np.abs(sums - kept).max())
