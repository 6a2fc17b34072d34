"""Several models on the same bars of one span: what each loses less than the others, by day.

Every other model is asked for the bars that the judged one answered, and held to the judged one's
labels: features of another schema have another unit of return, which is taken out.

The rule is docs/models.md, L54.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.judging.judgement import (
    LOSSES,
    OWN,
    Rival,
    SpanJudgement,
    forecasts_of,
    within,
)
from tracepaper.replay.judging.spans import NamedSpan
from tracepaper.replay.training.across import AcrossAssets
from tracepaper.replay.training.aligned import AlignedMaterial
from tracepaper.replay.training.aligned_judged import forecasts_together
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.fitted import unfitted
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.own import evaluate_own
from tracepaper.replay.training.paired import DayDifference, corrected, difference
from tracepaper.replay.training.pipeline import ALL_MEASURES
from tracepaper.replay.training.samples import Samples
from tracepaper.replay.training.series import SYMBOL_BITS, Part
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.cross_asset import is_together
from tracepaper.strategies.units import interval_text


@dataclass(frozen=True)
class _SameBars(Material):
    """Material whose samples are some bars alone, by their ``Segment.keys``."""

    keys: NDArray[np.int64] = field(kw_only=True, compare=False)

    def samples(self, part: Part) -> list[Samples]:
        """Return the samples of *part* that are among the bars; raise where there is none."""
        found = []
        for one in super().samples(part):
            weights = one.weights * np.isin(one.segment.keys, self.keys)[:, None]
            if weights.any():
                found.append(replace(one, weights=weights))
        if not found:
            raise DataInvalid("it has no bar in common with the judged model")
        return found


def rival_checkpoint(
    name: str,
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: Material,
    of: SpanJudgement,
) -> Rival:
    """Return what a checkpoint says of the bars that *of* judged, of the same interval.

    Raises ``ConfigInvalid`` where it learnt from that time, or answers none of these bars.
    """
    across = None
    try:
        same = _same_bars(material, of, of.span)
        if is_together(card):
            forecasts, across = forecasts_together(
                card,
                tensors,
                AlignedMaterial.of(same, lambda _: same.split),
                closes=np.unique(same.keys >> SYMBOL_BITS),
            )
            given = ALL_MEASURES
        else:
            forecasts, given = forecasts_of(card, tensors, same)
    except (ConfigInvalid, DataInvalid) as error:
        raise _refused(name, error) from None
    return _rival(name, forecasts, given, of, across)


def rival_class(
    name: str, forecaster: UserForecaster, material: Material, of: SpanJudgement
) -> Rival:
    """Return what a user's class says of the bars that *of* judged; raise as for a checkpoint."""
    try:
        same = _same_bars(material, of, of.span)
        found = evaluate_own(forecaster, same, horizon=material.horizons[0])
    except (ConfigInvalid, DataInvalid) as error:
        raise _refused(name, error) from None
    return _rival(name, found.forecasts, found.given, of)


def _refused(name: str, error: Exception) -> ConfigInvalid:
    return ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.")


def require_interval(name: str, material: Material, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where *material* is of another interval than the judged model's."""
    if material.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"--compare {name}: it forecasts bars of {interval_text(material.interval_ms)}, and "
            f"the judged model bars of {interval_text(interval_ms)}; name models of one interval."
        )


def _same_bars(material: Material, of: SpanJudgement, span: NamedSpan) -> _SameBars:
    if not set(material.horizons) & {one.horizon for one in of.horizons}:
        raise ConfigInvalid(
            f"it forecasts {_listed(material.horizons)} bars ahead, and the judged model "
            f"{_listed([one.horizon for one in of.horizons])}; name models of a common horizon"
        )
    known = within(material, span)
    parts = {name: getattr(known, name) for name in Material.__dataclass_fields__}
    keys = np.unique(np.concatenate([one.keys for one in of.horizons]))
    return _SameBars(**{**parts, "stored": unfitted()}, keys=keys)


def _listed(horizons: Sequence[int]) -> str:
    return ", ".join(map(str, horizons))


def _rival(
    name: str,
    forecasts: Sequence[HorizonForecasts],
    given: frozenset[str],
    of: SpanJudgement,
    across: AcrossAssets | None = None,
) -> Rival:
    wanted = {one.horizon for one in of.horizons}
    shared = {one.horizon: one for one in forecasts if one.horizon in wanted}
    return Rival(name, shared, given, across)


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
