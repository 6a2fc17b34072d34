"""One model judged on one span, alone and compared with others on the same bars.

Every other model forecasts the bars that the judged one answered, and is scored by the judged one's
labels: features of another schema have another unit of return, which is divided out. A user's own
model is judged on bars after it was trained, beside every baseline.

The rules are docs/models.md, L54, and docs/own_models.md, N11.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.archive import slice_candles
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.learning.card import NO_ATTENTION
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import FittedModel
from tracepaper.replay.learning.judge.forecasts import (
    Forecasts,
    SegmentFields,
    forecasts_of,
)
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.openings import WHOLE, NamedSpan, SpanOpening, opened, openings_path
from tracepaper.replay.learning.splits import Part, Segment, Split, date_ms
from tracepaper.replay.report.honesty import compared_sentences, few_days
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import interval_text, iso

SHARE_UNJUDGED: Final = 0.8
"""Of the bars of a model that does not say until when it was trained: the rest is judged."""
SCANNED_BARS: Final = 4_096
"""Forecasts held at a time."""
_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility", "probabilities"})
"""What a class may give."""


def split_at(segments: Sequence[Segment], forecaster: UserForecaster) -> Split:
    """Return the split of which training and test are used: before and after it was trained.

    The embargo is the longest horizon, so that no label of a bar before reaches into the test.
    """
    trained_until = forecaster.model.trained_until
    if trained_until is None:
        times = np.sort(np.concatenate([segment.open_time_ms for segment in segments]))
        until_ms = int(times[int(SHARE_UNJUDGED * (len(times) - 1))])
    else:
        until_ms = date_ms(trained_until)
    return Split(until_ms, until_ms + 1, until_ms + 2, max(forecaster.horizons))


@dataclass(frozen=True)
class ClassModel(FittedModel):
    """A user's class, which is judged as what is fitted is; its card names horizons alone."""

    user_model: Any = None  # the ``UserForecaster``

    @classmethod
    def of(cls, forecaster: UserForecaster, horizon: int) -> Self:
        """Return it, judged at the *horizon* of the gates where the class forecasts that."""
        horizons = forecaster.horizons
        chosen = horizon if horizon in horizons else horizons[0]
        card = {"architecture": {"horizons": horizons}, "calibration": {"horizon": chosen}}
        return cls(card, {}, user_model=forecaster)

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return what the class forecasts of the test part, beside every baseline.

        Raises ``ConfigInvalid`` where no bar of that part was forecast.
        """
        del part
        answers = answers_of(self.user_model, data, self.user_model.measures)
        if not answers:
            raise ConfigInvalid(
                f"The model forecast no bar after {iso(data.split.train_until_ms)}; give candles "
                "of a later time."
            )
        return forecasts_of(answers, data.baselines, data.horizons)

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Say until when it was trained, how it stands beside others, and what it does not give."""
        model, chosen, rows = self.user_model.model, results[str(self.horizon)], judgement.forecasts
        if model.trained_until is None:
            when = (
                "The class does not say until when it was trained (trained_until): the bars from "
                f"{iso(int(rows.open_ms.min()))} on were judged, and they flatter a model that saw "
                "them."
            )
        else:
            until = iso(date_ms(model.trained_until))
            when = f"Judged on bars after {until}, until which its class says that it was trained."
        lines = [when, *compared_sentences(results, self.horizon, self.called)]
        if left := sorted(_MEASURES - frozenset(self.user_model.measures)):
            lines.append(f"It gives no {', '.join(left)}: their figures are left out.")
        return [*lines, NO_ATTENTION, *few_days(chosen["days"])]


def answers_of(
    forecaster: Forecaster, material: Dataset, measures: Collection[str]
) -> list[SegmentFields]:
    """Return the *measures* that any forecaster gives of the labelled bars of the test part.

    In units of σ √h, of those bars alone at which all are finite, and volatilities above 0. It is
    asked in stretches, so that few forecasts with their explanations are held at a time.
    """
    parts = []
    for samples in material.samples(Part.TEST):
        segment = samples.segment
        labelled = np.flatnonzero(samples.weights.any(axis=1))
        labelled = labelled[labelled >= forecaster.context - 1]
        if not len(labelled):
            continue
        if isinstance(forecaster, UserForecaster):
            forecaster.scale([archive_instrument(segment.candles)])
        forecaster.warm(segment.candles.instrument, [])
        begin, end = int(labelled[0]) - forecaster.context + 1, int(labelled[-1]) + 1
        for start in range(begin, end, SCANNED_BARS):
            stop = min(start + SCANNED_BARS, end)
            bars = bars_of(slice_candles(segment.candles, slice(start, stop)))
            forecasts = forecaster.scan(bars) if forecaster.causal else map(forecaster.step, bars)
            answers = dict(enumerate(forecasts, start))
            rows = labelled[(labelled >= start) & (labelled < stop)]
            rows = rows[[answers[row] is not None for row in rows.tolist()]]
            if len(rows):
                every: Any = [answers[row] for row in rows.tolist()]
                parts.append(SegmentFields.of_run(samples, rows, every, measures).finite())
    return [answers for answers in parts if len(answers.rows)]


# --- a model of any kind on one span


def counted(
    every: Sequence[Judgement], folder: Path | None, recipe: str, model_id: str
) -> list[Judgement]:
    """Return the judgements with how many recipes opened each span, and keep these openings.

    *folder* holds the checkpoint; None is a class of one's own.
    """
    judgements = []
    for judgement in every:
        new = SpanOpening(
            recipe, model_id, judgement.symbols, judgement.from_ms, judgement.until_ms
        )
        count, sentence = opened(openings_path(folder), new)
        missing = (*judgement.missing, *([sentence] if sentence else []))
        judgements.append(replace(judgement, openings=count, missing=missing))
    return judgements


def judge_model(
    model: FittedModel, data: Dataset, span: NamedSpan = WHOLE, *, bars: int | None = None
) -> Judgement:
    """Return the judgement of *model* on *span* of the time that it did not learn from.

    *bars* are explained, for the gates; by default as many as can be in minutes.
    """
    data, missing = data.spanned(span).with_known_baselines()
    return replace(
        model.judge(data, bars=bars),
        span=span,
        symbols=data.symbols(Part.TEST),
        card=model.card,
        missing=(*data.notes, *missing),
        tails=model.tails(data),
    )


# --- other models


def rival_forecasts(model: FittedModel, data: Dataset, judgement: Judgement) -> Forecasts:
    """Return the forecasts of *model* of the rows of *judgement*, of the same interval.

    Raises ``ConfigInvalid`` where it learnt from that time, or answers none of these rows.
    """
    same = _same_rows(data, judgement, model.card["architecture"]["horizons"])
    rival = model.answers(same, Part.TEST)
    if not (judgement.forecasts.places(rival) >= 0).any():
        unit = judgement.forecasts.unit
        raise ConfigInvalid(f"it answers none of the {unit} that the judged model answers")
    return rival


def require_interval(name: str, material: Dataset, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where *material* is of another interval than the judged model's."""
    if material.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"--compare {name}: it forecasts bars of {interval_text(material.interval_ms)}, and "
            f"the judged model bars of {interval_text(interval_ms)}; name models of one interval."
        )


def _same_rows(data: Dataset, judgement: Judgement, horizons: Sequence[int]) -> Dataset:
    """Return *data* of the judged rows alone, with the baselines that need no fitting."""
    rows = judgement.forecasts
    if not set(horizons) & set(rows.horizons):
        theirs, ours = (", ".join(map(str, every)) for every in (horizons, rows.horizons))
        raise ConfigInvalid(
            f"it forecasts {theirs} {rows.unit} ahead, and the judged model {ours}; name models of "
            "a common horizon"
        )
    return data.spanned(judgement.span).compared(np.unique(rows.keys))
