"""Networks of order books on spans of recorded time.

Only what the exchange itself sent is judged. Errors are those of whole calendar days drawn anew,
and fewer than ten say nothing.

The rules are docs/orderbook.md, D10 to D12 and D19; docs/orderbook.md, D20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.learning.estimators.order_book import (
    book_forecasts,
    check_fits,
    figures_of,
    network_of,
    sentences_of,
)
from tracepaper.replay.learning.judge.explained import Judgement
from tracepaper.replay.learning.judge.forecasts import Forecasts, ModelForecasts
from tracepaper.replay.learning.judge.judge import SpanJudgement
from tracepaper.replay.learning.openings import NamedSpan
from tracepaper.replay.learning.order_books import JUDGED_SOURCE, BookDataset
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import iso


def read_books_of(card: Mapping[str, Any], paths: Sequence[str]) -> BookDataset:
    """Read *paths*, which must be what the exchange itself sent of its instrument and pace."""
    data = BookDataset.read(paths)
    check_fits(data.header, card, Path(paths[0]))
    if any(file.source != JUDGED_SOURCE for file in data.files):
        raise DataInvalid(
            "Only books that `tracepaper data record` took from the exchange are judged; give "
            "files of them alone."
        )
    return data


def untouched_ms(card: Mapping[str, Any]) -> int:
    """Return when the untouched time of a card begins."""
    return instant(card["split"]["untouched_from"])


def judge_books(
    card: Mapping[str, Any], tensors: Mapping[str, Any], data: BookDataset, span: NamedSpan
) -> SpanJudgement:
    """Return what a network is worth on *span* of the time after its untouched time began."""
    forecasts = _forecasts(card, tensors, data, span)
    figures = {str(at): figures_of(rows) for at, rows in forecasts.by_horizon()}
    judged = Judgement(forecasts, figures, sentences_of(figures))
    return SpanJudgement(span, tuple(card["market"]["symbols"]), judged, card)


def _forecasts(
    card: Mapping[str, Any], tensors: Mapping[str, Any], data: BookDataset, span: NamedSpan
) -> Forecasts:
    """Return the books of *span*; forecasts see those before it that are untouched too.

    Raises ``ConfigInvalid`` for a span that begins too early, or holds no known move.
    """
    begun, network = untouched_ms(card), network_of(card, tensors)
    if span.from_ms is not None and span.from_ms < begun:
        raise ConfigInvalid(
            f"The span {span.text} begins before {iso(begun)}, until when the model had seen all; "
            "judge it on later books."
        )
    levels = network.config.levels
    stretches = [books.shallower(levels) for books in data.between(begun, span.until_ms)]
    if not stretches:
        raise DataInvalid(
            f"All books of --data until {span.until or 'their end'} are from before {iso(begun)}, "
            "and learnt from; give later ones."
        )
    found = book_forecasts(network, stretches, card["frequencies"])
    if span.from_ms is not None:
        found = found.where(found.open_ms >= span.from_ms)
    for horizon in network.config.horizons:
        if horizon not in found.horizons:
            raise ConfigInvalid(
                f"The span {span.text} holds no book whose move to {horizon} books is known; give "
                "files of that time, or a longer span."
            )
    return found


def rival_books(
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    data: BookDataset,
    judgement: SpanJudgement,
) -> ModelForecasts:
    """Return the forecasts of another network for the books of *judgement*.

    Raises ``ConfigInvalid`` where it has no horizon or book in common.
    """
    found = _forecasts(card, tensors, data, judgement.span)
    if not (judgement.forecasts.places(found) >= 0).any():
        raise ConfigInvalid(
            "it answers no book to a horizon of the judged network; name one of a common horizon "
            "and time"
        )
    return ModelForecasts(found)
