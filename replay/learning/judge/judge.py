"""One model judged on one span, alone and compared with others on the same bars.

Every other model forecasts the bars that the judged one answered, and is scored by the judged one's
labels: features of another schema have another unit of return, which is divided out.

The rules are docs/models.md, L54.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.judge.forecasts import Forecasts, ModelForecasts
from tracepaper.replay.learning.judge.gates import Judgement, daily_net
from tracepaper.replay.learning.judge.user_class import class_forecasts, judge_user_class
from tracepaper.replay.learning.openings import WHOLE, NamedSpan, SpanOpening, opened, openings_path
from tracepaper.replay.learning.order_books import BookDataset
from tracepaper.replay.learning.recipe import kind_of
from tracepaper.replay.learning.splits import Part, iso
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS, count_of, interval_text

JudgedData = Dataset | BookDataset
"""What a model is judged on."""
AnyData = TypeVar("AnyData", Dataset, BookDataset)


@dataclass(frozen=True)
class SpanJudgement:
    """The judgement of a model on one span; its forecasts have those of compared models too."""

    span: NamedSpan
    symbols: tuple[str, ...]
    judged: Judgement
    card: Mapping[str, Any]  # empty for a class
    tails: Mapping[str, Any] = field(default_factory=dict)  # ``[calibration.tails]``; empty if none
    openings: int = 1
    """Recipes that were judged on the span, this one among them."""
    missing: tuple[str, ...] = ()
    """Sentences about what could not be compared, or counted."""

    @property
    def forecasts(self) -> Forecasts:
        """The rows that were judged."""
        return self.judged.forecasts

    @property
    def days(self) -> int:
        """How many calendar days were judged."""
        return len(np.unique(self.forecasts.day))

    @property
    def from_ms(self) -> int:
        """The midnight of the first day judged."""
        return int(self.forecasts.day.min()) * DAY_MS

    @property
    def until_ms(self) -> int:
        """The midnight after the last day judged."""
        return (int(self.forecasts.day.max()) + 1) * DAY_MS

    @property
    def heading(self) -> str:
        """What was judged, from when until when."""
        return (
            f"{self.span.name}: {', '.join(self.symbols)}, {iso(self.from_ms)[:10]} until "
            f"{iso(self.until_ms)[:10]}, {self.days} days"
        )

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of each horizon, and those of gates."""
        return self.judged.figures

    @property
    def sentences(self) -> list[str]:
        """The caveats."""
        return [*self.judged.sentences, *self._explained_share(), *self.missing]

    def _explained_share(self) -> list[str]:
        """Count the bars and days of the gates' figures, and those of all others.

        Not every bar is explained, and a bar that a baseline needs more context for is no other.
        """
        if (explained := self.judged.explained) is None:
            return []
        rows = self.forecasts.at(explained.horizons[0]).day
        gates, rest = (
            f"{count_of(len(of), 'bar')} on {count_of(len(np.unique(of)), 'day')}"
            for of in (explained.day, rows)
        )
        more = " evaluation.explained_bars takes more." if len(explained) < len(rows) else ""
        sentence = f"The figures of gates are of {gates} that were explained, all others of {rest}."
        return [sentence + more]

    def net_by_day(self, rule: str) -> Array:
        """Return the net log return of a rule of trading on each day."""
        assert self.judged.explained is not None
        return daily_net(self.judged.explained, self.judged.rules[rule])

    def compared_with(self, name: str, other: ModelForecasts) -> SpanJudgement:
        """Return it with the forecasts of another model on the same rows."""
        forecasts, held = ModelForecasts(self.forecasts, self.judged.held).join(other, name)
        return replace(self, judged=self.judged._replace(forecasts=forecasts, held=held))


def counted(
    every: Sequence[SpanJudgement], folder: Path | None, recipe: str, model_id: str
) -> list[SpanJudgement]:
    """Return the judgements with how many recipes opened each span, and keep these openings.

    *folder* holds the checkpoint; None is a class of one's own.
    """
    found = []
    for one in every:
        new = SpanOpening(recipe, model_id, one.symbols, one.from_ms, one.until_ms)
        count, sentence = opened(openings_path(folder), new)
        missing = (*one.missing, *([sentence] if sentence else []))
        found.append(replace(one, openings=count, missing=missing))
    return found


def judge_checkpoint(
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: JudgedData,
    span: NamedSpan = WHOLE,
    *,
    bars: int | None = None,
) -> SpanJudgement:
    """Return the judgement of a checkpoint on *span* of the time after its calibration.

    *bars* are explained, for the gates; by default as many as can be in minutes. A network over
    several assets is judged at the closes that all of *material*'s symbols have.
    """
    kind = kind_of(card)
    model = kind.load(card, tensors)
    data, missing = kind.arrange(material).spanned(span).with_known_baselines()
    return SpanJudgement(
        span,
        data.symbols(Part.TEST),
        model.judge(data, bars=bars),
        card,
        missing=(*data.notes, *missing),
        tails=model.tails(data),
    )


def judge_class(
    forecaster: UserForecaster, material: Dataset, span: NamedSpan = WHOLE, *, horizon: int
) -> SpanJudgement:
    """Return the judgement of a user's class on *span* of the time after it was trained."""
    material, missing = material.spanned(span).with_known_baselines()
    judged = judge_user_class(forecaster, material, horizon=horizon)
    return SpanJudgement(span, material.symbols(Part.TEST), judged, {}, missing=missing)


# --- other models


def rival_checkpoint(
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: JudgedData,
    judgement: SpanJudgement,
) -> ModelForecasts:
    """Return a checkpoint's forecasts of the rows of *judgement*, of the same interval.

    Raises ``ConfigInvalid`` where it learnt from that time, or answers none of these rows.
    """
    kind = kind_of(card)
    same = _same_rows(kind.arrange(material), judgement, card["architecture"]["horizons"])
    model = kind.load(card, tensors)
    found = ModelForecasts(model.answers(same, Part.TEST), model.held(same))
    if not (judgement.forecasts.places(found.forecasts) >= 0).any():
        unit = judgement.forecasts.unit
        raise ConfigInvalid(f"it answers none of the {unit} that the judged model answers")
    return found


def rival_class(
    forecaster: UserForecaster, material: Dataset, judgement: SpanJudgement
) -> ModelForecasts:
    """Return the forecasts of a user's class for the bars of *judgement*; raises likewise."""
    same = _same_rows(material, judgement, material.horizons)
    return ModelForecasts(class_forecasts(forecaster, same))


def require_interval(name: str, material: JudgedData, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where *material* is of another interval than the judged model's."""
    if material.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"--compare {name}: it forecasts bars of {interval_text(material.interval_ms)}, and "
            f"the judged model bars of {interval_text(interval_ms)}; name models of one interval."
        )


def _same_rows(data: AnyData, judgement: SpanJudgement, horizons: Sequence[int]) -> AnyData:
    """Return *data* of the judged rows alone, with the baselines that need no fitting."""
    rows = judgement.forecasts
    if not set(horizons) & set(rows.horizons):
        theirs, ours = (", ".join(map(str, every)) for every in (horizons, rows.horizons))
        raise ConfigInvalid(
            f"it forecasts {theirs} {rows.unit} ahead, and the judged model {ours}; name models of "
            "a common horizon"
        )
    found: AnyData = data.spanned(judgement.span).compared(np.unique(rows.keys))
    return found
