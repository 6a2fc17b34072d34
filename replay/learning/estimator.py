"""One base for every kind of model: ``Estimator`` is what can be fitted, ``Fitted`` what was.

A kind is one module of ``estimators`` that registers one ``Estimator``. Its recipe, training, card,
evaluation, folds, ablation and examination follow from that; no other module asks for a kind.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.array_cache import (
    ArrayCache,
)
from tracepaper.replay.learning.dataset import Dataset, intervals_of, reading
from tracepaper.replay.learning.fit import Fit, FitOptions, Observe
from tracepaper.replay.learning.judge.tails import TAILS, tail_factors
from tracepaper.replay.learning.recipe import (
    DEFAULT_KIND,
    SCHEMA,
    THREADS,
    Document,
    Recipe,
    chosen_of,
    features_of,
    middle,
    own_training,
    requested_baselines,
    typed,
    whole,
    with_bars,
)
from tracepaper.replay.learning.splits import IN_MEMORY, Part, Segment, Split, split_by, split_of
from tracepaper.replay.learning.stored_baselines import (
    save_judged,
    stored_baselines,
)
from tracepaper.replay.learning.supplied import SuppliedBooks, beside_recipe, supplied
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.storage.covariates import CovariateFile
from tracepaper.strategies.api.model import ModelKind, Registry
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import model_kinds
from tracepaper.strategies.forecasters.tabular import ENSEMBLE
from tracepaper.strategies.networks.keys import checked_section, listed
from tracepaper.strategies.other_symbol import OTHER

if TYPE_CHECKING:
    from tracepaper.replay.learning.inspection.model import Mix
    from tracepaper.replay.learning.judge.explained import Judgement
    from tracepaper.replay.learning.judge.forecasts import Forecasts
    from tracepaper.strategies.forecasters.tabular import TrainedRows
    from tracepaper.strategies.networks.architecture import Network


Say = Callable[[str], None]
AnyData = TypeVar("AnyData")
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
    made = []
    for place, unit in enumerate(units):
        made.append(function(unit, say))
        keep(place, made[-1])
    return made


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
    covariates: CovariateFile | SuppliedBooks | None = None
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Fitted(ABC, Generic[AnyData]):
    """What was fitted; each step returns it with more of its card: calibrated, then evaluated."""

    card: Mapping[str, Any]  # complete once it is evaluated
    tensors: Mapping[str, Tensor]
    stopped: str = ""  # why the fit ended before its time; else empty

    @abstractmethod
    def calibrated(self, data: AnyData, *, bars: int | None = None) -> Self:
        """Return it with what the calibration slice says; *bars* of it are explained."""

    @abstractmethod
    def evaluated(self, data: AnyData, *, bars: int | None = None) -> Self:
        """Return it with its figures on untouched time and the sentences that follow."""

    @abstractmethod
    def save(self, folder: Path, data: AnyData) -> Checkpoint:
        """Write the checkpoint into *folder*; return it."""


class Estimator(ABC):
    """A kind of model: what its recipe may choose, and how it is fitted and loaded."""

    kind: ModelKind
    walks_only = True
    """Whether it is fitted on few folds that walk, for each costs a training."""
    joins_rows = False
    """Whether an ensemble may join it with a model of rows."""
    is_section = False
    """Whether it is a section beside another kind, and no kind that a recipe names."""
    section: ClassVar[str] = "architecture"
    """The section of a recipe that holds ``Keys``."""
    chosen_training: ClassVar[Sequence[str]] = ()
    """Keys of ``[training]`` that are not those of ``Options``, in the order of a recipe."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Sections that no recipe chooses and its hash covers."""
    Keys: type[Any]
    """The dataclass of ``section``, which names the ``horizons`` where it chooses them."""
    Options: type[Any]
    """The dataclass of ``[training]``."""

    def __reduce__(self) -> tuple[Callable[[str], Estimator], tuple[str]]:
        """Pickle its name: each process has the estimators that are registered."""
        return _registered, (self.kind.name,)

    @abstractmethod
    def recipe(self, document: Document) -> Recipe:
        """Read a recipe or a card; raise ``ConfigInvalid`` for a key or a value it cannot have."""

    @abstractmethod
    def document(self, recipe: Recipe) -> dict[str, Any]:
        """Return *recipe* as the sections of a file, every key with its value."""

    def check(self, recipe: Recipe, option: str) -> None:
        """Raise ``ConfigInvalid`` for an optional package that is not installed; most need none."""
        del recipe, option

    @abstractmethod
    def read(self, recipe: Recipe, request: DataRequest) -> Any:  # noqa: ANN401 - by its source
        """Return the data that *recipe* is fitted to."""

    @abstractmethod
    def fit(self, data: Any, recipe: Recipe, run: FitRun) -> Fitted[Any]:  # noqa: ANN401
        """Fit *recipe* to *data*; return it, not yet calibrated."""

    @abstractmethod
    def load(self, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fitted[Any]:
        """Return what a checkpoint holds; raise ``CheckpointMismatch`` where it does not fit."""


_ESTIMATORS: Final[Registry[Estimator]] = Registry()


def register(estimator: Estimator) -> Estimator:
    """Make known how a kind is fitted; raise ``ConfigInvalid`` where that is known."""
    return _ESTIMATORS.add(estimator.kind.name, estimator)


def estimators() -> Mapping[str, Estimator]:
    """Return the estimators by the names of their kinds, in the order of ``model_kinds``."""
    from tracepaper.replay.learning import estimators as room

    known = _ESTIMATORS.of(room)
    return {name: known[name] for name in model_kinds() if name in known}


def _registered(name: str) -> Estimator:
    return estimators()[name]


def estimator_of(document: Document) -> Estimator:
    """Return the kind of a recipe or a card; raise ``ConfigInvalid`` for an unknown one."""
    known = estimators()
    model = document.get("model", {})
    name = model.get("kind", DEFAULT_KIND) if isinstance(model, Mapping) else DEFAULT_KIND
    if ENSEMBLE in document:
        name = ENSEMBLE
    if name not in known:
        every = "; ".join(f"{one.kind.name}, {one.kind.summary}" for one in known.values())
        raise ConfigInvalid(f"There is no network called {name!r}; choose one of: {every}.")
    return known[name]


def recipe_of(document: Document) -> Recipe:
    """Read a recipe or a card of any kind; raise ``ConfigInvalid`` for what it cannot have."""
    return estimator_of(document).recipe(document)


def as_recipe(document: Document) -> Document:
    """Return a document whose sections can be laid over: the card of an ensemble as its recipe."""
    return recipe_of(document).document() if "parts" in document else document


def load(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fitted[Any]:
    """Return what the checkpoint with this card and these tensors holds."""
    return estimator_of(card).load(card, tensors)


# --- models of candles


class CandleEstimator(Estimator):
    """What kinds of models of candles share: the recipe's sections, and how files are read."""

    Options: type[Any] = FitOptions
    holds_out_calibration = False
    """Whether a fold needs a part of its own to calibrate on."""
    chosen_training: ClassVar[Sequence[str]] = ("threads", "device", "baselines", "explained_bars")
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of ``[training]`` in place of those of ``Options``."""

    def architecture(self, chosen: Mapping[str, Mapping[str, Any]]) -> Any:  # noqa: ANN401
        """Return the ``Keys`` of the *chosen* sections."""
        return self.Keys(**checked_section(self.Keys, chosen["architecture"]))

    @abstractmethod
    def fit(self, data: Dataset, recipe: Recipe, run: FitRun) -> CandleModel:
        """Fit *recipe* to *data*; return it, not yet calibrated."""

    @abstractmethod
    def load(self, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CandleModel:
        """Return what a checkpoint holds; raise ``CheckpointMismatch`` where it does not fit."""

    def listed(self, keys: Any) -> dict[str, Any]:  # noqa: ANN401 - its Keys
        """Return ``[architecture]`` of a recipe."""
        return listed(keys)

    def gate_horizon(self, chosen: Mapping[str, Mapping[str, Any]], keys: Any) -> int:  # noqa: ANN401
        """Return the horizon that gates judge where none is chosen."""
        del chosen
        return middle(keys.horizons)

    def recipe(self, document: Document) -> Recipe:
        """Read a recipe or a card; raise ``ConfigInvalid`` for a key or a value it cannot have."""
        chosen = chosen_of(with_bars(document), self.Options)
        own = own_training(chosen["training"])
        keys = self.architecture(chosen)
        horizon = chosen["calibration"].get("horizon", self.gate_horizon(chosen, keys))
        kind: Any = self  # Pyright follows this module by two names
        return Recipe(
            kind,
            keys,
            typed(self.Options, {**self.defaults, **chosen["training"]}),
            whole("calibration.horizon", horizon),
            name=str(chosen["model"].get("name", "")),
            schema_id=str(chosen["features"].get("schema_id", SCHEMA)),
            intervals=tuple(chosen["features"].get("intervals", ())),
            calendar=chosen["features"].get("calendar"),
            explained_bars=own.get("explained_bars"),
            device=str(own.get("device", "cpu")),
            threads=whole("training.threads", own.get("threads", THREADS)),
            split=chosen["split"] or None,
            baselines=requested_baselines(own),
        )

    def document(self, recipe: Recipe) -> dict[str, Any]:
        """Return *recipe* as the sections of a file, every key with its value."""
        found: dict[str, Any] = {
            "model": {"kind": self.kind.name, "name": recipe.name},
            "architecture": self.listed(recipe.architecture),
            "features": features_of(recipe.schema_id, recipe.intervals, recipe.calendar),
            "training": {**asdict(recipe.options), **self.training_keys(recipe)},
            "calibration": {"horizon": recipe.horizon},
        }
        return found if recipe.split is None else {**found, "split": dict(recipe.split)}

    def training_keys(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of ``[training]`` that are not those of ``Options``, where chosen."""
        values = {
            "threads": recipe.threads,
            "device": recipe.device,
            "baselines": list(recipe.baselines) or None,
            "explained_bars": recipe.explained_bars,
        }
        return {key: values[key] for key in self.chosen_training if values[key] is not None}

    def read(self, recipe: Recipe, request: DataRequest) -> Dataset:
        """Return the candles that *recipe* is fitted to, split as it says."""
        split = split_by(recipe.split, recipe.horizons)
        return self._read(recipe, request, recipe.schema_id, split)

    def arrange(self, data: Dataset) -> Dataset:
        """Return *data* as the model is asked about them: by default bar by bar."""
        return data

    def _read(
        self,
        recipe: Recipe,
        request: DataRequest,
        schema_id: str,
        split: Callable[[Sequence[Segment]], Split],
    ) -> Dataset:
        return Dataset.read(
            request.paths,
            split,
            recipe.horizons,
            schema_id,
            intervals=intervals_of(recipe.intervals),
            calendar=recipe.calendar,
            columns=request.columns,
            arrays=request.arrays,
            vectors=beside_recipe(getattr(recipe.architecture, OTHER, ""), request.covariates),
            requested=recipe.baselines,
        )


class CandleModel(Fitted[Dataset]):
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

    def with_card(self, **sections: Any) -> Self:  # noqa: ANN401 - sections of a card
        """Return it with these *sections* on its card."""
        return type(self)({**self.card, **sections}, self.tensors, self.stopped)

    @abstractmethod
    def scaled(self, data: Dataset) -> Self:
        """Return it with the scales of its forecasts, fitted on the calibration slice."""

    def for_fold(self, data: Dataset) -> Self:
        """Return it with what its answers need of the calibration slice: by default nothing."""
        del data
        return self

    @abstractmethod
    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return its forecasts of *part*, beside every baseline."""

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Forecast *part* by the scales of the calibration slice: by default as ``answers``."""
        return self.answers(data, part)

    def held(self, data: Dataset) -> Forecasts | None:
        """Return what weights made of the test part: its own and every rule's; None without any."""
        del data
        return None

    @abstractmethod
    def judge(self, data: Dataset, *, bars: int | None = None) -> Judgement:
        """Return its forecasts of the test part and figures; *bars* are explained for gates."""

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
        found = self.judge(data, bars=bars)
        return self.with_card(
            calibration=found.calibration or self.card["calibration"],
            honesty={"sentences": [*found.sentences, *([self.stopped] if self.stopped else [])]},
            figures=found.figures,
        )

    def save(self, folder: Path, data: Dataset) -> Checkpoint:
        """Write the checkpoint, with the baselines that its figures stand beside."""
        return save_judged(folder, self.tensors, self.card, data.fitted)


def candle_estimator(card: Mapping[str, Any]) -> CandleEstimator:
    """Return the kind of a card; raise ``ConfigInvalid`` unless it is of models of candles."""
    found = estimator_of(card)
    if not isinstance(found, CandleEstimator):
        raise ConfigInvalid(
            f"A model of the kind {found.kind.name} reads {found.kind.source}, not candles; name "
            "another."
        )
    return found


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
        "model": cards.model_section(recipe.kind, run.name, run.created_ms),
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


def read_candles_of(
    card: Mapping[str, Any],
    request: DataRequest,
    *,
    folder: Path | None = None,
    requested: Sequence[str] = (),
) -> Dataset:
    """Return candles as *card* reads them, split as it says.

    The baselines are those stored in *folder*; without one, such as need no fitting. Covariates
    or order books are joined where the card's model was trained with some.
    """
    return Dataset.read(
        request.paths,
        lambda _: split_of(card),
        tuple(card["architecture"]["horizons"]),
        card["features"]["schema_id"],
        columns=request.columns,
        arrays=request.arrays,
        stored=None if folder is None else stored_baselines(folder, card),
        vectors=supplied(request.covariates, card),
        requested=tuple(requested),
        **reading(card["features"]),
    )
