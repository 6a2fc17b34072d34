"""A run's model as a document: its card, and its forecasts in the run against the outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.document.values import Paragraph, Part, TitledParts
from tracepaper.replay.learning.card import card_facts, experimental
from tracepaper.replay.learning.judge.forecasts import MODEL, NORMAL, Forecasts
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.tables import OF_A_RUN, parts_of
from tracepaper.replay.page.databases import OpenRun
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.replay.report.metrics import BLOCK_DAYS
from tracepaper.storage.checkpoints import kept_folder, read_card
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import count_of, duration

FEW_DAYS: Final = 2 * BLOCK_DAYS
"""Fewest days for an error over blocks of days."""
_TOLD: Final = ("mean_return", "stdev_return", "p_up", "p_down", "confidence_entropy")


def model_document(shown: OpenRun) -> TitledParts:
    """Return the card of the run's model, and its forecasts compared with the outcomes."""
    model_id = shown.views.run()["model_id"]
    if not model_id:
        return TitledParts("Model", (Paragraph("This run uses no model.", "note"),))
    folder = kept_folder(shown.database, str(model_id))
    card = read_card(folder) if folder.is_dir() else {}
    name = card.get("model", {}).get("name", "")
    parts = [*_card(card), *realised(read_forecasts(shown))]
    return TitledParts(f"Model {model_id} {name}".strip(), tuple(parts))


def read_forecasts(shown: OpenRun) -> Forecasts:
    """Return every forecast of the run whose outcome is recorded."""
    decisions = shown.columns.decisions(("horizon", *_TOLD))
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
    told = {name: decisions[name][kept] for name in _TOLD}
    opens_ms = decisions["open_time_ms"][kept].astype(np.int64)
    return forecasts_of(opens_ms, outcomes[kept], told, horizon, shown.columns.interval_ms)


def forecasts_of(
    opens_ms: npt.NDArray[np.int64],
    returned: Array,
    told: Mapping[str, Array],
    horizon: int,
    interval_ms: int,
) -> Forecasts:
    """Return what a model *told* of each bar beside the log return that came, by row.

    A measure that some forecast lacks is left out; probabilities are those of a move.
    """
    mean, stdev, up, down, entropy = (told[name] for name in _TOLD)
    rows, either = np.ones(len(opens_ms), dtype=np.int64), up + down
    fields: dict[str, Array] = {"mean": mean}
    if (stdev > 0).all():
        fields |= {"scale": stdev, "dof": np.full(len(rows), NORMAL)}
    if (either > 0).all():
        fields["probability"] = np.stack((down / either, 0 * up, up / either), axis=1)
    if np.isfinite(entropy).all():
        fields["confidence_entropy"] = entropy
    labels = {"returns": returned, "direction": 1 + np.sign(returned).astype(np.int64)}
    until_ms = opens_ms + horizon * interval_ms
    return Forecasts(rows, opens_ms, until_ms, horizon * rows, interval_ms, labels, {MODEL: fields})


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


def realised(forecasts: Forecasts) -> Iterator[Part]:
    """Yield the intervals, calibration and confidence of *forecasts*, with errors by day."""
    yield Paragraph("In this run", "heading")
    if not len(forecasts):
        yield Paragraph("No forecast of this run has an outcome yet.", "note")
        return
    days, (horizon,) = np.unique(forecasts.day).size, forecasts.horizons
    yield Paragraph(
        f"{len(forecasts):,} forecasts over {horizon} bars "
        f"({duration(horizon * forecasts.interval_ms)}), on {count_of(days, 'UTC day')}, against "
        "the realised closes. Errors are over days; outcomes overlap."
    )
    if days < FEW_DAYS:
        yield Paragraph(
            f"{count_of(days, 'UTC day')}: too few days for an error, so this proves nothing.",
            "warning",
        )
    yield from parts_of(Judgement(forecasts, {}, []), OF_A_RUN)
