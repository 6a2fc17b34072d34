"""A user's model class behind the ``Forecaster`` protocol.

The rules are docs/own_models.md, N1 to N10; that of its id is docs/identity.md, I14.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import numpy as np
from msgspec import to_builtins
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.user_class import (
    Declaration,
    check_declarations,
    imported,
    is_integer,
    make_guarded,
)
from tracepaper.daemon.session.user_code import (
    ADVICE,
    ForeignCode,
    class_sha256,
    custom_folder,
    file_sha256,
    short,
    versions_of,
)
from tracepaper.daemon.session.user_error import definition
from tracepaper.storage.checkpoints import Identity, identity
from tracepaper.strategies.api.arrays import BarArrays, RecentBars
from tracepaper.strategies.api.model import (
    OF_ATTENDED,
    AnswerMalformed,
    FeatureFunction,
    Model,
    ModelInput,
    forecast_of,
    forecasts_of,
    shares_of,
)
from tracepaper.strategies.api.strategy import SCANNED_AT_ONCE, Forecaster
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, InvariantBroken, StrategyFailed
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema, FeatureStreams, schema_of
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.time_buckets import bucket_bars
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Instrument

CONTEXT_MOST: Final = 100_000
CLASS: Final = "class"
"""The kind of model on the card of a user's class."""
QUANTILES: Final = 99
SHARES_TOLERANCE: Final = 1e-4
"""How far the sum of a model's shares of attention may be from 1."""

log = Logger("model")


def failure_logger() -> Callable[[str], None]:
    """Return a function that logs why a bar has no usable answer, but not the same reason twice."""
    last = ""

    def log_failure(reason: str) -> None:
        nonlocal last
        if reason != last:
            last = reason
            log.warning("no usable answer", error=reason)

    return log_failure


Schema = FeatureSchema | FeatureFunction | None
Rows = NDArray[np.float32]


def load_model(config: Config, *, mode: str = "step") -> UserForecaster:
    """Return the model that ``[model] class`` names, made with its options and files.

    Raises ``ConfigInvalid`` if the class does not exist, rejects its options or has an invalid
    declaration, and ``StrategyFailed`` if it fails in another way.
    """
    name = config.model.custom_class
    cls = model_class(name)
    options = dict(config.model.options)
    files = model_files(config, cls)
    model = make_guarded(
        cls.__name__,
        lambda: cls(options, files),
        "[model.options] or [model] files",
        "take both: options, files",
    )
    _check(model)
    schema, schema_id = _schema(config, model)
    sources_sha256 = _sources_sha256(cls, schema)
    card = {
        "model": {"kind": CLASS, "class": name, "name": name, "weights_sha256": sources_sha256},
        "architecture": {"context": model.context, "horizons": list(model.horizons)},
        "features": {"schema_id": schema_id},
        "market": {},
        "calibration": _as_section(model.calibration, model.horizons),
        "measures": {"given": sorted(model.measures), "outside": model.is_outside},
        "options": {"json": json.dumps(config.settings()["model"]["options"], sort_keys=True)},
        "files": {file: file_sha256(path) for file, path in files.items()},
    }
    if model.trained_until is not None:
        card["split"] = {"train_until": model.trained_until}
    identified = identity(sources_sha256, card)
    model.deadline_s = config.model.deadline_ms / 1000
    return UserForecaster(model, schema, identified, card, mode=mode, config=config)


def _as_section(calibration: Calibration | None, horizons: Sequence[int]) -> dict[str, Any]:
    """Return *calibration* as the section of a card that ``calibration_of`` reads."""
    if calibration is None:
        return {}
    section: dict[str, Any] = to_builtins(calibration)
    section["slope"] = {str(horizon): calibration.slope.get(horizon, 1.0) for horizon in horizons}
    section["regimes"] = section.pop("cells")
    return {name: value for name, value in section.items() if value is not None}


def model_class(name: str) -> type[Model]:
    """Return the model class ``module:Class``; raise ``ConfigInvalid`` if it is no model."""
    cls = imported(name, key="model.class")
    if not (isinstance(cls, type) and issubclass(cls, Model)):
        raise ConfigInvalid(f"model.class '{name}' is no tracepaper.Model; derive from it.")
    return cls


def model_files(config: Config, cls: type[Model]) -> dict[str, Path]:
    """Return the paths of ``[model] files``.

    They are relative to the configuration, the class's file or the working folder, in this order.
    """
    is_interactive = custom_folder(cls) is None  # typed in a session, so it has no file
    package = None if is_interactive else Path(inspect.getfile(cls)).resolve().parent
    folders = [config.folder, package, Path.cwd()]
    files = {}
    for name in config.model.files:
        candidates = [folder / name for folder in folders if folder is not None]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise ConfigInvalid(
                f"[model] files: there is no {name} beside the configuration or its class; "
                "put it there, or name its absolute path."
            )
        files[name] = path.resolve()
    return files


def feature_function(config: Config, model: Model | type[Model]) -> FeatureFunction | None:
    """Return the feature function of the configuration, else of the class; None without one."""
    features: Any = config.features.custom_schema or model.features
    if isinstance(features, str) and ":" in features:
        features, name = imported(features, key="features.schema"), features
        if not isinstance(features, FeatureFunction):
            raise ConfigInvalid(
                f"features.schema '{name}' is no feature function; put "
                "@tracepaper.feature_row(lookback=…) above it."
            )
    return features if isinstance(features, FeatureFunction) else None


def _schema(config: Config, model: Model) -> tuple[Schema, str]:
    """Return the features of the configuration, else of the class, and their id."""
    if (function := feature_function(config, model)) is not None:
        if type(function.lookback) is not int or not 1 <= function.lookback <= CONTEXT_MOST:
            raise ConfigInvalid(
                f"feature_row(lookback={short(function.lookback)}) is no number of bars; give a "
                f"whole number from 1 to {CONTEXT_MOST:,}."
            )
        return function, f"{function.function.__module__}:{function.function.__qualname__}"
    name = config.features.custom_schema or model.features
    if name is None:
        return None, ""
    schema = schema_of(str(name), config.market.interval_ms)
    return schema, schema.schema_id


def _is_date(text: str | None) -> bool:
    try:
        return text is None or bool(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return False


_DECLARED: Final = MEASURES | {"attended"}
_DECLARATIONS: Final[tuple[Declaration, ...]] = (
    ("context", is_integer(1, CONTEXT_MOST), f"give a whole number from 1 to {CONTEXT_MOST:,}"),
    ("horizons", lambda bars: bool(bars) and all(map(is_integer(1), bars)), "give whole bars"),
    ("measures", lambda names: not isinstance(names, str) and bool(names) and {*names} <= _DECLARED,
     f"name some of: {', '.join(sorted(_DECLARED))}"),
    ("trained_until", _is_date, "write a date such as 2025-05-31"),
    ("calibration", lambda value: isinstance(value, Calibration | None),
     "give a tracepaper.strategies.types.calibration.Calibration, or None"),
)  # fmt: skip


def horizons_of(model: Model | type[Model]) -> tuple[int, ...]:
    """Return the horizons that *model* declares, where one alone may be a plain number."""
    declared: object = model.horizons
    return tuple(declared) if isinstance(declared, Iterable) else (declared,)  # type: ignore[return-value]


def _check(model: Model) -> None:
    """Raise ``ConfigInvalid`` for invalid or contradictory declarations."""
    name = type(model).__name__
    model.horizons = horizons_of(model)
    check_declarations(model, _DECLARATIONS)
    if "attended" in model.measures:
        model.measures = {*model.measures, *OF_ATTENDED}
    if _answers_rows(model) and model.context != 1:
        raise ConfigInvalid(
            f"{name} has predict_rows, which sees one row, and a context of {model.context} rows; "
            "implement predict instead, or set context = 1."
        )
    if not _answers_rows(model) and type(model).predict is Model.predict:
        raise ConfigInvalid(f"{name} makes no forecast; implement predict or predict_rows.")
    quantiles = {} if model.calibration is None else model.calibration.quantiles
    for measure, values in quantiles.items():
        rising = all(before <= after for before, after in pairwise(values))
        if len(values) != QUANTILES or not rising or not np.isfinite(values).all():
            raise ConfigInvalid(
                f"{name}.calibration.quantiles[{measure!r}] must be the {QUANTILES} numbers at "
                "1 % to 99 %, none below the one before."
            )


def _answers_rows(model: Model) -> bool:
    return type(model).predict_rows is not Model.predict_rows


def _sources_sha256(cls: type[Model], schema: Schema) -> str:
    """Return the hash of the sources of the class and of its feature function."""
    digest = hashlib.sha256(class_sha256(cls).encode())
    if isinstance(schema, FeatureFunction):
        function = schema.function
        assert isinstance(function, FunctionType)
        digest.update(f"{schema.lookback}\0{class_sha256(function, schema.files)}".encode())
    return digest.hexdigest()


class _Past:
    """The newest bars of one instrument and the newest rows of their features."""

    def __init__(self, context: int, schema: Schema, instrument: Instrument, name: str) -> None:
        self._context, self._schema, self._name = context, schema, name
        self._lookback = 1 if schema is None else schema.lookback
        self._held = context + self._lookback - 1
        self.bars: deque[Bar] = deque(maxlen=self._held)
        self._columns = RecentBars(instrument, context)
        self._feature_bars = RecentBars(instrument, self._lookback)  # a feature function's input
        self._rows: deque[Rows] = deque(maxlen=context)
        self._streams: FeatureStreams | None = None
        self._width: int | None = None
        self._featuring = ForeignCode(name, "in its features")

    def add(self, bar: Bar, *, featured: bool = True) -> None:
        """Add *bar*, which must be newer than the last one, and, if *featured*, its features."""
        if self.bars and bar.open_time_ms <= self.bars[-1].open_time_ms:
            raise InvariantBroken(
                f"{bar.instrument}: the bar at {bar.open_time_ms} does not follow the one at "
                f"{self.bars[-1].open_time_ms}; feed bars oldest first."
            )
        self.bars.append(bar)
        self._columns.extend((bar,))
        match self._schema if featured else None:
            case FeatureSchema() as schema:
                self._rows.append(self._stepped(schema, bar))
            case FeatureFunction() as schema:
                self._feature_bars.extend((bar,))
                if len(self.bars) >= self._lookback:
                    self._rows.append(self._computed(schema, self._feature_bars.at(bar)))

    @property
    def is_full(self) -> bool:
        """Whether all bars are present on which a forecast depends."""
        return len(self.bars) == self._held

    def positions(self) -> NDArray[np.int64]:
        """Return the absolute numbers of the last ``context`` bars."""
        newest = list(self.bars)[-self._context :]
        return np.array([bar.open_time_ms // bar.interval_ms for bar in newest], dtype=np.int64)

    def newest(self) -> BarArrays:
        """Return the last ``context`` bars."""
        return self._columns.at(self.bars[-1])

    def features(self) -> Rows:
        """Return a copy of the newest rows, [context, feature]; no columns without features."""
        shape = (self._context, 0 if self._schema is None else -1)
        rows = np.array(self._rows, dtype=np.float32).reshape(shape)
        rows.flags.writeable = False
        return rows

    def _stepped(self, schema: FeatureSchema, bar: Bar) -> Rows:
        if self._streams is None:
            self._streams = FeatureStreams(schema)
            self._streams.warm(0, list(self.bars)[:-1])
        values: Rows = self._streams.step([bar]).values[0]
        return values

    def _computed(self, schema: FeatureFunction, past: BarArrays) -> Rows:
        """Return the checked row of a user's function; the first row is computed twice."""
        self._featuring.bars = (self.bars[-1],)
        with self._featuring:
            answer: Any = schema(past)
            repeated: Any = schema(past) if self._width is None else None
        row = self._as_row(answer)
        if repeated is not None and not np.array_equal(row, self._as_row(repeated), equal_nan=True):
            raise StrategyFailed(
                f"{self._name}: its features differ when they are computed twice from equal bars; "
                "let them depend on the bars alone."
            )
        if self._width not in (None, len(row)):
            raise StrategyFailed(
                f"{self._name}: its features were {self._width} numbers and are {len(row)}; "
                "return the same number for each bar."
            )
        self._width = len(row)
        return row

    def _as_row(self, answer: object) -> Rows:
        try:
            row = np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError):
            row = np.zeros(0, dtype=np.float32)
        if row.ndim != 1 or not len(row):
            raise StrategyFailed(
                f"{self._name}: its features are {short(answer)}; return a row of numbers."
            )
        return row

    def warm(self, bars: Sequence[Bar]) -> None:
        """Add *bars*; those before the kept ones are ignored."""
        newest = bars[-self._held :]
        # Bars before the context need no rows of a built-in schema, whose streams are warmed later.
        early = len(newest) - self._context if isinstance(self._schema, FeatureSchema) else 0
        for index, bar in enumerate(newest):
            self.add(bar, featured=index >= early)

    def scan(self, bars: Sequence[Bar]) -> list[Rows]:
        """Add *bars*; return the feature rows of those that have all bars before them."""
        rows: list[Rows] = []
        if isinstance(self._schema, FeatureSchema):
            past = [*self.bars, *bars]
            first = max(len(self.bars), self._held - 1)
            rows = list(features.compute(self._schema, features.columns(past)).values[first:])
            for bar in bars[-self._held :]:
                self.add(bar, featured=False)
            self._streams = None
            self._rows.clear()
            return rows
        for bar in bars:
            self.add(bar)
            rows += [self._rows[-1]] if self.is_full else []
        return rows


# ---------------------------------------------------------------- the forecaster


class UserForecaster:
    """A user's ``Model`` as a ``Forecaster``: guarded, and never shown a later bar.

    It keeps nothing but bars, so one warmed with ``context`` bars equals one that ran for a year.
    """

    device = "cpu"
    dtype = "float64"
    backend = CLASS
    vectors = None

    def __init__(
        self,
        model: Model,
        schema: Schema,
        identified: Identity,
        card: Mapping[str, Any],
        *,
        mode: str,
        config: Config,
    ) -> None:
        self.model = model
        self.card = card
        self.identity = identified
        self.model_id, self.model_sha256 = identified.id, identified.sha256
        self.context = model.context + (0 if schema is None else schema.lookback - 1)
        self.bucket_bars = bucket_bars(model.context)
        self.horizons = tuple(model.horizons)
        self.calibration = model.calibration
        self.measures = frozenset(model.measures)
        self.is_outside = bool(model.is_outside)
        self.causal = _answers_rows(model) and not self.is_outside
        self.scanned_at_once = SCANNED_AT_ONCE
        self.mode = "scan" if mode == "scan" and self.causal else "step"
        self.threads = config.model.threads
        self.libraries = versions_of(type(model))
        self._name = type(model).__name__
        self._schema = schema
        self._predicting = ForeignCode(self._name, "in predict")
        self._instruments: dict[str, Instrument] = {}
        self._past: dict[str, _Past] = {}
        self._log_failure = failure_logger()

    def scale(self, instruments: Sequence[Instrument]) -> None:
        """Set *instruments*, whose decimals scale the prices and volumes of bars."""
        self._instruments.update((item.id, item) for item in instruments)

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Replace the past of *instrument* by *bars*, oldest first, without a forecast."""
        self._past.pop(instrument, None)
        self._past_of(instrument).warm(bars)

    def step(self, bar: Bar) -> Forecast | None:
        """Add one bar; return its forecast, None while there are fewer than ``context`` bars."""
        past = self._past_of(bar.instrument)
        past.add(bar)
        if not past.is_full:
            return None
        inputs = self._input(past)
        # Of an external service the same failure of every bar is logged once.
        self._predicting.bars = () if self.is_outside else (bar,)
        if not np.isfinite(inputs.features).all():
            return self._unusable()
        forecast: Forecast | None = self._forecast(
            lambda: self.model.predict(inputs),
            lambda answer: forecast_of(
                answer,
                horizons=self.horizons,
                measures=self.measures,
                positions=past.positions(),
            ),
        )
        return forecast

    def contributions(self, instrument: str) -> dict[str, float] | None:
        """Return each feature's contribution to the newest forecast of *instrument*.

        They include the model's base value. None if the model does not explain itself. Raises
        ``StrategyFailed`` unless the model returns finite numbers by name. The model must be warm.
        """
        inputs = self._input(self._past_of(instrument))
        with ForeignCode(self._name, "in contributions"):
            answer: Any = self.model.contributions(inputs)
        if answer is None:
            return None
        try:
            contributions = {str(name): float(value) for name, value in answer.items()}
        except (AttributeError, TypeError, ValueError):
            contributions = {"": math.nan}
        if not np.isfinite(list(contributions.values())).all():
            raise StrategyFailed(
                f"{self._name}: its contributions are {short(answer)}; return a finite number by "
                "feature, or None."
            )
        return contributions

    def attended(self, instrument: str) -> tuple[float, ...] | None:
        """Return the share of attention of each bar of the newest forecast, oldest first.

        None if the model does not tell. Raises ``StrategyFailed`` unless they are one share per
        bar of the context, which sum to 1. The model must be warm.
        """
        with ForeignCode(self._name, "in attended"):
            answer: Any = self.model.attended(self._input(self._past_of(instrument)))
        if answer is None:
            return None
        try:
            shares = shares_of(answer)
        except AnswerMalformed:
            shares = np.zeros(0)
        is_usable = shares.shape == (self.model.context,) and bool((shares >= 0).all())
        if not is_usable or abs(float(shares.sum()) - 1) > SHARES_TOLERANCE:
            raise StrategyFailed(
                f"{self._name}: attended returned {short(answer)}; return {self.model.context} "
                "shares, at least 0, that sum to 1, or None."
            )
        return tuple(shares.tolist())

    def _input(self, past: _Past) -> ModelInput:
        bar = past.bars[-1]
        return ModelInput(
            bar.instrument,
            bar.closed_ms,
            bar.interval_ms,
            past.newest(),
            past.features(),
        )

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Step through one bar of each of several instruments, in their order."""
        return [self.step(bar) for bar in bars]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Add many bars of one instrument; return their forecasts from one ``predict_rows``."""
        forecasts: list[Forecast | None] = [None] * len(bars)
        scanned = self._past_of(bars[0].instrument).scan(bars)
        count = len(scanned)
        rows = np.array(scanned, np.float32).reshape(count, -1 if scanned else 1)
        usable = np.isfinite(rows).all(axis=1)
        forecasts[len(bars) - count :] = [self._unusable()] * count
        if (usable_count := int(usable.sum())) > 0:
            self._predicting.bars = ()
            usable_rows = rows[usable]
            usable_rows.flags.writeable = False
            answers = self._forecast(
                lambda: self.model.predict_rows(usable_rows),
                lambda answer: forecasts_of(
                    answer,
                    usable_count,
                    horizons=self.horizons,
                    measures=self.measures,
                ),
            )
            indices = np.flatnonzero(usable) + len(bars) - count
            for index, answer in zip(indices.tolist(), answers, strict=True):
                forecasts[index] = answer
        return forecasts

    def _past_of(self, instrument: str) -> _Past:
        if (past := self._past.get(instrument)) is None:
            item = self._instruments[instrument]
            past = self._past[instrument] = _Past(
                self.model.context, self._schema, item, self._name
            )
        return past

    def _forecast(self, predict: Callable[[], object], read: Callable[[object], Any]) -> Any:  # noqa: ANN401 - the type that *read* returns
        """Return ``read(predict())``; an unusable forecast if an external service fails.

        A model that declares ``is_outside`` may fail: only that bar is refused. Any other failure
        ends the run.
        """
        try:
            with self._predicting:
                answer = predict()
            return read(answer)
        except AnswerMalformed as error:
            method = self.model.predict_rows if _answers_rows(self.model) else self.model.predict
            reason = f"{self._name}{definition(method)}{self._predicting.for_bars} {error}."
            if not self.is_outside:
                raise StrategyFailed(reason) from None
        except StrategyFailed as error:
            if not self.is_outside:
                raise
            reason = str(error).removesuffix(ADVICE) + "."
        self._log_failure(reason)
        return self._unusable()

    def _unusable(self) -> Forecast:
        """Return a forecast of NaN, which the gate ``finite`` refuses."""
        nans = (math.nan,) * len(self.horizons)
        return Forecast(self.horizons, nans, nans, nans, nans, nans, nans)


def user_model(forecaster: Forecaster | None) -> UserForecaster | None:
    """Return *forecaster* if it is a user's model, else None."""
    return forecaster if isinstance(forecaster, UserForecaster) else None


def reject_other_model(forecaster: UserForecaster, sha256: str, run_id: str) -> None:
    """Raise ``DataInvalid`` if the model or one of its files changed since run *run_id*."""
    if forecaster.model_sha256 != sha256:
        name = forecaster.card["model"]["name"]
        raise DataInvalid(
            f"The model {name}, its features, options or files were changed since run {run_id}: "
            f"they hash to {forecaster.model_id}, the run's to {sha256[:12]}; restore them."
        )
