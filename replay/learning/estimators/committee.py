"""Committees: a checkpoint beside simple models that are fitted anew on a rolling window.

Nothing of the base is fitted. A committee is judged walking forward, by what a run would store.

The rules are docs/models.md, L66 to L68.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.boosting import (
    BoostingOptions,
)
from tracepaper.replay.learning.committee_fits import (
    CommitteeOptions,
    fit_at,
    fit_times,
    floors,
    listed,
    members_here,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimator import (
    Answers,
    CandleEstimator,
    CandleModel,
    DataRequest,
    FitRun,
    candle_card,
    register,
)
from tracepaper.replay.learning.estimators.tabular import WITHOUT_ATTENTION
from tracepaper.replay.learning.evaluation.explained import JudgedPart, bars_of
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts, judged, no_context
from tracepaper.replay.learning.evaluation.user_class import (
    OF_MODEL,
    figures_of,
    predictions_of,
    selective_of,
)
from tracepaper.replay.learning.recipe import Recipe
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import SYMBOL_MASK, Part, Segment, split_of
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR, paired_figures
from tracepaper.replay.learning.stored_baselines import stored_baselines
from tracepaper.replay.report.honesty import compared_sentences, few_days
from tracepaper.storage import checkpoints
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.aggregation import NORMAL_WIDTH
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.forecasters.committee import (
    BASE,
    COMMITTEE,
    COMMITTEE_KIND,
    CommitteeForecaster,
    member_forecasts,
)
from tracepaper.strategies.types.decisions import Forecast

FIFTHS: Final = 5
EQUAL: Final = "equal_weights"
WINNER: Final = "last_winner"
MEMBERS: Final = {"base": "base", "har": "refitted_har", "glm": "refitted_glm",
                  "tree": "refitted_tree"}  # fmt: skip
"""What tables call the members, beside baselines of the same kinds."""


@dataclass(frozen=True)
class CommitteeRecipe:
    """What a committee is made of: its options, the base, and the base's horizons."""

    options: CommitteeOptions
    folder: Path  # of the base
    base: checkpoints.Checkpoint
    horizons: tuple[int, ...]


class CommitteeEstimator(CandleEstimator):
    """A base as it is, and simple members, fitted walking forward over all the candles."""

    kind = COMMITTEE_KIND
    section = COMMITTEE
    Keys = CommitteeOptions
    Options = BoostingOptions
    chosen_training = ("threads",)

    def recipe(self, document: Mapping[str, Any]) -> Recipe:
        """Read a recipe with ``[committee]``, or the card of a committee.

        Raises ``ConfigInvalid`` for a key or a value that it cannot have, and for a base that is
        not there or is none.
        """
        section = dict(document.get(COMMITTEE, {}))
        if "parts" in document:
            section = dict(section["recipe"])
        names = CommitteeOptions.__dataclass_fields__
        if unknown := sorted(set(section) - set(names)):
            raise ConfigInvalid(f"The recipe's committee.{unknown[0]} is unknown; mend it.")
        section["members"] = tuple(section.get("members", CommitteeOptions.members))
        options = CommitteeOptions(**section)
        folder, base = _base_of(options.of)
        card = base.card
        threads = document.get("training", {}).get("threads", 2)
        kind: Any = self  # Pyright follows this module by two names
        return Recipe(
            kind,
            CommitteeRecipe(options, folder, base, tuple(card["architecture"]["horizons"])),
            BoostingOptions(),
            int(card["calibration"]["horizon"]),
            name=str(document.get("model", {}).get("name", "")),
            schema_id=str(card["features"]["schema_id"]),
            intervals=(str(card["market"]["interval"]),),
            calendar=card["features"].get("calendar"),
            threads=threads,
            split=card["split"],
        )

    def document(self, recipe: Recipe) -> dict[str, Any]:
        """Return *recipe* as the sections of a file."""
        return {
            "model": {"kind": COMMITTEE, "name": recipe.name},
            COMMITTEE: listed(recipe.architecture.options),
            "training": {"threads": recipe.threads},
        }

    def check(self, recipe: Recipe, option: str) -> None:
        """Raise ``ConfigInvalid`` where none of the members can be fitted here."""
        del option
        members, missing = members_here(recipe.architecture.options)
        if not members:
            raise ConfigInvalid(missing)

    def read(self, recipe: Recipe, request: DataRequest) -> Dataset:
        """Return the candles, split as the base's card says, beside the base's baselines."""
        base: checkpoints.Checkpoint = recipe.architecture.base
        if request.covariates is not None:
            raise ConfigInvalid("A committee takes no covariates; leave --covariates out.")
        split = split_of(base.card)
        data = self._read(recipe, request, recipe.schema_id, lambda _: split)
        return replace(data, stored=stored_baselines(recipe.architecture.folder, base.card))

    def fit(self, data: Dataset, recipe: Recipe, run: FitRun) -> CommitteeModel:
        """Fit the simple members at every time that the candles have a whole window before."""
        if data.fold is not None:
            raise ConfigInvalid(
                "The base of a committee stays as it was trained, so folds say nothing of it; "
                "judge it on later time, or give folds of its base."
            )
        options: CommitteeOptions = recipe.architecture.options
        base: checkpoints.Checkpoint = recipe.architecture.base
        members, missing = members_here(options)
        times = fit_times(data, options)
        run.say(f"Fitting {', '.join(members)} {len(times)} times.")
        tensors = {f"{BASE}.{name}": tensor for name, tensor in base.tensors.items()}
        fits: list[dict[str, Any]] = []
        for until_ms in times:
            made, said = fit_at(data, options, until_ms, threads=recipe.threads)
            for name, tensor in made.items():
                tensors[f"{len(fits)}.{name}"] = tensor
            fits.append(said)
        section = {
            "members": [BASE, *members],
            "recipe": listed(options),
            "base_id": base.id,
            "memory_ms": options.ms("memory"),
            "half_life_ms": options.ms("half_life"),
            "share": options.share,
            "floors": floors(data, options, times[0]),
            "widths": _widths(base.card, data.horizons),
            "fits": fits,
        }
        card = candle_card(
            data,
            recipe,
            run,
            architecture=base.card["architecture"],
            training={"threads": recipe.threads, "command": _command(data, options)},
            calibration=base.card["calibration"],
        )
        part = {key: value for key, value in base.card.items() if key not in _LEFT}
        return CommitteeModel({**card, "parts": {BASE: part}, COMMITTEE: section}, tensors, missing)

    def load(self, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CommitteeModel:
        """Return the committee of a checkpoint."""
        return CommitteeModel(card, tensors)


_LEFT: Final = ("figures", "honesty", "baselines", "seeds", "data", "versions")
"""Sections of the base's card that a committee's does not keep."""


def _base_of(name: str) -> tuple[Path, checkpoints.Checkpoint]:
    """Return folder and checkpoint of a base; raise ``ConfigInvalid`` for what can be none."""
    folder = checkpoints.locate(name)
    if not folder.is_dir():
        raise ConfigInvalid(f"There is no checkpoint {name!r}; name another as committee.of.")
    found = checkpoints.load(folder)
    if COMMITTEE in found.card or not {"calibration", "split", "market"} <= set(found.card):
        raise ConfigInvalid(f"{name} is no base of a committee; name a model of candles.")
    return folder, found


def _command(data: Dataset, options: CommitteeOptions) -> str:
    chosen = " ".join(
        f"--set committee.{name}={','.join(value) if isinstance(value, list) else value}"
        for name, value in listed(options).items()
    )
    files = " ".join(f"--data {source.symbol}={source.name}" for source in data.sources)
    return f"tracepaper train {chosen} {files} --out FOLDER"


# --- the fits


def _widths(card: Mapping[str, Any], horizons: Sequence[int]) -> dict[str, float]:
    """Return by horizon the width that intervals begin with: the base's, else a normal one."""
    spread = card["calibration"].get("spread", {})
    factors = spread if isinstance(spread, Mapping) else {}
    return {str(one): NORMAL_WIDTH * float(factors.get(str(one), 1.0)) for one in horizons}


# --- what it says


class CommitteeModel(CandleModel):
    """A committee that was fitted; it is judged by what a run would have stored of it."""

    @cached_property
    def forecaster(self) -> CommitteeForecaster:
        """The forecaster of a run."""
        threads = int(self.card["training"]["threads"])
        found: Any = build(self.card, self.tensors, mode="scan", threads=threads)
        made: CommitteeForecaster = found
        return made

    def scaled(self, data: Dataset) -> CommitteeModel:
        """Return it: its scales are kept up online."""
        del data
        return self

    def calibrated(self, data: Dataset, *, bars: int | None = None) -> CommitteeModel:
        """Return it: quantiles of gates are those of its base."""
        del data, bars
        return self

    def answers(self, data: Dataset, part: Part) -> Answers:
        """Return what it said of *part*, beside its members, their mean and the baselines."""
        asked = [
            (samples, rows, said)
            for samples in data.samples(part)
            for rows, said in [self._said(samples)]
            if len(rows)
        ]
        if not asked:
            raise no_context(part, self.forecaster.context)
        answered = [
            (samples, rows, predictions_of(samples, rows, said)) for samples, rows, said in asked
        ]
        found = judged(answered, data.baselines, data.horizons)
        parts = [_variances(*one) for one in asked]  # [member + 1, row, horizon] each
        weights = np.concatenate([samples.weights[rows] for samples, rows, _ in asked])
        every = np.concatenate(parts, axis=1)
        return Answers(
            [
                replace(one, variances=self._beside(one, every[:, weights[:, at] > 0, at]))
                for at, one in enumerate(found)
            ],
            self.forecaster.measures,
        )

    def _beside(self, one: HorizonForecasts, members: Array) -> dict[str, Array]:
        """Return the variances of the mix, members, their mean, the last winner and baselines."""
        names = [MEMBERS[name] for name in self.forecaster.members]
        *own, winner = members
        rest = {name: of for name, of in one.variances.items() if name != "network"}
        return {
            "network": one.variances["network"],
            **dict(zip(names, own, strict=True)),
            EQUAL: np.exp(np.log(np.maximum(own, VARIANCE_FLOOR)).mean(axis=0)),
            WINNER: winner,
            **rest,
        }

    def _said(self, samples: Samples) -> tuple[NDArray[np.int64], list[Forecast]]:
        """Return the labelled rows of *samples* that are forecast, and the forecasts."""
        segment, model = samples.segment, self.forecaster
        labelled = np.flatnonzero(samples.weights.any(axis=1))
        labelled = labelled[labelled >= model.context - 1]
        if not len(labelled):
            return labelled, []
        wanted = dict.fromkeys(labelled.tolist())
        model.warm(segment.candles.instrument, [])
        found = {row: one for row, one in self._scanned(segment, labelled) if row in wanted and one}
        return np.array(list(found), dtype=np.int64), list(found.values())

    def _scanned(
        self, segment: Segment, labelled: NDArray[np.int64]
    ) -> Iterator[tuple[int, Forecast | None]]:
        model = self.forecaster
        start, stop = int(labelled[0]) - model.context + 1, int(labelled[-1]) + 1
        for first in range(start, stop, model.scanned_at_once):
            bars = bars_of(segment, first, min(first + model.scanned_at_once, stop))
            said = model.scan(bars) if model.causal else [model.step(bar) for bar in bars]
            yield from enumerate(said, start=first)

    def judge(self, data: Dataset, *, bars: int | None = None) -> JudgedPart:
        """Return what it said of the test part, and its figures."""
        del bars  # its explanations are the base's
        found = self.answers(data, Part.TEST)
        told: dict[str, Any] = {
            str(one.horizon): figures_of(one, found.measures) for one in found.forecasts
        }
        told |= paired_figures(found.forecasts, found.measures, ())
        widths = _widths(self.card["parts"][BASE], [one.horizon for one in found.forecasts])
        pooled = pooled_differences(found.forecasts, self.forecaster.members, widths)
        told[COMMITTEE] = pooled
        chosen = next(one for one in found.forecasts if one.horizon == self.horizon)
        told["gates"] = {"selective": selective_of(chosen, found.measures)}
        sentences = [
            cards.NOTICE,
            *compared_sentences(told, self.horizon, OF_MODEL),
            *few_days(told[str(self.horizon)]["days"]),
            pooled_sentence(pooled),
        ]
        if "confidence" not in found.measures:
            sentences.append(WITHOUT_ATTENTION)
        return JudgedPart(found.forecasts, found.measures, told, sentences)


def _variances(
    samples: Samples, rows: NDArray[np.int64], said: Sequence[Forecast]
) -> NDArray[np.float64]:
    """Return [member + 1, row, horizon]: each member's variance ÷ σ² h, and the last winner's."""
    unit = samples.segment.sigma[rows][:, None] * np.sqrt(samples.horizons)
    members_said = [member_forecasts(one) for one in said]
    members = np.stack([one.volatility for one in members_said], axis=1) / unit
    regret = np.stack([one.regret for one in members_said], axis=1)
    # The mix lost most more than the member that did best of late.
    winner = np.take_along_axis(members, regret.argmax(axis=0)[None], axis=0)
    found: NDArray[np.float64] = np.concatenate([members, winner]) ** 2
    return found


def pooled_differences(
    every: Sequence[HorizonForecasts], members: Sequence[str], widths: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Compare the mix with each member, their mean and the last winner, over all horizons together.

    Of each the mean QLIKE of the mix less its own, with the error by day and
    p by Holm, and the worst change in per cent of a horizon and of a cell: a symbol at a horizon.
    ``best_in_hindsight`` is the member that was best on these very bars. ``pinball`` is the loss of
    the mix's 5 and 95 % quantiles of the return, in units of σ√h, less that of a normal law with
    the volatility of the base, or of equal weights, and the fixed *widths* of their 90 % intervals
    by horizon.
    """
    names = [MEMBERS[name] for name in members]
    losses = [
        {name: figures.qlike_of(of, one.variance) for name, of in one.variances.items()
         if name in {"network", EQUAL, WINNER, *names}}
        for one in every
    ]  # fmt: skip
    cells = [
        {name: of[symbols == symbol] for name, of in one.items()}
        for forecasts, one in zip(every, losses, strict=True)
        for symbols in [forecasts.keys & SYMBOL_MASK]
        for symbol in np.unique(symbols)
    ]
    days = np.concatenate([one.days for one in every])
    joined_losses = {name: np.concatenate([one[name] for one in losses]) for name in losses[0]}
    best = min(names, key=lambda name: float(joined_losses[name].mean()))
    differences = {
        name: figures.difference(joined_losses["network"], of, days)
        for name, of in joined_losses.items()
        if name != "network"
    }
    found: dict[str, dict[str, Any]] = {
        name: {
            "difference": less.rounded(),
            "worst_percent": _worst(losses, name),
            "worst_cell_percent": _worst(cells, name),
        }
        for name, less in figures.corrected(differences).items()
    }
    pinball = np.concatenate([_pinball(one, one.scale) for one in every])
    factors = [widths[str(one.horizon)] / NORMAL_WIDTH for one in every]
    fixed: dict[str, figures.DayDifference] = {}
    for name in (MEMBERS[BASE], EQUAL):
        scales = [
            factor * np.sqrt(one.variances[name])
            for factor, one in zip(factors, every, strict=True)
        ]
        beside = np.concatenate(list(map(_pinball, every, scales)))
        fixed[name] = figures.difference(pinball, beside, days)
    return {
        **found,
        "best_in_hindsight": {"member": best},
        "coverage_by_fifth": {str(one.horizon): _coverage_by_fifth(one) for one in every},
        "pinball": {name: less.rounded() for name, less in figures.corrected(fixed).items()},
    }


def _worst(groups: Sequence[Mapping[str, Array]], name: str) -> float:
    """Return the largest change in per cent from *name* to the mix over *groups* of losses."""
    changes = [one["network"].mean() / one[name].mean() - 1.0 for one in groups]
    return round(100 * float(max(changes)), 2)


def _pinball(one: HorizonForecasts, scale: Array) -> Array:
    """Return the mean loss by row of the quantiles at which the 90 % interval ends."""
    half = stdtrit(one.dof, 0.5 + figures.COVERAGE / 2) * scale
    below, above = (1 - figures.COVERAGE) / 2, (1 + figures.COVERAGE) / 2
    return (
        figures.pinball_of(one.value, one.mean - half, below)
        + figures.pinball_of(one.value, one.mean + half, above)
    ) / 2


def _coverage_by_fifth(one: HorizonForecasts) -> list[float]:
    """Return the share of returns inside the 90 % interval, by fifths of the forecast variance."""
    hit = figures.inside(one.mean, one.scale, one.dof, one.value, figures.COVERAGE)
    order = np.argsort(one.variances["network"] * one.unit**2, kind="stable")
    return [round(float(hit[part].mean()), 4) for part in np.array_split(order, FIFTHS)]


def pooled_sentence(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say whether the mix beats its best member and equal weights, by how much, and where least."""
    best = str(found["best_in_hindsight"]["member"])
    said = []
    for name, words in ((best, f"its best member in hindsight ({best})"), (EQUAL, "equal weights")):
        value, error, p = found[name]["difference"]
        verdict = "credibly better" if p < 0.05 and value < 0 else "not credibly better"
        worst = found[name]["worst_cell_percent"]
        less = f"{value:+.5f} {plus_minus(error, '.5f')}"
        said.append(f"{less} from {words}: {verdict}, at worst {worst:+.2f} %")
    value, error, _ = found["pinball"][MEMBERS[BASE]]
    return (
        f"Over all horizons together the committee changed QLIKE by {'; '.join(said)} (errors by "
        "day; the worst of a symbol at a horizon), and the pinball loss "
        f"of its 5 and 95 % quantiles by {value:+.5f} {plus_minus(error, '.5f')} from the base's "
        "fixed widths."
    )


register(CommitteeEstimator())
