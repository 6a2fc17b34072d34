"""``Model``: a user's own forecaster; ``ModelKind``: a kind of checkpoint, and the registry of all.

A class says what it needs and gives, and answers one bar, or the rows of many. Where it runs, what
it is warmed with and what its answers are held to is ``daemon/session/user_model.py``.

The rules are docs/own_models.md, N1 to N7.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tracepaper.strategies.api.context import BarArrays
from tracepaper.strategies.api.files import DeclaredFiles
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Explanation, Forecast

Floats = NDArray[np.float64]
Answer = Forecast | Mapping[str, Any] | None
"""What a model says of a bar: a mapping of names to a number, or to one a horizon."""

OF_MEASURE: Final[Mapping[str, tuple[str, ...]]] = {
    "mean_return": ("mean_return",),
    "stdev_return": ("stdev_return",),
    "probabilities": ("p_up",),  # p_down and p_flat follow where they are not given
    "volatility": ("volatility",),
    "confidence": ("confidence",),
    "content_free": ("content_free",),
    "recent_mass": ("recent_mass",),
    "shift": ("shift",),
}
"""The names in an answer that a declared measure asks for."""
EXPLAINED: Final = ("confidence", "content_free", "recent_mass", "shift")
"""Measures that are one number a bar, whatever the horizons."""
_ANSWERED: Final = frozenset(
    {*(n for names in OF_MEASURE.values() for n in names), "p_down", "p_flat"}
)


class ModelInput(Struct, frozen=True):
    """The input of a model: one instrument, up to the bar that closed."""

    instrument: str
    time: int  # UTC ms of the newest bar's close
    interval_ms: int
    past: BarArrays  # the last ``context`` bars
    features: NDArray[
        np.float32
    ]  # [context, feature], the newest last; no columns without a schema


class Model:
    """Your own model: declare its inputs and measures, and forecast one bar.

    Its forecast must depend only on its arguments and its files. *options* are ``[model.options]``,
    *files* the paths of ``[model] files`` by the names written there.
    """

    features: ClassVar[str | FeatureFunction | None] = None
    """``"v2"`` or ``"tree"``, ``"module:function"``, such a function, or None for bars alone."""
    context: int = 1
    """Bars, and rows of features, that one answer is given."""
    horizons: tuple[int, ...] = (30,)
    """Bars ahead of which it speaks; ``gate.horizon`` must be one of them."""
    measures: Collection[str] = ("mean_return",)
    """What its answers hold: of mean_return, stdev_return, probabilities, volatility, confidence,
    content_free, recent_mass, shift. Gates of others are not declared."""
    calibration: Calibration | None = None
    """Quantiles of its measures and slopes of its means, where thresholds ``qX`` are wanted."""
    is_outside: bool = False
    """True where a service answers: its answers are taken from the record when a run is checked."""
    trained_until: str | None = None
    """ISO date before which it was fitted; ``tracepaper evaluate`` judges the bars after it."""
    deadline_s: float = 1.0
    """Seconds in which an answer must come, set from ``[model] deadline_ms``."""

    def __init__(self, options: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.options, self.files = options, files

    def predict(self, inputs: ModelInput) -> Answer:
        """Forecast what follows the newest bar of *inputs*; None for no forecast."""
        rows = self.predict_rows(inputs.features[-1:])
        return {name: np.asarray(values)[0] for name, values in rows.items()}

    def predict_rows(self, rows: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return the forecasts of many rows of features [bar, feature], with one entry per bar.

        A class with this instead of ``predict`` gets thousands of bars of a replay at once. The
        forecast of a row must not depend on the other rows.
        """
        raise NotImplementedError

    def contributions(self, inputs: ModelInput) -> Mapping[str, float] | None:  # noqa: ARG002 - to override
        """Return each feature's contribution to ``mean_return`` at ``gate.horizon``, by name.

        They are log returns, with the base value among them, and must sum to the forecast of
        *inputs*, or ``explain`` rejects them. None, the default, means unknown. They are computed
        when a decision is explained, and not stored.
        """
        return None


@dataclass(frozen=True)
class FeatureFunction:
    """A pure function of exactly ``lookback`` bars that returns one row of features."""

    function: Callable[[BarArrays], Sequence[float] | Floats]
    lookback: int
    files: DeclaredFiles
    """The paths of the files that it reads, by the names that were declared."""

    def __call__(self, past: BarArrays) -> Sequence[float] | Floats:
        """Return the row of the newest bar of *past*."""
        return self.function(past)


def feature_row(
    *, lookback: int, files: Sequence[str] = ()
) -> Callable[[Callable[[BarArrays], Sequence[float] | Floats]], FeatureFunction]:
    """Declare the decorated function as features; it gets exactly the last *lookback* bars.

    *files* names the files that it reads; ``function.files`` has their paths.
    """
    return lambda function: FeatureFunction(function, lookback, DeclaredFiles.of(function, files))


# ---------------------------------------------------------------- what becomes of an answer


class AnswerMalformed(ValueError):
    """An answer that is no forecast, in words that follow the model's name."""


def forecast_of(
    answer: object, *, horizons: tuple[int, ...], measures: Collection[str], model_id: str
) -> Forecast | None:
    """Turn a model's *answer* into a ``Forecast``; numbers that are not finite stay so.

    Raises ``AnswerMalformed`` for anything that its declarations do not announce.
    """
    if answer is None:
        return None
    if isinstance(answer, Forecast):
        answer = given_by(answer)
    if not isinstance(answer, Mapping):
        raise AnswerMalformed(f"answered {type(answer).__name__}; return a mapping or None")
    if strange := sorted(set(answer) - _ANSWERED, key=str):
        raise AnswerMalformed(
            f"answered {str(strange[0])!r:.40}; what it may give is {', '.join(sorted(_ANSWERED))}"
        )
    wanted = {name for measure in measures for name in OF_MEASURE[measure]}
    if missing := sorted(wanted - set(answer)):
        raise AnswerMalformed(f"declares the measure of {missing[0]!r} and answered without it")
    given = {name: _column(name, answer[name], horizons) for name in answer}
    if undeclared := sorted(set(given) - wanted - {"p_down", "p_flat"}):
        raise AnswerMalformed(f"answered {undeclared[0]!r}; declare its measure")
    if "probabilities" in measures:
        _complete(given)
    elif {"p_down", "p_flat"} & set(given):
        raise AnswerMalformed("answered p_down or p_flat; declare the measure probabilities")
    return Forecast(
        horizons,
        given.get("mean_return", ()),
        given.get("stdev_return", ()),
        given.get("p_down", ()),
        given.get("p_flat", ()),
        given.get("p_up", ()),
        given.get("volatility", ()),
        model_id,
        _explanation(given),
    )


def forecasts_of(
    answers: object,
    count: int,
    *,
    horizons: tuple[int, ...],
    measures: Collection[str],
    model_id: str,
) -> list[Forecast | None]:
    """Return the forecasts of *count* rows that were answered at once, in their order."""
    if not isinstance(answers, Mapping):
        raise AnswerMalformed(f"answered {type(answers).__name__}; return a mapping of arrays")
    columns = {name: np.asarray(values) for name, values in answers.items()}
    for name, column in columns.items():
        if column.ndim not in (1, 2) or len(column) != count:
            raise AnswerMalformed(
                f"answered {str(name)!r:.40} of shape {column.shape} for {count} rows; give one "
                "entry a row"
            )
    listed = {name: column.tolist() for name, column in columns.items()}
    return [
        forecast_of(
            {name: column[row] for name, column in listed.items()},
            horizons=horizons,
            measures=measures,
            model_id=model_id,
        )
        for row in range(count)
    ]


def given_by(forecast: Forecast) -> dict[str, Any]:
    """Return the values of *forecast* for ``OF_MEASURE``, and its other probabilities."""
    columns = ("mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility")
    answer = {name: value for name in columns if (value := getattr(forecast, name))}
    if (explanation := forecast.explanation) is not None:
        values = {name: getattr(explanation, name) for name in EXPLAINED}
        answer |= {name: value for name, value in values.items() if value is not None}
    return answer


def _column(name: str, value: object, horizons: tuple[int, ...]) -> tuple[float, ...]:
    """Return *value* as one number a horizon; a single number is the only horizon's."""
    wanted = 1 if name in EXPLAINED else len(horizons)
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise AnswerMalformed(
            f"answered {str(value)!r:.40} as {name}; give a number a horizon"
        ) from None
    if numbers.ndim > 1 or numbers.size != wanted:
        raise AnswerMalformed(
            f"answered {name} of shape {numbers.shape} for {wanted} horizons; give one number each"
        )
    return tuple(numbers.reshape(-1).tolist())


def _complete(given: dict[str, tuple[float, ...]]) -> None:
    """Fill in p_down and p_flat: the rest of 1 is p_down, or p_flat where p_down is given."""
    up = given["p_up"]
    down, flat = given.get("p_down"), given.get("p_flat")
    if down is None:
        flat = flat or (0.0,) * len(up)
        given["p_down"] = tuple(1.0 - a - b for a, b in zip(up, flat, strict=True))
    elif flat is None:
        # A rest below 0 by rounding is 0; a larger one stays negative, and is refused as such.
        flat = tuple(
            max(1.0 - a - b, 0.0) if a + b <= _WHOLE else -1.0
            for a, b in zip(up, down, strict=True)
        )
    given["p_flat"] = flat or ()


_WHOLE: Final = 1 + 1e-9


def _explanation(given: Mapping[str, tuple[float, ...]]) -> Explanation | None:
    if not any(name in given for name in EXPLAINED):
        return None
    confidence, content_free, recent, shift = (
        given[name][0] if name in given else None for name in EXPLAINED
    )
    return Explanation(confidence, content_free, recent, None, shift, None, b"", b"")


# ---------------------------------------------------------------- kinds of checkpoints


class DataSource(StrEnum):
    """What a kind of model learns from and is asked about."""

    BARS = "bars"  # of each symbol by itself
    CLOSES = "closes"  # of all symbols at once
    ORDER_BOOKS = "order books"  # files of ``tracepaper data record``


def no_network(*_: object) -> Any:  # noqa: ANN401 - it returns nothing
    """Raise ``InvariantBroken``: the kind is no network of one symbol's bars."""
    raise InvariantBroken("This kind of model has no network to make; ask its forecaster.")


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A kind of checkpoint, by the name that a card gives as ``[model] kind``."""

    name: str
    summary: str
    """What it is, for ``tracepaper train``: a few words."""
    source: DataSource = DataSource.BARS
    build: Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any] | None = None
    """A card, its tensors and the ``RunOptions`` of ``strategies.forecasters.build`` → the
    ``Forecaster``. None where its network is run as it is, or where a strategy asks it."""
    read: Callable[[dict[str, Any]], Any] = no_network
    """A card's ``[architecture]`` → its configuration; raises ``ConfigInvalid``."""
    make: Callable[[Any], Any] = no_network
    """A configuration → the ``Network``, untrained."""
    backend: Callable[[Any], str | None] = lambda _: None
    """What attends, by name, where it is the network's own; None where a kernel does."""
    by_names: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]] = lambda *_: {}
    """Its ``[architecture]`` and the names of features → what of it follows from these."""
    follows: tuple[str, ...] = ()
    """The keys of that which no recipe chooses; of a card handed in as one they are left aside."""
    rows: Callable[[Mapping[str, NDArray[Any]], int, int], Any] | None = None
    """Arrays, features and horizons → the ``RowModel`` that answers one row; None for others."""
    members: tuple[str, ...] = ()
    """The ``[parts]`` of its card, each a checkpoint; the network is the first."""
    takes_covariates: bool = False
    """Whether it can learn from columns that a user supplies."""
    heads: frozenset[str] = frozenset()
    """What its network says beyond the heads of every network."""
    refusal: str = ""
    """Why it is not asked of one symbol's bars, in a sentence; empty where it serves them."""
    is_experimental: bool = True
    """Whether lists call it so until a bundled checkpoint of it has beaten persistence."""

    @property
    def has_network(self) -> bool:
        """Whether a checkpoint is one ``Network``, which can be restored by itself."""
        return self.make is not no_network


class ImportedClass(NamedTuple):
    """A class of a user's own that a network is made of, as it was found."""

    made_of: type
    sha256: str
    """Of its source files (docs/identity.md, I15)."""
    guard: Callable[[], AbstractContextManager[None]]
    """While its code runs: turns what it raises into ``StrategyFailed``, with file and line."""


def find_class(name: str) -> ImportedClass:
    """Return the class ``module:Class`` that a network is made of; raise where there is none.

    A user's code is imported above this package, by what is imported here when a class is named.
    """
    custom: ImportedClass = import_module(_IMPORTER).network_class(name)
    return custom


_IMPORTER: Final = "tracepaper.daemon.session.user_class"


AnyKind = TypeVar("AnyKind")


class Registry(dict[str, AnyKind]):
    """What the modules of some packages say of kinds of models, by the kind's name."""

    def add(self, name: str, of_kind: AnyKind) -> AnyKind:
        """Make it known; raise ``ConfigInvalid`` for a name that is taken."""
        if name in self:
            raise ConfigInvalid(f"There is a kind of model called {name} already.")
        self[name] = of_kind
        return of_kind

    def of(self, *packages: ModuleType) -> Mapping[str, AnyKind]:
        """Return all, once each module of *packages* was imported."""
        for package in packages:
            for module in iter_modules(package.__path__):
                import_module(f"{package.__name__}.{module.name}")
        return self


KINDS: Final[Registry[ModelKind]] = Registry()
"""The kinds registered so far; ``strategies.forecasters.build.model_kinds`` returns all."""


def register(kind: ModelKind) -> ModelKind:
    """Make *kind* known; raise ``ConfigInvalid`` for a name that is taken."""
    return KINDS.add(kind.name, kind)
