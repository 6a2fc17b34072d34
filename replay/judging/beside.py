"""Several models on the same bars of one span: what each loses less than the others, by day.

Every other model is asked for the bars that the judged one answered, and held to the judged one's
labels: features of another schema have another unit of return, which is taken out.

The rule is docs/models.md, L54.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.judging.judgement import (
    LOSSES,
    OWN,
    Rival,
    SpanJudgement,
    within,
)
from tracepaper.replay.training.dataset import Dataset
from tracepaper.replay.training.estimator import Answers, candle_estimator
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.fitted import unfitted
from tracepaper.replay.training.openings import NamedSpan
from tracepaper.replay.training.own import evaluate_own
from tracepaper.replay.training.paired import (
    DayDifference,
    corrected,
    difference,
)
from tracepaper.replay.training.series import (
    Part,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import interval_text


def rival_checkpoint(
    name: str,
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: Dataset,
    of: SpanJudgement,
) -> Rival:
    """Return what a checkpoint says of the bars that *of* judged, of the same interval.

    Raises ``ConfigInvalid`` where it learnt from that time, or answers none of these bars.
    """
    try:
        estimator = candle_estimator(card)
        same = estimator.arrange(_same_bars(material, of, of.span))
        found = estimator.load(card, tensors).answers(same, Part.TEST)
    except (ConfigInvalid, DataInvalid) as error:
        raise _refused(name, error) from None
    return _rival(name, found, of)


def rival_class(
    name: str, forecaster: UserForecaster, material: Dataset, of: SpanJudgement
) -> Rival:
    """Return what a user's class says of the bars that *of* judged; raise as for a checkpoint."""
    try:
        same = _same_bars(material, of, of.span)
        found = evaluate_own(forecaster, same, horizon=material.horizons[0])
    except (ConfigInvalid, DataInvalid) as error:
        raise _refused(name, error) from None
    return _rival(name, Answers(found.forecasts, found.given), of)


def _refused(name: str, error: Exception) -> ConfigInvalid:
    return ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.")


def require_interval(name: str, material: Dataset, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where *material* is of another interval than the judged model's."""
    if material.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"--compare {name}: it forecasts bars of {interval_text(material.interval_ms)}, and "
            f"the judged model bars of {interval_text(interval_ms)}; name models of one interval."
        )


def _same_bars(data: Dataset, of: SpanJudgement, span: NamedSpan) -> Dataset:
    """Return *data* of the bars that *of* judged alone, beside what needs no fitting."""
    if not set(data.horizons) & {one.horizon for one in of.horizons}:
        raise ConfigInvalid(
            f"it forecasts {_listed(data.horizons)} bars ahead, and the judged model "
            f"{_listed([one.horizon for one in of.horizons])}; name models of a common horizon"
        )
    keys = np.unique(np.concatenate([one.keys for one in of.horizons]))
    return replace(within(data, span), stored=unfitted(), only=keys)


def _listed(horizons: Sequence[int]) -> str:
    return ", ".join(map(str, horizons))


def _rival(name: str, found: Answers, of: SpanJudgement) -> Rival:
    wanted = {one.horizon for one in of.horizons}
    shared = {one.horizon: one for one in found.forecasts if one.horizon in wanted}
    return Rival(name, shared, found.measures, found.across)


# --- side by side


def compared_with(of: SpanJudgement, loss: str, horizon: int) -> dict[str, DayDifference]:
    """Return the judged model's *loss* less each other's, by name, Holm over the others.

    Left out are models of which either gives nothing that the loss is of.
    """
    _, needs, losses = LOSSES[loss]
    own = next(one for one in of.horizons if one.horizon == horizon)
    found = {}
    for rival in of.beside:
        if horizon not in rival.forecasts or needs not in of.judged.given & rival.given:
            continue
        pair = on_same_bars(own, rival.forecasts[horizon])
        first, second = (losses(one)[OWN] for one in pair)
        found[rival.name] = difference(first, second, pair[0].days)
    return corrected(found)


def on_same_bars(
    one: HorizonForecasts, other: HorizonForecasts
) -> tuple[HorizonForecasts, HorizonForecasts]:
    """Return both models' own forecasts of the bars of both, in the units and labels of *one*."""
    _, at, place = np.intersect1d(one.keys, other.keys, return_indices=True)
    ratio = other.unit[place] / one.unit[at]
    mine = _alone(one, at, np.ones(len(at)))
    theirs = _alone(other, place, ratio)
    labels = ("keys", "days", "value", "classes", "variance", "unit")
    return mine, replace(theirs, **{name: getattr(mine, name) for name in labels})


def _alone(
    one: HorizonForecasts, rows: NDArray[np.int64], ratio: NDArray[np.float64]
) -> HorizonForecasts:
    """Return the model's own forecasts of *rows*, in units that are *ratio* times as large."""
    mean, variance = one.mean[rows] * ratio, one.variances[OWN][rows] * ratio**2
    return replace(
        one,
        keys=one.keys[rows],
        days=one.days[rows],
        value=one.value[rows],
        classes=one.classes[rows],
        variance=one.variance[rows],
        unit=one.unit[rows],
        mean=mean,
        scale=one.scale[rows] * ratio,
        dof=one.dof[rows],
        logits=one.logits[rows],
        means={OWN: mean},
        variances={OWN: variance},
    )
