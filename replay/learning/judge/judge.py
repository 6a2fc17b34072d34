"""Models judged on holdouts, alone and compared with others on the same bars.

Feature schemas differ in the unit of return; a comparison converts to the judged model's.

The rules are docs/models.md, L54, and docs/own_models.md, N11.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np

from tracepaper.daemon.config.loading import Given, load
from tracepaper.daemon.config.values import MODULE_CLASS
from tracepaper.daemon.session.user_model import UserForecaster, load_model
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.card import NO_ATTENTION
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import use_threads
from tracepaper.replay.learning.fitted import FittedModel
from tracepaper.replay.learning.holdouts import HoldoutUse, count_use, uses_path
from tracepaper.replay.learning.inspection.inspections import examined
from tracepaper.replay.learning.inspection.model import Subject
from tracepaper.replay.learning.judge.forecasts import Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.recipe import kind_of, recipe_of
from tracepaper.replay.learning.recipe_data import DataRequest, read_dataset
from tracepaper.replay.learning.side_inputs import SideFiles, SideInputs, source_for
from tracepaper.replay.learning.splits import WHOLE, Holdout, Part, Segment, Split, date_ms
from tracepaper.replay.report.honesty import compared_sentences, few_days
from tracepaper.storage.checkpoints import Checkpoint, is_checkpoint, locate, read_card
from tracepaper.storage.checkpoints import load as load_checkpoint
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.book_features import reading_of
from tracepaper.strategies.covariates import takes_vectors
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rows import interval_of
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.units import interval_text, iso

SHARE_UNJUDGED: Final = 0.8
"""Share of bars assumed as training where a class has no ``trained_until``; the rest is judged."""
SCANNED_BARS: Final = 4_096
"""Bars scanned at a time, which bounds the forecasts in memory."""
_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility", "probabilities"})
"""The measures that a class may give."""


def split_at(segments: Sequence[Segment], forecaster: UserForecaster) -> Split:
    """Return a split whose test begins where the training of *forecaster* ended.

    The embargo is the longest horizon, so that no earlier label reaches into the test.
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
    """A user's class, judged like a fitted model; its card has only the horizons."""

    user_model: Any = None  # the ``UserForecaster``

    @classmethod
    def of(cls, forecaster: UserForecaster, horizon: int) -> Self:
        """Return the model, judged at *horizon* if the class forecasts it, else its first."""
        horizons = forecaster.horizons
        chosen = horizon if horizon in horizons else horizons[0]
        card = {"architecture": {"horizons": horizons}, "calibration": {"horizon": chosen}}
        return cls(card, {}, user_model=forecaster)

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the forecasts of the class for the test part, with every baseline.

        Raises ``ConfigInvalid`` where no bar of that part has a forecast.
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
        """Return sentences about the training's end, the baselines and missing measures."""
        model, chosen, rows = self.user_model.model, results[str(self.horizon)], judgement.forecasts
        if model.trained_until is None:
            when = (
                "The class does not say until when it was trained (trained_until): the bars from "
                f"{iso(int(rows.open_ms.min()))} on were judged; if it was trained on them, its "
                "figures are too good."
            )
        else:
            until = iso(date_ms(model.trained_until))
            when = f"Judged on the bars after {until}, the trained_until of the class."
        lines = [when, *compared_sentences(results, self.horizon, self.called)]
        if missing := sorted(_MEASURES - frozenset(self.user_model.measures)):
            lines.append(f"It gives no {', '.join(missing)}: their figures are left out.")
        return [*lines, NO_ATTENTION, *few_days(chosen["days"])]


def answers_of(
    forecaster: Forecaster, material: Dataset, measures: Collection[str]
) -> list[SegmentFields]:
    """Return the *measures* of *forecaster* at the labelled bars of the test part.

    They are in units of σ √h. Bars without a forecast, with a value that is not finite, or with a
    volatility of 0 are left out. Bars are scanned in stretches to bound the forecasts in memory.
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
            bars = segment.candles[start:stop].bars()
            forecasts = forecaster.scan(bars) if forecaster.causal else map(forecaster.step, bars)
            answers = dict(enumerate(forecasts, start))
            rows = labelled[(labelled >= start) & (labelled < stop)]
            rows = rows[[answers[row] is not None for row in rows.tolist()]]
            if len(rows):
                judged: Any = [answers[row] for row in rows.tolist()]
                parts.append(SegmentFields.of_run(samples, rows, judged, measures).finite())
    return [fields for fields in parts if len(fields.rows)]


# --- a model of any kind on one holdout


def counted(
    every: Sequence[Judgement], folder: Path | None, recipe: str, model_id: str
) -> list[Judgement]:
    """Record a use of each holdout, and return the judgements with the number of its uses.

    *folder* holds the checkpoint; it is None for a custom class.
    """
    judgements = []
    for each in every:
        use = HoldoutUse(recipe, model_id, each.symbols, each.from_ms, each.until_ms)
        count, sentence = count_use(uses_path(folder), use)
        missing = (*each.missing, *([sentence] if sentence else []))
        judgements.append(replace(each, uses=count, missing=missing))
    return judgements


def judge_model(
    model: FittedModel, data: Dataset, holdout: Holdout = WHOLE, *, bars: int | None = None
) -> Judgement:
    """Return the judgement of *model* on *holdout*, a span of its untouched time.

    *bars* bars are explained for the gates; the default takes a few minutes.
    """
    data, missing = data.spanned(holdout).with_known_baselines()
    return replace(
        model.judge(data, bars=bars),
        holdout=holdout,
        symbols=data.symbols(Part.TEST),
        card=model.card,
        missing=(*data.notes, *missing),
    )


# --- other models


def rival_forecasts(model: FittedModel, data: Dataset, judgement: Judgement) -> Forecasts:
    """Return the forecasts of *model* at the rows of *judgement*; both have the same interval.

    Raises ``ConfigInvalid`` where the model was trained on that time, or answers no such row.
    """
    rows, horizons = judgement.forecasts, model.card["architecture"]["horizons"]
    if not set(horizons) & set(rows.horizons):
        theirs, judged = (", ".join(map(str, each)) for each in (horizons, rows.horizons))
        raise ConfigInvalid(
            f"it forecasts {theirs} {rows.unit} ahead, and the judged model {judged}; name models "
            "with a common horizon"
        )
    # Only the judged rows, and no baseline that needs a fit.
    common = data.spanned(judgement.holdout).compared(np.unique(rows.keys))
    rival = model.answers(common, Part.TEST)
    if not (rows.places(rival) >= 0).any():
        raise ConfigInvalid(
            f"it forecasts none of the {rows.unit} that the judged model forecasts; name a model "
            "of the same symbols"
        )
    return rival


# --- models by name


def source_of(name: str) -> DataSource:
    """Return the data source of the checkpoint *name*; a custom class reads bars."""
    folder = locate(name)
    return kind_of(read_card(folder)).model.source if is_checkpoint(folder) else DataSource.BARS


def untrained(name: str) -> Sequence[str]:
    """Return sentences that say why the checkpoint *name* is untrained; empty if it is trained."""
    folder = locate(name)
    card = read_card(folder) if is_checkpoint(folder) else {"model": {}}
    return card["honesty"]["sentences"] if card["model"].get("trained") is False else ()


class NamedModel(NamedTuple):
    """A model and its data."""

    model: FittedModel
    data: Any  # the material of its kind
    model_id: str
    recipe: str  # its hash
    folder: Path | None  # None of a class


class ModelReader(NamedTuple):
    """The options for reading models and their data."""

    request: DataRequest
    files: SideFiles
    config: Given  # for classes
    threads: int

    def checkpoint(self, name: str, inputs: SideInputs | None) -> tuple[Path, Checkpoint]:
        """Return a checkpoint with its folder, after a check that it builds with *inputs*."""
        use_threads(self.threads)
        folder = locate(name)
        model = load_checkpoint(folder)
        kind = kind_of(model.card)
        if kind.model.source != DataSource.BARS:
            if inputs is not None:
                raise ConfigInvalid(f"{name} reads no additional files; leave them out.")
            _ = kind.load(model.card, model.tensors).network  # fails if the network cannot be built
            return folder, model
        source = source_for(model.card, inputs)
        build(model.card, model.tensors, RunOptions(threads=self.threads, vectors=source))
        return folder, model

    def read(
        self, name: str, *, interval_ms: int | None = None, is_rival: bool = False
    ) -> NamedModel:
        """Read a checkpoint or a class; a rival gets additional files only if it takes them."""
        if MODULE_CLASS.match(name) is not None:
            return self._class(name, interval_ms)
        if is_rival and (sentences := untrained(name)):
            raise ConfigInvalid(f"--compare {name}: {sentences[0]}")
        card = read_card(locate(name)) if is_rival else {}
        takes_files = not is_rival or takes_vectors(card) or reading_of(card) is not None
        inputs = self.files.read() if takes_files else None
        folder, checkpoint = self.checkpoint(name, inputs)
        card, recipe = checkpoint.card, recipe_of(checkpoint.card)
        data = read_dataset(recipe, self.request._replace(inputs=inputs), card, folder=folder)
        model = recipe.kind.load(card, checkpoint.tensors)
        return NamedModel(model, data, checkpoint.id, recipe.hash, folder)

    def _class(self, name: str, interval_ms: int | None) -> NamedModel:
        """Return the user's class, judged at the horizon of the gates, with its candles."""
        given = load(self.config, {"model": {"class": name}})
        forecaster = load_model(given, mode="scan")
        data = Dataset.read(
            self.request.data,
            lambda segments: split_at(segments, forecaster),
            forecaster.horizons,
            columns=self.request.columns,
            intervals=() if interval_ms is None else (interval_ms,),
        )
        schema = forecaster.card["features"]["schema_id"]
        if interval_of(schema) not in (0, data.interval_ms):
            bars = interval_text(data.interval_ms)
            raise ConfigInvalid(
                f"{name} sees features {schema}, and the candles are bars of {bars}; write "
                f"--set market.interval={bars}."
            )
        model, model_id = ClassModel.of(forecaster, given.gate.horizon), forecaster.model_id
        return NamedModel(model, data, model_id, model_id, None)  # the id stands for its recipe


class ModelJudgement(NamedTuple):
    """A model's judgement on every holdout; ``compared`` holds name and id of other models."""

    model_id: str
    recipe: str  # its hash
    interval_ms: int
    every: list[Judgement]
    findings: Sequence[Table]
    compared: tuple[tuple[str, str], ...] = ()

    def compared_with(self, name: str, reader: ModelReader) -> ModelJudgement:
        """Return a copy with forecasts of the model *name*; this counts as its holdout use."""
        rival = reader.read(name, interval_ms=self.interval_ms, is_rival=True)
        if rival.model_id in (self.model_id, *(other for _, other in self.compared)):
            raise ConfigInvalid(
                f"--compare {name} is a model that is judged already; leave it out."
            )
        if rival.data.interval_ms != self.interval_ms:
            raise ConfigInvalid(
                f"--compare {name}: it forecasts bars of {interval_text(rival.data.interval_ms)}, "
                f"and the judged model bars of {interval_text(self.interval_ms)}; name models of "
                "one interval."
            )
        try:
            every = [
                judgement.compared_with(name, rival_forecasts(rival.model, rival.data, judgement))
                for judgement in self.every
            ]
        except (ConfigInvalid, DataInvalid) as error:
            raise ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.") from None
        every = [
            replace(judgement, uses=before.uses)  # the judged model's
            for judgement, before in zip(
                counted(every, rival.folder, rival.recipe, rival.model_id), self.every, strict=True
            )
        ]
        return self._replace(every=every, compared=(*self.compared, (name, rival.model_id)))


def judge_named(
    reader: ModelReader,
    name: str,
    holdouts: Iterable[Holdout],
    inspections: Mapping[str, int],
    bars: int | None,
    *,
    rivals: Sequence[str] = (),
) -> ModelJudgement:
    """Judge the model *name* on every holdout with *rivals*, and run its *inspections*."""
    for rival in rivals:
        reads_books = [source_of(each) == DataSource.ORDER_BOOKS for each in (name, rival)]
        if reads_books[0] is not reads_books[1]:
            raise ConfigInvalid(
                f"--compare {rival}: of it and {name} one forecasts the mid of an order book and "
                "one bars; name two models of order books, or two of bars."
            )
    model, data, model_id, recipe, folder = reader.read(name)
    # Inspections come first: they reject impossible requests before minutes of judging.
    findings = list(examined(Subject.of(model, data), inspections)) if inspections else []
    every = [judge_model(model, data, holdout, bars=bars) for holdout in holdouts]
    every = counted(every, folder, recipe, model_id)
    judged = ModelJudgement(model_id, recipe, data.interval_ms, every, findings)
    for rival in rivals:
        judged = judged.compared_with(rival, reader)
    return judged
