"""Risk forecasts of the auxiliary heads of a run's network, compared with the outcomes.

All are over the gates' horizon, from the close of a decided bar: the return, the largest fall and
rise of the closes, and the volatility of the one-bar returns. Bars are left out if their horizon
is not within the run or has a hole.

The rules are docs/models.md, L59 to L61.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import Cells, Table, of_row, table
from tracepaper.replay.report.metrics import kupiec, mean_by_day
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, SHARES, TAILS, Forecast

HEADS: Final = ("tails", "drawdown", "runup", "regimes", "quantiles")


@dataclass(frozen=True)
class HeadOutcomes:
    """The heads' forecasts by name, and the outcomes; one row per decided bar, in order."""

    horizon: int
    days: Ints  # spans of whole days, at least as long as the horizon
    separate: Ints  # rows; no two of an instrument share a future bar
    forecasts: Mapping[str, Floats]  # [row, number of the head], log returns
    levels: Sequence[float]  # of the quantiles; empty without the model's card
    returned: Floats  # log return
    fallen: Floats  # largest fall of the logarithm of the close
    risen: Floats  # largest rise of the logarithm of the close
    volatility: Floats  # to the horizon


def read_head_outcomes(
    reader: Reader, record: RunRecord, card: Mapping[str, Any]
) -> HeadOutcomes | None:
    """Return the heads' forecasts and the outcomes in a run; None if it has no heads.

    *card* is that of the model, or empty.
    """
    run_id = str(record.run["run_id"])
    columns = ("expected_shortfall_long", "learned_regime")
    views = RunViews(reader.connection, run_id)
    has_heads = any(views.last("v_decisions", not_null=(name,)) is not None for name in columns)
    levels = tuple(card.get("architecture", {}).get("quantiles", ()))
    if not (has_heads or levels):
        return None
    horizon, kept = record.config.gate.horizon, dict[int, Forecast]()
    for step in reader.steps(run_id):
        prediction = step.prediction
        if (
            isinstance(prediction, Forecast)
            and prediction.heads is not None
            and horizon in prediction.horizons
        ):
            kept[step.sequence] = prediction
    outcomes = _outcomes(record, horizon)
    sequences = record.decisions.sequence
    rows = np.flatnonzero(np.isfinite(outcomes[0]) & np.isin(sequences, list(kept)))
    if not rows.size:
        return None
    forecasts = [kept[sequence] for sequence in sequences[rows].tolist()]
    at = forecasts[0].horizons.index(horizon)
    by_head = {name: [forecast.head(name, at) for forecast in forecasts] for name in HEADS}
    returned, fallen, risen, volatility, place = outcomes[:, rows]
    return HeadOutcomes(
        horizon=horizon,
        days=record.spans_of(record.decisions.open_time_ms[rows], horizon),
        separate=np.flatnonzero(place % horizon == 0),
        forecasts={name: np.array(numbers) for name, numbers in by_head.items() if numbers[0]},
        levels=levels,
        returned=returned,
        fallen=fallen,
        risen=risen,
        volatility=volatility,
    )


def _outcomes(record: RunRecord, horizon: int) -> Floats:
    """Return [5, decision]: return, fall, rise and volatility to the horizon, and the bar's number.

    The first four are NaN if the horizon is not within the run or has a hole.
    """
    outcomes = np.full((5, record.decisions.sequence.size), np.nan)
    for name, places in record.decisions.places.items():
        bars = record.bars[name]
        logs = np.log(bars.close)
        count = max(logs.size - horizon, 0)
        first = logs[:count]
        peak, trough = first.copy(), first.copy()
        fall, rise, variance = np.zeros((3, count))
        for step in range(1, horizon + 1):
            here, before = logs[step : step + count], logs[step - 1 : step - 1 + count]
            peak = np.maximum(peak, here)
            fall = np.maximum(fall, peak - here)
            trough = np.minimum(trough, here)
            rise = np.maximum(rise, here - trough)
            variance += (here - before) ** 2
        opens = bars.open_time_ms
        unbroken = record.bar_times.bars_between(opens[:count], opens[horizon:]) == horizon
        moves = np.stack((logs[horizon:] - first, fall, rise, np.sqrt(variance)))
        outcomes[:4, places[:count]] = np.where(unbroken, moves, np.nan)
        outcomes[4, places] = record.bar_times.bars_between(np.full_like(opens, opens[0]), opens)
    return outcomes


def _tails(comparison: HeadOutcomes) -> Iterator[Cells]:
    """Yield each value at risk and expected shortfall, forecast and realised, in log returns."""
    tails = comparison.forecasts["tails"].reshape(-1, len(TAILS), len(SHARES), 2)
    for at, (position, sign) in enumerate(zip(TAILS, (-1.0, 1.0), strict=True)):
        for place, share in enumerate(SHARES):
            limit, expected = tails[:, at, place].T
            lost = sign * comparison.returned
            beyond = lost > limit
            exceeded = beyond[comparison.separate]
            yield {
                "position": position,
                "forecast": share,
                "realised": mean_by_day(beyond.astype(np.float64), comparison.days),
                "bars": exceeded.size,
                "p": kupiec(int(exceeded.sum()), exceeded.size, share),
                "lost": mean_by_day(lost[beyond], comparison.days[beyond]),
                "expected": float(expected[beyond].mean()) if beyond.any() else None,
            }


def _covered(comparison: HeadOutcomes) -> Iterator[Cells]:
    """Yield the share of outcomes below each quantile."""
    by_head = {
        "drawdown": (DRAWDOWN_LEVELS, comparison.fallen),
        "runup": (DRAWDOWN_LEVELS, comparison.risen),
        "quantiles": (comparison.levels, comparison.returned),
    }
    for head, (levels, outcome) in by_head.items():
        quantiles = comparison.forecasts.get(head)
        if quantiles is not None and quantiles.shape[1] == len(levels):
            for at, level in enumerate(levels):
                below = mean_by_day(
                    (outcome <= quantiles[:, at]).astype(np.float64), comparison.days
                )
                name = "return" if head == "quantiles" else head
                yield {"outcome": name, "forecast": level, "realised": below}


def _regimes(comparison: HeadOutcomes) -> Iterator[Cells]:
    """Yield the bars of each learned regime."""
    odds = comparison.forecasts["regimes"][:, ::2]
    probable = odds.argmax(axis=1)
    for number in range(odds.shape[1]):
        inside = probable == number
        yield {
            "regime": number + 1,
            "bars": int(inside.sum()),
            "share": float(inside.mean()),
            "volatility": mean_by_day(comparison.volatility[inside], comparison.days[inside]),
        }


_TAIL_FIGURES: Final = (
    of_row("position", "side", "text"),
    of_row("forecast", "beyond, forecast", "share"),
    of_row("realised", "realised ± error", "share"),
    of_row("bars", "separate bars", "count"),
    of_row("p", "p", "measure"),
    of_row("lost", "lost there, bp", "bp"),
    of_row("expected", "forecast, bp", "bp"),
)
_COVERED_FIGURES: Final = (
    of_row("outcome", "outcome", "text"),
    of_row("forecast", "below, forecast", "share"),
    of_row("realised", "realised ± error", "share"),
)
_REGIME_FIGURES: Final = (
    of_row("regime", "regime", "count"),
    of_row("bars", "bars", "count"),
    of_row("share", "share", "share"),
    of_row("volatility", "realised bp ± error", "bp"),
)
_TAILS_NOTE: Final = (
    "Log losses from close to close, errors by day. p is Kupiec's, on bars that share no future; "
    "symbols that fall together make it too small."
)
_REGIMES_NOTE: Final = (
    "1 is the calmest; a bar counts to its most probable regime. Volatility is that of the one-bar "
    "returns to the horizon; errors by day."
)


def tables_of(comparison: HeadOutcomes | None) -> Iterator[Table]:
    """Yield the tables of heads' forecasts and outcomes; none without heads."""
    if comparison is None:
        return
    forecasts, ahead = comparison.forecasts, f"in {comparison.horizon} bars"
    if "tails" in forecasts:
        title = f"Forecast tails, and losses {ahead}"
        yield table("head_tails", title, _TAIL_FIGURES, _tails(comparison), notes=(_TAILS_NOTE,))
    if rows := list(_covered(comparison)):
        title = f"Forecast quantiles, and outcomes {ahead}"
        yield table("head_quantiles", title, _COVERED_FIGURES, rows)
    if "regimes" in forecasts:
        title = f"Learned regimes, and the volatility {ahead}"
        rows = list(_regimes(comparison))
        yield table("learned_regimes", title, _REGIME_FIGURES, rows, notes=(_REGIMES_NOTE,))
