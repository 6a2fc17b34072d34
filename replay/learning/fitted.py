"""What was fitted, whatever its kind; how a fit goes, and what it is given.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.array_cache import ArrayCache
from tracepaper.replay.learning.baselines import save_judged, stored_baselines
from tracepaper.replay.learning.dataset import Dataset, intervals_of
from tracepaper.replay.learning.fit import Fit, Observe
from tracepaper.replay.learning.judge.metrics import TAILS, tail_factors
from tracepaper.replay.learning.recipe import Kind, Recipe, kind_of, recipe_of
from tracepaper.replay.learning.side_inputs import OtherInputs, SideInputs, inputs_of
from tracepaper.replay.learning.splits import IN_MEMORY, Part, split_by, split_of
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.other_symbol import OTHER

if TYPE_CHECKING:
    from tracepaper.replay.learning.inspection.model import Mix
    from tracepaper.replay.learning.judge.forecasts import Forecasts
    from tracepaper.replay.learning.judge.gates import Judgement
    from tracepaper.strategies.forecasters.tabular import TrainedRows
    from tracepaper.strategies.networks.architecture import Network


Say = Callable[[str], None]
U = TypeVar("U")
R = TypeVar("R")


class Each(Protocol):
    """Calls a function for each unit, here or elsewhere; values come in the order of the units.

    *keep* is given the place and the value of each as it is there. Elsewhere the function is
    pickled, and what it says is said at its end.
    """

    def __call__(
        self,
        function: Callable[[U, Say], R],
        units: Sequence[U],
        say: Say,
        keep: Callable[[int, R], None] = ...,
        /,
    ) -> list[R]:
        """Return the value of each unit."""
        ...


def one_by_one(
    function: Callable[[U, Say], R],
    units: Sequence[U],
    say: Say,
    keep: Callable[[int, R], None] = lambda _place, _value: None,
    /,
) -> list[R]:
    """Call *function* here, unit after unit."""
    results = []
    for place, unit in enumerate(units):
        results.append(function(unit, say))
        keep(place, results[-1])
    return results


class FitRun(NamedTuple):
    """How one fit goes; *folder* holds the state of an unfinished one."""

    folder: Path
    name: str = ""
    created_ms: int = 0
    observe: Observe = lambda _: None
    say: Say = lambda _: None
    resume: bool = False

    def complete(self, fit: Fit) -> None:
        """Run *fit* to its end, from its kept state where this resumes; say why it stopped early.

        Raises ``CheckpointMismatch`` for a state of another fit.
        """
        if self.resume and fit.resume():
            self.say(f"Taking up the fit at step {fit.progress.step}.")
        fit.run(self.observe)
        if fit.progress.stopped:
            self.say(fit.progress.stopped)


class DataRequest(NamedTuple):
    """The files that a model is fitted to, and how they are read."""

    paths: Sequence[str]
    arrays: ArrayCache = IN_MEMORY
    inputs: SideInputs | None = None
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class FittedModel(ABC):
    """What was fitted; each step returns it with more of its card: calibrated, then evaluated.

    *data* are what its kind reads: a ``Dataset``, or a ``BookDataset``.
    """

    card: Mapping[str, Any]  # complete once it is evaluated
    tensors: Mapping[str, Tensor]
    stopped: str = ""  # why the fit ended before its time; else empty

    def with_card(self, **sections: Any) -> Self:  # noqa: ANN401 - sections of a card
        """Return it with these *sections* on its card."""
        return type(self)({**self.card, **sections}, self.tensors, self.stopped)

    @abstractmethod
    def calibrated(self, data: Any, *, bars: int | None = None) -> Self:  # noqa: ANN401
        """Return it with what the calibration slice says; *bars* of it are explained."""

    @abstractmethod
    def evaluated(self, data: Any, *, bars: int | None = None) -> Self:  # noqa: ANN401
        """Return it with its figures on untouched time and the sentences that follow."""

    @abstractmethod
    def save(self, folder: Path, data: Any) -> Checkpoint:  # noqa: ANN401
        """Write the checkpoint into *folder*; return it."""

    def for_fold(self, data: Any) -> Self:  # noqa: ANN401
        """Return it with what its answers need beside its weights: by default nothing."""
        del data
        return self

    @abstractmethod
    def answers(self, data: Any, part: Part) -> Forecasts:  # noqa: ANN401
        """Return its forecasts of *part*, beside every baseline."""

    def held(self, data: Any) -> Forecasts | None:  # noqa: ANN401
        """Return what weights made of the test part: its own and every rule's; None without any."""
        del data
        return None

    @abstractmethod
    def judge(self, data: Any, *, bars: int | None = None) -> Judgement:  # noqa: ANN401
        """Return its forecasts of the test part and figures; *bars* are explained for gates."""

    def tails(self, data: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return ``[calibration.tails]``; empty of a model that forecasts no distribution."""
        del data
        return {}


class CandleModel(FittedModel):
    """What fitted models of candles share: evaluation by ``judge``, and the stored baselines."""

    @property
    def horizon(self) -> int:
        """The horizon that the gates judge."""
        return int(self.card["calibration"]["horizon"])

    @cached_property
    def network(self) -> Network | None:
        """The network of bars that can be examined; None where there is none."""
        return None

    @cached_property
    def rows(self) -> TrainedRows | None:
        """The model of one row of features that can be examined; None where there is none."""
        return None

    @property
    def mix(self) -> Mix | None:
        """How both make one forecast; None where only one is there."""
        return None

    @abstractmethod
    def scaled(self, data: Dataset) -> Self:
        """Return it with the scales of its forecasts, fitted on the calibration slice."""

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Forecast *part* by the scales of the calibration slice: by default as ``answers``."""
        return self.answers(data, part)

    def tails(self, data: Dataset) -> dict[str, Any]:
        """Return ``[calibration.tails]``: the card's, or that of the slice where it is at hand."""
        if TAILS in self.card["calibration"]:
            return dict(self.card["calibration"][TAILS])
        if not data.has(Part.CALIBRATION):
            return {}
        return tail_factors(self.calibrated_forecasts(data, Part.CALIBRATION))

    def evaluated(self, data: Dataset, *, bars: int | None = None) -> Self:
        """Return it with the figures of the test part and the sentences that follow from them.

        Of too few order books there is neither, and the card says why.
        """
        if untrained := data.untrained():
            return self.with_card(
                model={**self.card["model"], "trained": False},
                honesty={"sentences": [*untrained, *([self.stopped] if self.stopped else [])]},
                figures={},
            )
        judgement = self.judge(data, bars=bars)
        return self.with_card(
            calibration=judgement.calibration or self.card["calibration"],
            honesty={
                "sentences": [*judgement.sentences, *([self.stopped] if self.stopped else [])]
            },
            figures=judgement.figures,
        )

    def save(self, folder: Path, data: Dataset) -> Checkpoint:
        """Write the checkpoint, with the baselines that its figures stand beside."""
        return save_judged(folder, self.tensors, self.card, data.fitted)


def candle_kind(card: Mapping[str, Any]) -> Kind:
    """Return the kind of a card; raise ``ConfigInvalid`` unless it is of models of candles."""
    kind = kind_of(card)
    if kind.model.source == DataSource.ORDER_BOOKS:
        raise ConfigInvalid(
            f"A model of the kind {kind.name} reads {kind.model.source}, not candles; name another."
        )
    return kind


def candle_model(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CandleModel:
    """Return the model of candles that a checkpoint holds."""
    model = candle_kind(card).load(card, tensors)
    assert isinstance(model, CandleModel)
    return model


def candle_card(
    data: Dataset,
    recipe: Recipe,
    run: FitRun,
    *,
    architecture: Mapping[str, Any],
    training: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the card of a model of candles that is not calibrated yet."""
    return {
        "model": cards.model_section(recipe.kind.name, run.name, run.created_ms),
        "architecture": architecture,
        "features": cards.features_section(data.schema, data.vectors) | data.read_as,
        "market": cards.market_section(
            cards.interval_name(data.interval_ms), data.sources, data.times
        ),
        "training": training,
        "calibration": {**calibration, "horizon": recipe.horizon},
        "split": cards.split_section(data.split),
        "data": cards.data_section(data.sources),
        "versions": cards.versions_section(),
    }


def fit_facts(
    data: Dataset, schema_id: str, kind: str, architecture: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the network, the candles and the split of a fit, which tell it from others.

    A kept state of a fit is taken up by one with the same facts alone.
    """
    return {
        "network": {"kind": kind, **architecture},
        "candles": [source.sha256 for source in data.sources],
        "split": cards.parts_section(data.split),
        "features": schema_id,
        **({} if data.vectors is None else {"vectors": data.vectors.sha256}),
    }


def read_candles(recipe: Recipe, request: DataRequest, **given: Any) -> Dataset:  # noqa: ANN401
    """Return the candles that *recipe* is fitted to, split as it says.

    *given* are arguments of ``Dataset.read`` in place of its own.
    """
    symbol = getattr(recipe.architecture, OTHER, "")
    chosen: dict[str, Any] = {
        "split": split_by(recipe.split, recipe.horizons),
        "schema_id": recipe.schema_id,
        "vectors": OtherInputs(symbol) if symbol else request.inputs,
        "requested": recipe.baselines,
    }
    return Dataset.read(
        request.paths,
        horizons=recipe.horizons,
        intervals=intervals_of(recipe.intervals),
        calendar=recipe.calendar,
        columns=request.columns,
        arrays=request.arrays,
        **{**chosen, **given},
    )


def read_candles_of(
    card: Mapping[str, Any],
    request: DataRequest,
    *,
    folder: Path | None = None,
    requested: tuple[str, ...] = (),
) -> Dataset:
    """Return candles as *card* reads them, split as it says.

    The baselines are those stored in *folder*; without one, such as need no fitting. Covariates
    or order books are joined where the card's model was trained with some.
    """
    return read_candles(
        recipe_of(card),
        request,
        split=lambda _: split_of(card),
        schema_id=card["features"]["schema_id"],
        stored=None if folder is None else stored_baselines(folder, card),
        vectors=inputs_of(card, request.inputs),
        requested=requested,
    )
