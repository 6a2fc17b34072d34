"""``Model``, the base of custom forecasters, and ``ModelKind``, a registered kind of checkpoint.

A ``Model`` declares its inputs and measures, and forecasts one bar or many rows of features.
``daemon/session/user_model.py`` runs it, warms it and checks its answers.

The rules are docs/own_models.md, N1 to N7.
"""

from __future__ import annotations

import math
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
from msgspec.structs import replace
from numpy.typing import NDArray

from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.files import DeclaredFiles
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.time_buckets import (
    RECENT_SHARE,
    bucket_bars,
    buckets_of,
    cells_by_age,
    event_focus,
    row_entropy,
    units_of,
)
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Explanation, Forecast

Floats = NDArray[np.float64]
Answer = Forecast | Mapping[str, Any] | None
"""A model's answer for a bar: a mapping of names to a number, or to one number per horizon."""

OF_MEASURE: Final[Mapping[str, tuple[str, ...]]] = {
    "mean_return": ("mean_return",),
    "stdev_return": ("stdev_return",),
    "probabilities": ("p_up",),  # p_down and p_flat follow where they are not given
    "volatility": ("volatility",),
    "confidence_entropy": ("confidence_entropy",),
    "content_free": ("content_free",),
    "recent_mass": ("recent_mass",),
    "event_focus": ("event_focus",),
    "shift": ("shift",),
    "attended": ("attended",),
}
"""The names in an answer that each declared measure requires."""
OF_ATTENDED: Final = ("recent_mass", "event_focus")
"""Measures that follow from ``attended`` if an answer does not give them."""
ATTENDED_TOLERANCE: Final = 1e-6
EXPLAINED: Final = ("confidence_entropy", "content_free", "recent_mass", "event_focus", "shift")
"""Measures with one number per bar instead of one per horizon."""
_ANSWERED: Final = frozenset(
    {*(n for names in OF_MEASURE.values() for n in names), "p_down", "p_flat"}
)


class ModelInput(Struct, frozen=True):
    """The input of a model: one instrument, up to the closed bar."""

    instrument: str
    time: int  # UTC ms of the newest bar's close
    interval_ms: int
    past: BarArrays  # the last ``context`` bars
    features: NDArray[np.float32]  # [context, feature], newest last; no columns without features


class Model:
    """Your own model: declare its inputs and measures, and forecast one bar.

    Its forecast must depend only on its arguments and its files. *options* are ``[model.options]``,
    *files* the paths of ``[model] files`` by the names written there.
    """

    features: ClassVar[str | FeatureFunction | None] = None
    """``"v2"``, ``"tree"``, ``"macd"``, ``"module:function"``, a function, or None for bars."""
    context: int = 1
    """Bars, and rows of features, that one answer is given."""
    horizons: tuple[int, ...] = (30,)
    """Bars ahead of which it speaks; ``gate.horizon`` must be one of them."""
    measures: Collection[str] = ("mean_return",)
    """What its answers hold: of mean_return, stdev_return, probabilities, volatility,
    confidence_entropy, content_free, recent_mass, event_focus, shift. Others have no gates. With
    ``attended`` an answer holds the share of attention of each of the ``context`` bars, oldest
    first; it is stored, drawn and verified, and recent_mass and event_focus follow from it."""
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

    def attended(self, inputs: ModelInput) -> Sequence[float] | Floats | None:
        """Return the share of attention that each of the ``context`` bars got, oldest first.

        The shares are at least 0 and sum to 1, such as those of a rollout of
        ``attention.capture``. None means unknown. They are computed when a decision is explained.
        By default they are those of the answer, if it holds them.
        """
        answer = self.predict(inputs) if "attended" in self.measures else None
        return shares_of(answer["attended"]) if isinstance(answer, Mapping) else None


@dataclass(frozen=True)
class FeatureFunction:
    """A pure function of exactly ``lookback`` bars that returns one row of features."""

    function: Callable[[BarArrays], Sequence[float] | Floats]
    lookback: int
    files: DeclaredFiles
    """The paths of the files that it reads, by declared name."""

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


# ---------------------------------------------------------------- answers to forecasts


class AnswerMalformed(ValueError):
    """An invalid answer; the message continues a sentence that begins with the model's name."""


def forecast_of(
    answer: object,
    *,
    horizons: tuple[int, ...],
    measures: Collection[str],
    positions: NDArray[np.int64] | None = None,
) -> Forecast | None:
    """Return a model's *answer* as a ``Forecast``; non-finite numbers are kept.

    *positions* [context] are the absolute numbers of the bars that ``attended`` names.

    Raises ``AnswerMalformed`` for anything that the model does not declare.
    """
    if answer is None:
        return None
    if isinstance(answer, Forecast):
        answer = answer_of(answer)
    if not isinstance(answer, Mapping):
        raise AnswerMalformed(f"answered {type(answer).__name__}; return a mapping or None")
    if unknown := sorted(set(answer) - _ANSWERED, key=str):
        raise AnswerMalformed(
            f"answered {str(unknown[0])!r:.40}; answer only {', '.join(sorted(_ANSWERED))}"
        )
    looked: Explanation | None = None
    if "attended" in answer and positions is not None:
        looked = _looked(answer["attended"], positions)
        answer = {name: getattr(looked, name) for name in OF_ATTENDED} | dict(answer)
    wanted = {name for measure in measures for name in OF_MEASURE[measure]}
    if missing := sorted(wanted - set(answer)):
        raise AnswerMalformed(f"declares the measure of {missing[0]!r} but answered without it")
    given = {name: _column(name, answer[name], horizons) for name in answer if name != "attended"}
    if undeclared := sorted(set(answer) - wanted - {"p_down", "p_flat"}):
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
        _explanation(given, looked),
    )


def forecasts_of(
    answers: object,
    count: int,
    *,
    horizons: tuple[int, ...],
    measures: Collection[str],
) -> list[Forecast | None]:
    """Return the forecasts of *count* rows from the *answers* of ``predict_rows``."""
    if not isinstance(answers, Mapping):
        raise AnswerMalformed(f"answered {type(answers).__name__}; return a mapping of arrays")
    columns = {name: np.asarray(values) for name, values in answers.items()}
    for name, column in columns.items():
        if column.ndim not in (1, 2) or len(column) != count:
            raise AnswerMalformed(
                f"answered {str(name)!r:.40} of shape {column.shape} for {count} rows; give one "
                "entry per row"
            )
    listed = {name: column.tolist() for name, column in columns.items()}
    return [
        forecast_of(
            {name: column[row] for name, column in listed.items()},
            horizons=horizons,
            measures=measures,
        )
        for row in range(count)
    ]


def answer_of(forecast: Forecast) -> dict[str, Any]:
    """Return *forecast* as an answer: a mapping of names to values."""
    columns = ("mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility")
    answer = {name: value for name in columns if (value := getattr(forecast, name))}
    if (explanation := forecast.explanation) is not None:
        values = {name: getattr(explanation, name) for name in EXPLAINED}
        answer |= {name: value for name, value in values.items() if value is not None}
    return answer


def _column(name: str, value: object, horizons: tuple[int, ...]) -> tuple[float, ...]:
    """Return *value* as one number per horizon (or one, for the measures in ``EXPLAINED``)."""
    wanted = 1 if name in EXPLAINED else len(horizons)
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise AnswerMalformed(
            f"answered {str(value)!r:.40} as {name}; give one number per horizon"
        ) from None
    if numbers.ndim > 1 or numbers.size != wanted:
        raise AnswerMalformed(
            f"answered {name} of shape {numbers.shape} for {wanted} horizons; give one number each"
        )
    return tuple(numbers.reshape(-1).tolist())


def _complete(given: dict[str, tuple[float, ...]]) -> None:
    """Fill in missing p_down or p_flat, so that the probabilities sum to 1."""
    up = given["p_up"]
    down, flat = given.get("p_down"), given.get("p_flat")
    if down is None:
        flat = flat or (0.0,) * len(up)
        given["p_down"] = tuple(1.0 - a - b for a, b in zip(up, flat, strict=True))
    elif flat is None:
        # Rounding may make it slightly negative: then 0. Otherwise -1 fails the gate ``finite``.
        flat = tuple(
            max(1.0 - a - b, 0.0) if a + b <= _MAX_SUM else -1.0
            for a, b in zip(up, down, strict=True)
        )
    given["p_flat"] = flat or ()


_MAX_SUM: Final = 1 + 1e-9


def shares_of(attended: object) -> Floats:
    """Return *attended*, numbers or what ``captured.rollout()`` gives, as shares [bar]."""
    weights = getattr(attended, "weights", attended)
    if isinstance(weights, Mapping) and len(weights) == 1:
        (weights,) = weights.values()
    detach = getattr(weights, "detach", None)
    try:
        shares = np.asarray(weights if detach is None else detach().cpu(), dtype=np.float64)
    except (TypeError, ValueError):
        raise AnswerMalformed(
            f"answered {str(attended)!r:.40} as attended; give one share per bar"
        ) from None
    return shares.reshape(-1) if shares.size == max(shares.shape, default=0) else shares


def _looked(attended: object, positions: NDArray[np.int64]) -> Explanation:
    """Return where a model looked, by the shares of the bars at *positions*.

    Its confidence is 1 minus the entropy of the shares as a share of the most.
    """
    shares, context = shares_of(attended), len(positions)
    if shares.shape != (context,):
        raise AnswerMalformed(
            f"answered attended of shape {shares.shape} for {context} bars; give one share each, "
            "oldest first"
        )
    total = float(shares.sum())
    if not (shares >= 0).all() or not abs(total - 1.0) <= ATTENDED_TOLERANCE:
        least = float(shares.min())
        raise AnswerMalformed(
            f"answered attended with a sum of {total:.6g} and a least share of {least:.3g}; give "
            "shares from 0 on that sum to 1"
        )
    shares = shares / total
    row = buckets_of(shares, positions)[None]
    by_age = cells_by_age(row, positions[-1:], bucket_bars(context))
    nats = -float((shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum())
    return Explanation(
        1.0 - nats / math.log(context) if context > 1 else 1.0,
        float(row_entropy(by_age)[0]),
        None,
        float(shares[-max(round(context * RECENT_SHARE), 1) :].sum()),
        float(event_focus(by_age, context)[0]),
        float(row[0, -1]),
        None,
        abs(1.0 - total),
        b"",
        units_of(row[:, :-1])[0],
    )


def _explanation(
    given: Mapping[str, tuple[float, ...]], looked: Explanation | None
) -> Explanation | None:
    numbers = {name: given[name][0] for name in EXPLAINED if name in given}
    if not numbers and looked is None:
        return None
    if looked is None:
        looked = Explanation(None, None, None, None, None, None, None, None, b"", b"")
    return replace(looked, **numbers)


# ---------------------------------------------------------------- kinds of checkpoints


class DataSource(StrEnum):
    """The data that a kind of model learns from and forecasts."""

    BARS = "bars"  # of each symbol separately
    CLOSES = "closes"  # of all symbols together
    ORDER_BOOKS = "order books"  # files of ``tracepaper data record``


def no_network(*_: object) -> Any:  # noqa: ANN401 - never returns
    """Raise ``InvariantBroken``: this kind is not a network for bars of one symbol."""
    raise InvariantBroken("This kind of model has no network; use its forecaster.")


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A kind of checkpoint, by the name that a card gives as ``[model] kind``."""

    name: str
    summary: str
    """A few words for ``tracepaper train``."""
    source: DataSource = DataSource.BARS
    build: Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any] | None = None
    """A card, its tensors and the ``RunOptions`` of ``strategies.forecasters.build`` → the
    ``Forecaster``. None if the network is run directly, or by a strategy."""
    read: Callable[[dict[str, Any]], Any] = no_network
    """A card's ``[architecture]`` → its configuration; raises ``ConfigInvalid``."""
    make: Callable[[Any], Any] = no_network
    """A configuration → the ``Network``, untrained."""
    backend: Callable[[Any], str | None] = lambda _: None
    """A configuration → the name of the network's own attention backend; None for a kernel."""
    by_names: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]] = lambda *_: {}
    """``[architecture]`` and the names of features → the keys that follow from these names."""
    follows: tuple[str, ...] = ()
    """The derived keys of ``[architecture]``, ignored when a card is used as a recipe."""
    rows: Callable[[Mapping[str, NDArray[Any]]], Any] | None = None
    """Arrays → the ``RowModel`` that forecasts one row; None for others."""
    members: tuple[str, ...] = ()
    """The ``[parts]`` of its card, each a checkpoint; the first is the network."""
    takes_covariates: bool = False
    """Whether it can learn from a user's covariates."""
    heads: frozenset[str] = frozenset()
    """The additional heads of its network."""
    refusal: str = ""
    """Why it cannot forecast bars of one symbol, as a sentence; empty if it can."""
    is_experimental: bool = True
    """True until a bundled checkpoint of this kind has beaten persistence."""

    @property
    def has_network(self) -> bool:
        """Whether a checkpoint is one ``Network`` that can be restored alone."""
        return self.make is not no_network


class ImportedClass(NamedTuple):
    """An imported user class that a network uses."""

    made_of: type
    sha256: str
    """The hash of its source files (docs/identity.md, I15)."""
    guard: Callable[[], AbstractContextManager[None]]
    """A context in which its code runs: turns errors into ``StrategyFailed`` with file and line."""


def find_class(name: str) -> ImportedClass:
    """Return the class ``module:Class`` that a network uses; raise if there is none.

    The importer belongs to a higher layer, so it is itself imported only here.
    """
    custom: ImportedClass = import_module(_IMPORTER).network_class(name)
    return custom


_IMPORTER: Final = "tracepaper.daemon.session.user_class"


AnyKind = TypeVar("AnyKind")


class Registry(dict[str, AnyKind]):
    """Registered objects by name of the model kind; modules register them on import."""

    def add(self, name: str, entry: AnyKind) -> AnyKind:
        """Register *entry*; raise ``ConfigInvalid`` if the name is taken."""
        if name in self:
            raise ConfigInvalid(f"The model kind {name} is already registered; choose another.")
        self[name] = entry
        return entry

    def of(self, *packages: ModuleType) -> Mapping[str, AnyKind]:
        """Import all modules of *packages* and return the registry."""
        for package in packages:
            for module in iter_modules(package.__path__):
                import_module(f"{package.__name__}.{module.name}")
        return self


KINDS: Final[Registry[ModelKind]] = Registry()
"""The kinds registered so far; ``strategies.forecasters.build.model_kinds`` returns all."""


def register(kind: ModelKind) -> ModelKind:
    """Register *kind*; raise ``ConfigInvalid`` if the name is taken."""
    return KINDS.add(kind.name, kind)
