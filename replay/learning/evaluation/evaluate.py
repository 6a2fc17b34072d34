"""One model evaluated on one span, alone and compared with others on the same bars.

Every other model forecasts the bars that the judged one answered, and is scored by the judged one's
labels: features of another schema have another unit of return, which is divided out.

The rules are docs/models.md, L54.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimator import Answers, candle_estimator
from tracepaper.replay.learning.evaluation.cross_section import AcrossAssets
from tracepaper.replay.learning.evaluation.explained import JudgedPart, daily_net
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.evaluation.user_class import OF_MODEL, evaluate_own
from tracepaper.replay.learning.openings import WHOLE, JudgedSpan, NamedSpan
from tracepaper.replay.learning.samples import samples_in
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import (
    DayDifference,
    corrected,
    difference,
    qlike_losses,
    sign_losses,
)
from tracepaper.replay.learning.stored_baselines import unfitted
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import count_of, interval_text

NO_BASELINES: Final = (
    "The checkpoint keeps no baselines, and the candles hold no bar of its training, so it stands "
    "beside what needs no fitting alone; give candles from before {until}, or train it again."
)
OWN: Final = "network"
"""The judged model among the forecasts of a horizon, whatever its kind."""


def words(name: str) -> str:
    """Return the title of a forecaster, a measure or a figure in tables."""
    return (OF_MODEL if name == OWN else name).replace("_", " ")


@dataclass(frozen=True)
class Rival:
    """Another model's forecasts of the bars of a judgement, by horizon in bars."""

    name: str
    forecasts: Mapping[int, HorizonForecasts]
    given: frozenset[str]  # the measures that it gives
    across: AcrossAssets | None = None  # of a network over several assets


@dataclass(frozen=True)
class SpanJudgement(JudgedSpan):
    """The judgement of a model on one span; ``horizons`` have forecasts and outcomes, by row."""

    judged: JudgedPart
    card: Mapping[str, Any]  # empty for a class
    beside: tuple[Rival, ...] = ()  # other models, on the same bars
    tails: Mapping[str, Any] = field(default_factory=dict)  # ``[calibration.tails]``; empty if none

    @property
    def horizons(self) -> Sequence[HorizonForecasts]:
        """The forecasts of every horizon."""
        return self.judged.forecasts

    @property
    def row_days(self) -> Sequence[NDArray[np.int64]]:
        """The calendar day of each row that was judged, by horizon."""
        return [forecasts.days for forecasts in self.horizons]

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
        (rows,) = (of.days for of in self.horizons if of.horizon == explained.horizon)
        gates, rest = (
            f"{count_of(len(of), 'bar')} on {count_of(len(np.unique(of)), 'day')}"
            for of in (explained.days, rows)
        )
        more = " evaluation.explained_bars takes more." if len(explained.days) < len(rows) else ""
        sentence = f"The figures of gates are of {gates} that were explained, all others of {rest}."
        return [sentence + more]

    def net_by_day(self, rule: str) -> Array:
        """Return the net log return of a rule of trading on each day."""
        assert self.judged.explained is not None
        return daily_net(self.judged.explained, self.judged.rules[rule])


def judge_checkpoint(
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: Dataset,
    span: NamedSpan = WHOLE,
    *,
    bars: int | None = None,
) -> SpanJudgement:
    """Return the judgement of a checkpoint on *span* of the time after its calibration.

    *bars* are explained, for the gates; by default as many as can be in minutes. A network over
    several assets is judged at the closes that all of *material*'s symbols have.
    """
    estimator = candle_estimator(card)
    model, data = estimator.load(card, tensors), estimator.arrange(material)
    data, missing = _with_baselines(within(data, span))
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
    material, missing = _with_baselines(within(material, span))
    judged = evaluate_own(forecaster, material, horizon=horizon)
    return SpanJudgement(span, material.symbols(Part.TEST), judged, {}, missing=missing)


def within(material: Dataset, span: NamedSpan) -> Dataset:
    """Return *material* whose test part is *span*.

    Raises ``ConfigInvalid`` where the span is not after all that the model saw, or has no bar.
    """
    split = material.split
    until = NamedSpan("", None, split.calibration_until_ms).until
    if span.from_ms is not None and span.from_ms < split.calibration_until_ms:
        raise ConfigInvalid(
            f"The span {span.text} begins before {until}, until when the model had seen all; judge "
            "it on later time."
        )
    own = replace(
        split,
        test_from_ms=split.test_from_ms if span.from_ms is None else span.from_ms,
        test_until_ms=split.test_until_ms if span.until_ms is None else span.until_ms,
    )
    spanned = replace(material, split=own)
    if not samples_in(spanned.segments, spanned.horizons, own, Part.TEST):
        raise ConfigInvalid(
            f"The candles hold no bar of the span {span.text} whose outcome is known; give candles "
            "of that time."
        )
    return spanned


def _with_baselines(material: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Return *material* with its baselines, and a sentence where only unfitted ones remain."""
    if material.stored is not None or samples_in(
        material.segments, material.horizons, material.split, Part.TRAIN
    ):
        return material, ()
    until = NamedSpan("", None, material.split.train_until_ms).until
    return replace(material, stored=unfitted()), (NO_BASELINES.format(until=until),)


# --- how sure a model was


Sureness = Callable[[SpanJudgement, HorizonForecasts], Array | None]
MEASURES: Final[dict[str, Sureness]] = {}
"""Measures of a model's sureness, by name: higher is surer, NaN where it is not known."""


def measure(name: str) -> Callable[[Sureness], Sureness]:
    """Register a measure of how sure a model was of each row; None where it has none.

    Raises ``ConfigInvalid`` for a name that is taken.
    """

    def register(function: Sureness) -> Sureness:
        if name in MEASURES:
            raise ConfigInvalid(f"There is a measure called {name} already.")
        MEASURES[name] = function
        return function

    return register


@measure("entropy")
def _entropy(judgement: SpanJudgement, forecasts: HorizonForecasts) -> Array | None:
    explained = judgement.judged.explained
    if explained is None or "confidence" not in explained.measures:
        return None
    return _values_at(forecasts.keys, explained.keys, explained.measures["confidence"])


@measure("margin")
def _margin(judgement: SpanJudgement, forecasts: HorizonForecasts) -> Array | None:
    if "probabilities" not in judgement.judged.given:
        return None
    shares = figures.probabilities(forecasts.logits, 1.0)
    margin: Array = np.abs(shares[:, 2] - shares[:, 0]) / (shares[:, 2] + shares[:, 0])
    return margin


@measure("mean_over_scale")
def _mean_over_scale(judgement: SpanJudgement, forecasts: HorizonForecasts) -> Array | None:
    if not {"mean_return", "stdev_return"} <= judgement.judged.given:
        return None
    return np.abs(forecasts.mean) / forecasts.scale


@measure("predicted_calm")
def _predicted_calm(judgement: SpanJudgement, forecasts: HorizonForecasts) -> Array | None:
    return -forecasts.variances[OWN] if "volatility" in judgement.judged.given else None


def _values_at(wanted: NDArray[np.int64], keys: NDArray[np.int64], values: Array) -> Array:
    """Return the value at each *wanted* key; NaN where it is not among *keys*."""
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    at = order[place]
    return np.where(keys[at] == wanted, values[at], np.nan)


# --- the loss of each bar that is answered


Risk = Callable[[HorizonForecasts], Array]


def qlike_rank(forecasts: HorizonForecasts) -> Array:
    """Return the rank of each bar's QLIKE among all, from 0 to 1: a crash counts once."""
    loss = figures.qlike_of(forecasts.variances[OWN], forecasts.variance)
    ranks: Array = np.argsort(np.argsort(loss, kind="stable"), kind="stable") / max(
        len(loss) - 1, 1
    )
    return ranks


def interval_miss(forecasts: HorizonForecasts) -> Array:
    """Return 1 where the return lay outside the 90 % interval, else 0."""
    return 1.0 - figures.inside(
        forecasts.mean, forecasts.scale, forecasts.dof, forecasts.value, figures.COVERAGE
    )


RISKS: Final[Mapping[str, tuple[str, frozenset[str], Risk]]] = {
    "sign": (
        "sign wrong", frozenset({"mean_return"}), lambda one: figures.sign_risk(one.mean, one.value)
    ),
    "qlike_rank": ("volatility error (rank)", frozenset({"volatility"}), qlike_rank),
    "interval_miss": (
        "90 % interval missed", frozenset({"mean_return", "stdev_return"}), interval_miss
    ),
}  # fmt: skip
"""Losses of a bar that is answered: words, the measures of the model that each needs, and how."""

Losses = Callable[[HorizonForecasts], Mapping[str, Array]]
LOSSES: Final[Mapping[str, tuple[str, str, Losses]]] = {
    "qlike": (
        "QLIKE",
        "volatility",
        qlike_losses,
    ),
    "sign": (
        "Signs named wrong",
        "mean_return",
        sign_losses,
    ),
}
"""Losses by which forecasters are compared: words, the measure that each needs, and the losses."""


def _probability_losses(
    loss: Callable[[Array, NDArray[np.int64]], Array], forecasts: HorizonForecasts
) -> Mapping[str, Array]:
    classes = forecasts.classes
    probability = figures.probabilities(forecasts.logits, 1.0)
    usual = figures.climatology(classes, probability.shape[1])
    return {OWN: loss(probability, classes), "climatology": loss(usual, classes)}


REFERENCED: Final[Mapping[str, tuple[str, str, Losses]]] = {
    "brier": ("Brier score", "probabilities", partial(_probability_losses, figures.brier_of)),
    "log_loss": ("Log loss", "probabilities", partial(_probability_losses, figures.log_loss_of)),
}
"""Losses that are compared with a reference alone: no baseline gives probabilities."""


def rival_checkpoint(
    name: str,
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: Dataset,
    judgement: SpanJudgement,
) -> Rival:
    """Return a checkpoint's forecasts of the bars of *judgement*, of the same interval.

    Raises ``ConfigInvalid`` where it learnt from that time, or answers none of these bars.
    """
    try:
        estimator = candle_estimator(card)
        same = estimator.arrange(_same_bars(material, judgement, judgement.span))
        answers = estimator.load(card, tensors).answers(same, Part.TEST)
    except (ConfigInvalid, DataInvalid) as error:
        raise _compare_error(name, error) from None
    return _rival(name, answers, judgement)


def rival_class(
    name: str, forecaster: UserForecaster, material: Dataset, judgement: SpanJudgement
) -> Rival:
    """Return the forecasts of a user's class for the bars of *judgement*; raises likewise."""
    try:
        same = _same_bars(material, judgement, judgement.span)
        judged = evaluate_own(forecaster, same, horizon=material.horizons[0])
    except (ConfigInvalid, DataInvalid) as error:
        raise _compare_error(name, error) from None
    return _rival(name, Answers(judged.forecasts, judged.given), judgement)


def _compare_error(name: str, error: Exception) -> ConfigInvalid:
    return ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.")


def require_interval(name: str, material: Dataset, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where *material* is of another interval than the judged model's."""
    if material.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"--compare {name}: it forecasts bars of {interval_text(material.interval_ms)}, and "
            f"the judged model bars of {interval_text(interval_ms)}; name models of one interval."
        )


def _same_bars(data: Dataset, judgement: SpanJudgement, span: NamedSpan) -> Dataset:
    """Return *data* of the judged bars alone, with the baselines that need no fitting."""
    judged = [forecasts.horizon for forecasts in judgement.horizons]
    if not set(data.horizons) & set(judged):
        raise ConfigInvalid(
            f"it forecasts {_listed(data.horizons)} bars ahead, and the judged model "
            f"{_listed(judged)}; name models of a common horizon"
        )
    keys = np.unique(np.concatenate([forecasts.keys for forecasts in judgement.horizons]))
    return replace(within(data, span), stored=unfitted(), only=keys)


def _listed(horizons: Sequence[int]) -> str:
    return ", ".join(map(str, horizons))


def _rival(name: str, answers: Answers, judgement: SpanJudgement) -> Rival:
    judged = {forecasts.horizon for forecasts in judgement.horizons}
    shared = {each.horizon: each for each in answers.forecasts if each.horizon in judged}
    return Rival(name, shared, answers.measures, answers.across)


# --- side by side


def compared_with(judgement: SpanJudgement, loss: str, horizon: int) -> dict[str, DayDifference]:
    """Return the judged model's *loss* less each other's, by name, Holm over the others.

    A model is left out where it or the judged one does not give the measure that the loss needs.
    """
    _, needs, losses = LOSSES[loss]
    own = next(each for each in judgement.horizons if each.horizon == horizon)
    differences = {}
    for rival in judgement.beside:
        if horizon not in rival.forecasts or needs not in judgement.judged.given & rival.given:
            continue
        mine, theirs = on_same_bars(own, rival.forecasts[horizon])
        differences[rival.name] = difference(losses(mine)[OWN], losses(theirs)[OWN], mine.days)
    return corrected(differences)


def on_same_bars(
    one: HorizonForecasts, other: HorizonForecasts
) -> tuple[HorizonForecasts, HorizonForecasts]:
    """Return both models' own forecasts of the bars of both, with the labels of *one*."""
    _, at, place = np.intersect1d(one.keys, other.keys, return_indices=True)
    mine, theirs = _alone(one, at), _alone(other, place)
    labels = ("keys", "days", "value", "classes", "variance", "unit")
    return mine, replace(theirs, **{name: getattr(mine, name) for name in labels})


def _alone(one: HorizonForecasts, rows: NDArray[np.int64]) -> HorizonForecasts:
    """Return the model's own forecasts of *rows*."""
    return replace(
        one,
        keys=one.keys[rows],
        days=one.days[rows],
        value=one.value[rows],
        classes=one.classes[rows],
        variance=one.variance[rows],
        unit=one.unit[rows],
        mean=one.mean[rows],
        scale=one.scale[rows],
        dof=one.dof[rows],
        logits=one.logits[rows],
        means={OWN: one.mean[rows]},
        variances={OWN: one.variances[OWN][rows]},
        quantiles={level: of[rows] for level, of in one.quantiles.items()},
    )
