"""A run's model as a document: its card, and its forecasts in the run against the outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    Layer,
    LineLayer,
    RuleLayer,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import (
    Form,
    Paragraph,
    Part,
    TitledParts,
    Value,
    signed_estimate,
    table_of,
)
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.card import card_facts, experimental
from tracepaper.replay.learning.statistics import RISK_COVERAGES, RankedBars, RiskCurve
from tracepaper.replay.page.databases import OpenRun
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.replay.report.metrics import BLOCK_DAYS, is_credible
from tracepaper.storage.checkpoints import kept_folder, read_card
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS, count_of, duration

LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
"""Shares of the central intervals whose coverage is measured."""
DRAWN_LEVEL: Final = 0.9
BINS: Final = 10
BIN_BARS_MIN: Final = 50
"""Fewest bars of a bin that is shown; the share of fewer would be luck."""
FEW_DAYS: Final = 2 * BLOCK_DAYS
"""Fewest days for an error over blocks of days."""


@dataclass(frozen=True)
class RunForecasts:
    """The forecasts at the bars whose outcomes are known; returns are log returns."""

    open_time_ms: npt.NDArray[np.int64]
    mean: Array
    stdev: Array
    up: Array  # P(up) ÷ (P(up) + P(down)); NaN without probabilities
    confidence_entropy: Array
    realised: Array

    @property
    def days(self) -> npt.NDArray[np.int64]:
        """The UTC day of each forecast."""
        return self.open_time_ms // DAY_MS


def model_document(shown: OpenRun) -> TitledParts:
    """Return the card of the run's model, and its forecasts compared with the outcomes."""
    model_id = shown.views.run()["model_id"]
    if not model_id:
        return TitledParts("Model", (Paragraph("This run uses no model.", "note"),))
    folder = kept_folder(shown.database, str(model_id))
    card = read_card(folder) if folder.is_dir() else {}
    name = card.get("model", {}).get("name", "")
    forecasts, horizon = read_forecasts(shown)
    parts = [*_card(card), *realised(forecasts, horizon, shown.columns.interval_ms)]
    return TitledParts(f"Model {model_id} {name}".strip(), tuple(parts))


def read_forecasts(shown: OpenRun) -> tuple[RunForecasts, int]:
    """Return every forecast of the run whose outcome is recorded, and their horizon in bars."""
    kinds = ("horizon", "mean_return", "stdev_return", "p_up", "p_down", "confidence_entropy")
    decisions = shown.columns.decisions(kinds)
    usable = np.isfinite(decisions["mean_return"])
    horizons = np.unique(decisions["horizon"][usable])
    horizon = int(horizons[-1]) if horizons.size else 0
    usable &= decisions["horizon"] == horizon  # only a replaced model has another one
    outcomes = np.full(usable.size, np.nan)
    for name in np.unique(decisions["instrument"][usable]):
        rows = usable & (decisions["instrument"] == name)
        opened = decisions["open_time_ms"][rows]
        bars = shown.columns.bars(str(name))
        times, closes = bars["open_time_ms"], bars["close"]
        later = shown.columns.times.opens_later(opened.astype(np.int64), horizon)
        now, then = places_of(times, opened), places_of(times, later.astype(float))
        moved = np.log(closes[then] / closes[now])
        outcomes[rows] = np.where((now >= 0) & (then >= 0), moved, np.nan)
    kept = np.isfinite(outcomes)
    up, down = decisions["p_up"][kept], decisions["p_down"][kept]
    either = up + down
    return RunForecasts(
        open_time_ms=decisions["open_time_ms"][kept].astype(np.int64),
        mean=decisions["mean_return"][kept],
        stdev=decisions["stdev_return"][kept],
        up=np.divide(up, either, out=np.full(either.size, np.nan), where=either > 0),
        confidence_entropy=decisions["confidence_entropy"][kept],
        realised=outcomes[kept],
    ), horizon


def places_of(times: Array, wanted: Array) -> npt.NDArray[np.int64]:
    """Return the index of each *wanted* time in ascending *times*; -1 if it is missing."""
    place = np.searchsorted(times, wanted)
    inside = np.minimum(place, max(0, times.size - 1))
    return np.where((place < times.size) & (times[inside] == wanted), inside, -1)


def _card(card: Mapping[str, Any]) -> Iterator[Part]:
    if not card:
        yield Paragraph(
            "The checkpoint is no longer beside the database, so its card is not shown.", "note"
        )
        return
    yield Paragraph(f"{'; '.join(card_facts(card))}.", "lead")
    if reason := experimental(card):
        yield Paragraph(f"Experimental: {reason}.", "warning")
    yield Paragraph("Caveats of its card", "heading")
    yield from (Paragraph(sentence, "item") for sentence in card_sentences(card) if sentence)


def realised(forecasts: RunForecasts, horizon: int, interval_ms: int) -> Iterator[Part]:
    """Yield the calibration, intervals and risk by coverage of *forecasts*, with errors by day."""
    yield Paragraph("In this run", "heading")
    if not forecasts.realised.size:
        yield Paragraph("No forecast of this run has an outcome yet.", "note")
        return
    days = np.unique(forecasts.days).size
    yield Paragraph(
        f"{forecasts.realised.size:,} forecasts over {horizon} bars "
        f"({duration(horizon * interval_ms)}), on {count_of(days, 'UTC day')}, against "
        "the realised closes. Errors are over days; outcomes overlap."
    )
    if days < FEW_DAYS:
        yield Paragraph(
            f"{count_of(days, 'UTC day')}: too few days for an error, so this proves nothing.",
            "warning",
        )
    yield from _direction(forecasts)
    yield from _intervals(forecasts)
    yield from _selective(forecasts)


def _direction(forecasts: RunForecasts) -> Iterator[Part]:
    """Yield the share of bars after which the price rose, by forecast probability."""
    moved = np.isfinite(forecasts.up) & (forecasts.realised != 0)
    yield Paragraph("Calibration of the direction", "heading")
    if not moved.any():
        yield Paragraph("The model forecasts no direction.", "note")
        return
    probability, rose, days = (
        forecasts.up[moved],
        (forecasts.realised[moved] > 0).astype(np.float64),
        forecasts.days[moved],
    )
    # Bins have equally many bars, because most probabilities are near one half.
    edges = np.quantile(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.searchsorted(edges, probability, side="right")
    masks = [mask for mask in (place == at for at in range(BINS)) if mask.sum() >= BIN_BARS_MIN]
    if not masks:
        yield Paragraph(f"No bin has {BIN_BARS_MIN} bars yet.", "note")
        return
    across = [float(probability[mask].mean()) for mask in masks]
    shares = [statistics.mean(rose[mask], days[mask]) for mask in masks]
    up = [share.value for share in shares]
    ends = [min(*across, *up), max(*across, *up)]
    lines: list[Layer] = [
        LineLayer("as forecast", ends, ends, "muted", dash="dot"),
        LineLayer("in this run", across, up, width=2.2, has_points=True),
    ]
    panel = ChartPanel(
        lines,
        ChartAxis("forecast probability of up", digits=3),
        ChartAxis("share that rose", digits=3),
    )
    yield Chart("", "", [panel])
    rows = [
        (forecast, (share.value, share.error), int(mask.sum()))
        for forecast, share, mask in zip(across, shares, masks, strict=True)
    ]
    forms: dict[str, Form] = {"forecast": "measure", "rose ± error": "measure", "bars": "count"}
    yield table_of("direction", "", forms, rows)


def _intervals(forecasts: RunForecasts) -> Iterator[Part]:
    """Yield the coverage of the intervals of a normal distribution with the forecast spread."""
    usable = np.isfinite(forecasts.stdev) & (forecasts.stdev > 0)
    yield Paragraph("Intervals", "heading")
    if not usable.any():
        yield Paragraph("The model forecasts no spread.", "note")
        return
    distance = np.abs(forecasts.realised[usable] - forecasts.mean[usable]) / forecasts.stdev[usable]
    days = forecasts.days[usable]
    rows: list[tuple[Value, ...]] = []
    for level in LEVELS:
        share = statistics.mean((distance <= ndtri(0.5 + level / 2)).astype(np.float64), days)
        rows.append((level, (share.value, share.error)))
    yield table_of("intervals", "", {"claimed": "share", "inside ± error": "share"}, rows)
    inside = (distance <= ndtri(0.5 + DRAWN_LEVEL / 2)).astype(np.float64)
    names, at = np.unique(days, return_inverse=True)
    daily = np.bincount(at, inside) / np.bincount(at)
    layers: list[Layer] = [
        RuleLayer(DRAWN_LEVEL, name="claimed", role="faint"),
        LineLayer("inside", (names * DAY_MS).tolist(), rounded(daily), has_points=True),
    ]
    yield Chart(
        "",
        "The 90 % interval by day.",
        [ChartPanel(layers, time_axis(), ChartAxis("share inside", digits=3))],
    )


def _selective(forecasts: RunForecasts) -> Iterator[Part]:
    """Yield the risk of the bars with the most confidence, compared with random bars."""
    yield Paragraph("Risk and coverage", "heading")
    ranked = {
        "sign wrong": 1.0 - statistics.hits_of(forecasts.mean, forecasts.realised),
        "absolute error, bp": 1e4 * np.abs(forecasts.realised - forecasts.mean),
    }
    curves = {
        name: curve
        for name, risk in ranked.items()
        if (
            curve := statistics.risk_curve(
                [RankedBars(risk, forecasts.confidence_entropy, forecasts.days)]
            )
        )
        is not None
    }
    if not curves:
        yield Paragraph("The model gives no confidence.", "note")
        return
    shares = [float(100 * share) for share in RISK_COVERAGES]
    for name, curve in curves.items():
        layers: list[Layer] = [
            RuleLayer(0.0, name="random bars"),
            LineLayer(name, shares, rounded(curve.excess), width=2.2),
        ]
        across = ChartAxis(
            "share of bars, most confident first, %", unit=" %", digits=0, is_reversed=True
        )
        yield Chart(
            "",
            _verdict(name, curve),
            [ChartPanel(layers, across, ChartAxis(f"{name}, less a random gate's", has_zero=True))],
        )


def _verdict(name: str, curve: RiskCurve) -> str:
    """Return a sentence on whether refusing the least confident bars lowers the risk."""
    value, error = curve.area.pair
    comparison = "the same as for"
    if is_credible(value, error):
        comparison = "lower than for" if value < 0 else "higher than for"
    return (
        f"{name[0].upper()}{name[1:]}: {curve.risk:.3f} over all bars; for the most confident bars "
        f"it is {comparison} random ones ({signed_estimate(value, error, '.4f')})."
    )
