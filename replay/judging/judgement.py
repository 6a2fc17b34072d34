"""One model judged on one span: what it said, what happened, and how sure it was of each bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.judging.spans import WHOLE, NamedSpan
from tracepaper.replay.training import figures
from tracepaper.replay.training.across import AcrossAssets
from tracepaper.replay.training.aligned import AlignedMaterial
from tracepaper.replay.training.aligned_judged import judge_together
from tracepaper.replay.training.ensemble import judge_ensemble, mixed
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.explained import JudgedPart, daily_net
from tracepaper.replay.training.fitted import unfitted
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.own import evaluate_own
from tracepaper.replay.training.paired import qlike_losses, sign_losses
from tracepaper.replay.training.pipeline import ALL_MEASURES, judge, judge_part
from tracepaper.replay.training.rowwise import judge_row_part, judge_rows
from tracepaper.replay.training.samples import samples_in
from tracepaper.replay.training.series import Part
from tracepaper.replay.training.tails import TAILS, tail_factors
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import is_ensemble, restore
from tracepaper.strategies.forecasters.cross_asset import is_together
from tracepaper.strategies.forecasters.tabular import ROW_MEASURES, row_kind
from tracepaper.strategies.units import DAY_MS

NO_BASELINES: Final = (
    "The checkpoint keeps no baselines, and the candles hold no bar of its training, so it stands "
    "beside what needs no fitting alone; give candles from before {until}, or train it again."
)
OWN: Final = "network"
"""The judged model among the forecasts of a horizon, whatever its kind."""


@dataclass(frozen=True)
class Rival:
    """What another model said of the bars of a judgement: forecasts by horizon, in bars."""

    name: str
    forecasts: Mapping[int, HorizonForecasts]
    given: frozenset[str]  # the measures that it gives
    across: AcrossAssets | None = None  # of a network over several assets


@dataclass(frozen=True)
class SpanJudgement:
    """What one span says of a model. ``horizons`` hold forecasts beside what happened, by row."""

    span: NamedSpan
    symbols: tuple[str, ...]
    judged: JudgedPart
    card: Mapping[str, Any]  # empty for a class
    missing: tuple[str, ...]  # sentences about what could not be compared, or counted
    openings: int = 1  # recipes that were judged on the span, this one among them
    beside: tuple[Rival, ...] = ()  # other models, on the same bars
    tails: Mapping[str, Any] = field(default_factory=dict)  # ``[calibration.tails]``; empty if none

    @property
    def horizons(self) -> Sequence[HorizonForecasts]:
        """The forecasts of every horizon."""
        return self.judged.forecasts

    @property
    def sentences(self) -> list[str]:
        """What an honest reader must know."""
        return [*self.judged.sentences, *self._explained(), *self.missing]

    def _explained(self) -> list[str]:
        """Say of how many days the figures of gates are, which are of the bars explained."""
        if (seen := self.judged.explained) is None:
            return []
        days = len(np.unique(seen.days))
        said = (
            f"The figures of gates are of the {len(seen.value):,} bars that were explained, on "
            f"{days:,} of {self.days:,} days: --explained-bars takes more."
        )
        return [said]

    @property
    def days(self) -> int:
        """How many calendar days were judged."""
        return len(np.unique(np.concatenate([one.days for one in self.horizons])))

    @property
    def from_ms(self) -> int:
        """The midnight of the first day judged."""
        return int(min(one.days.min() for one in self.horizons)) * DAY_MS

    @property
    def until_ms(self) -> int:
        """The midnight after the last day judged."""
        return (int(max(one.days.max() for one in self.horizons)) + 1) * DAY_MS

    def net_by_day(self, rule: str) -> Array:
        """Return what a rule of trading earned on each day, as log returns."""
        assert self.judged.explained is not None
        return daily_net(self.judged.explained, self.judged.rules[rule])


def judge_checkpoint(
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    material: Material,
    span: NamedSpan = WHOLE,
    *,
    bars: int | None = None,
) -> SpanJudgement:
    """Return the judgement of a checkpoint on *span* of the time after its calibration.

    *bars* are explained, for the gates; by default as many as can be in minutes. A network over
    several assets is judged at the closes that all of *material*'s symbols have.
    """
    if is_together(card):
        return _judge_together(card, tensors, material, span)
    material, missing = _with_baselines(within(material, span))
    if is_ensemble(card):
        found = judge_ensemble(card, tensors, material, bars=bars)
    elif row_kind(card) is None:
        found = judge(card, tensors, material, bars=bars)
    else:
        found = judge_rows(card, tensors, material)
    return SpanJudgement(
        span,
        material.symbols(Part.TEST),
        found,
        card,
        missing,
        tails=_tails(card, tensors, material),
    )


def _tails(
    card: Mapping[str, Any], tensors: Mapping[str, Any], material: Material
) -> dict[str, Any]:
    """Return the calibration of the tails: the card's, or that of its slice where it is at hand."""
    if TAILS in card["calibration"]:
        return dict(card["calibration"][TAILS])
    part = Part.CALIBRATION
    if not samples_in(material.segments, material.horizons, material.split, part):
        return {}
    if is_ensemble(card):
        return tail_factors(mixed(card, tensors, material, part))
    if row_kind(card) is None:
        return tail_factors(judge_part(restore(card, tensors), material, part))
    spread = card["calibration"]["spread"]
    found = judge_row_part(card, tensors, material, part)
    return tail_factors([replace(one, scale=one.scale * spread[str(one.horizon)]) for one in found])


def _judge_together(
    card: Mapping[str, Any], tensors: Mapping[str, Any], material: Material, span: NamedSpan
) -> SpanJudgement:
    """Return the judgement of a network over several assets on *span*."""
    aligned = AlignedMaterial.of(material, lambda _: material.split)
    own, missing = _with_baselines(within(aligned.material, span))
    found = judge_together(card, tensors, replace(aligned, material=own))
    symbols, tails = own.symbols(Part.TEST), card["calibration"].get(TAILS, {})
    return SpanJudgement(span, symbols, found, card, (*aligned.said, *missing), tails=tails)


def judge_class(
    forecaster: UserForecaster, material: Material, span: NamedSpan = WHOLE, *, horizon: int
) -> SpanJudgement:
    """Return the judgement of a user's class on *span* of the time after it was trained."""
    material, missing = _with_baselines(within(material, span))
    found = evaluate_own(forecaster, material, horizon=horizon)
    return SpanJudgement(span, material.symbols(Part.TEST), found, {}, missing)


def forecasts_of(
    card: Mapping[str, Any], tensors: Mapping[str, Any], material: Material
) -> tuple[list[HorizonForecasts], frozenset[str]]:
    """Return what a checkpoint says of the test part, and which measures it gives."""
    if is_ensemble(card):
        return mixed(card, tensors, material), ALL_MEASURES
    if row_kind(card) is None:
        return judge_part(restore(card, tensors), material, Part.TEST), ALL_MEASURES
    return judge_row_part(card, tensors, material, Part.TEST), ROW_MEASURES


def within(material: Material, span: NamedSpan) -> Material:
    """Return *material* whose test part is *span*.

    Raises ``ConfigInvalid`` where the span is not after all that the model saw, or has no bar.
    """
    split = material.split
    seen = NamedSpan("", None, split.calibration_until_ms).until
    if span.from_ms is not None and span.from_ms < split.calibration_until_ms:
        raise ConfigInvalid(
            f"The span {span.text} begins before {seen}, until when the model had seen all; judge "
            "it on later time."
        )
    own = replace(
        split,
        test_from_ms=split.test_from_ms if span.from_ms is None else span.from_ms,
        test_until_ms=split.test_until_ms if span.until_ms is None else span.until_ms,
    )
    found = replace(material, split=own)
    if not samples_in(found.segments, found.horizons, own, Part.TEST):
        raise ConfigInvalid(
            f"The candles hold no bar of the span {span.text} whose outcome is known; give candles "
            "of that time."
        )
    return found


def _with_baselines(material: Material) -> tuple[Material, tuple[str, ...]]:
    """Return *material* with the baselines that can be had, and a sentence where most cannot."""
    if material.stored is not None or samples_in(
        material.segments, material.horizons, material.split, Part.TRAIN
    ):
        return material, ()
    until = NamedSpan("", None, material.split.train_until_ms).until
    return replace(material, stored=unfitted()), (NO_BASELINES.format(until=until),)


# --- how sure a model was


Sureness = Callable[[SpanJudgement, HorizonForecasts], Array | None]
MEASURES: Final[dict[str, Sureness]] = {}
"""What could tell good bars from bad ones, by name: higher is surer, NaN where it is not known."""


def measure(name: str) -> Callable[[Sureness], Sureness]:
    """Register a measure of how sure a model was of each row; None where it has none.

    Raises ``ConfigInvalid`` for a name that is taken.
    """

    def known(of: Sureness) -> Sureness:
        if name in MEASURES:
            raise ConfigInvalid(f"There is a measure called {name} already.")
        MEASURES[name] = of
        return of

    return known


@measure("entropy")
def _entropy(judgement: SpanJudgement, found: HorizonForecasts) -> Array | None:
    seen = judgement.judged.explained
    if seen is None or "confidence" not in seen.measures:
        return None
    return _looked_up(found.keys, seen.keys, seen.measures["confidence"])


@measure("margin")
def _margin(judgement: SpanJudgement, found: HorizonForecasts) -> Array | None:
    if "probabilities" not in judgement.judged.given:
        return None
    shares = figures.probabilities(found.logits, 1.0)
    margin: Array = np.abs(shares[:, 2] - shares[:, 0]) / (shares[:, 2] + shares[:, 0])
    return margin


@measure("mean_over_scale")
def _mean_over_scale(judgement: SpanJudgement, found: HorizonForecasts) -> Array | None:
    if not {"mean_return", "stdev_return"} <= judgement.judged.given:
        return None
    return np.abs(found.mean) / found.scale


@measure("predicted_calm")
def _predicted_calm(judgement: SpanJudgement, found: HorizonForecasts) -> Array | None:
    return -found.variances[OWN] if "volatility" in judgement.judged.given else None


def _looked_up(wanted: NDArray[np.int64], keys: NDArray[np.int64], values: Array) -> Array:
    """Return the value of each *wanted* key among *keys*; NaN where it is none of them."""
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    at = order[place]
    return np.where(keys[at] == wanted, values[at], np.nan)


# --- what a bar costs if it is answered


Risk = Callable[[HorizonForecasts], Array]


def sign_risk(found: HorizonForecasts, mean: Array | None = None) -> Array:
    """Return 1 where the sign was wrong, 0 where right; a half where nothing was said or moved.

    Of *mean*, by default the model's own.
    """
    return figures.sign_risk(found.mean if mean is None else mean, found.value)


def qlike_rank(found: HorizonForecasts) -> Array:
    """Return the rank from 0 to 1 of each bar's QLIKE among all: one crash is no more than last."""
    loss = figures.qlike_of(found.variances[OWN], found.variance)
    ranks: Array = np.argsort(np.argsort(loss, kind="stable"), kind="stable") / max(
        len(loss) - 1, 1
    )
    return ranks


def interval_miss(found: HorizonForecasts) -> Array:
    """Return 1 where the return lay outside the 90 % interval, else 0."""
    return 1.0 - figures.inside(found.mean, found.scale, found.dof, found.value, figures.COVERAGE)


RISKS: Final[Mapping[str, tuple[str, frozenset[str], Risk]]] = {
    "sign": ("sign wrong", frozenset({"mean_return"}), sign_risk),
    "qlike_rank": ("volatility error (rank)", frozenset({"volatility"}), qlike_rank),
    "interval_miss": (
        "90 % interval missed", frozenset({"mean_return", "stdev_return"}), interval_miss
    ),
}  # fmt: skip
"""What a bar costs if it is answered: words, the measures of the model that it needs, and how."""

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
"""Losses that forecasters are compared by: words, the measure that it needs, and each one's."""


def _probability_losses(
    of: Callable[[Array, NDArray[np.int64]], Array], one: HorizonForecasts
) -> Mapping[str, Array]:
    probability = figures.probabilities(one.logits, 1.0)
    usual = figures.climatology(one.classes, probability.shape[1])
    return {OWN: of(probability, one.classes), "climatology": of(usual, one.classes)}


REFERENCED: Final[Mapping[str, tuple[str, str, Losses]]] = {
    "brier": ("Brier score", "probabilities", partial(_probability_losses, figures.brier_of)),
    "log_loss": ("Log loss", "probabilities", partial(_probability_losses, figures.log_loss_of)),
}
"""Losses that stand beside a reference alone: no baseline names probabilities."""
