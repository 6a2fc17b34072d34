"""Forecasters of one feature row: ``tree`` and ``glm``, alone or mixed with a network.

Both use the units of the labels: the return to a horizon of h bars in σ √h, and its variance in
σ² h. The other rows of a call change no bit of a row's answer.

The rules are docs/models.md, L22 to L24, L36, L37 and L49, and docs/own_models.md, N3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention.methods import PLAIN
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema
from tracepaper.strategies.forecasters.base import (
    Attribution,
    CheckpointForecaster,
    FeatureMemory,
    InstrumentMemory,
)
from tracepaper.strategies.forecasters.build import (
    COMPUTED,
    MEMBERS,
    NetworkForecaster,
    RunOptions,
    choose_backend,
    known_kind,
    known_schema,
    network_forecaster,
    part_of,
    reject_method,
    tensors_of,
)
from tracepaper.strategies.forecasters.outputs import packed, tuples
from tracepaper.strategies.forecasters.trees import Floats, Scorer, Trees, contributions
from tracepaper.strategies.gates.card import calibration_of, per_horizon, section_of
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

_BLOCK_ROWS: Final = 4_096  # rows answered at once; bounds memory

Arrays = Mapping[str, NDArray[Any]]


class RowContributions(NamedTuple):
    """The contribution of each feature of a row to its mean and log variance.

    ``mean`` and ``log_variance`` are [horizon, feature]; with the bases [horizon] they sum to the
    model's answer, up to rounding.
    """

    mean: Floats
    mean_base: Floats
    log_variance: Floats
    log_variance_base: Floats


class RowModel(Protocol):
    """A model that answers from one row of features."""

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and logarithm of the variance, [row, horizon] each, for many rows."""
        ...

    def contributions(self, row: NDArray[np.floating]) -> RowContributions:
        """Return the contribution of each feature of one [feature] *row*."""
        ...


class TreeModel:
    """Boosted trees: an ensemble per horizon for the log variance, then one for the mean."""

    def __init__(self, arrays: Arrays) -> None:
        self.trees = Trees.read(arrays)
        self._scorer = Scorer(self.trees)
        self._horizons = len(self.trees.trees) // 2

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and log variance, [row, horizon] each."""
        scores = self._scorer.scores(rows)
        return scores[:, self._horizons :], scores[:, : self._horizons]

    def contributions(self, row: NDArray[np.floating]) -> RowContributions:
        """Return the exact Shapley values of the row."""
        by_feature, base = contributions(self.trees, row[None])
        split = self._horizons
        return RowContributions(
            by_feature[0, split:], base[split:], by_feature[0, :split], base[:split]
        )


class GlmModel:
    """A gamma regression with log link for the variance, beside a linear mean."""

    NAMES: Final = ("log_variance_weights", "mean_weights", "log_variance_base", "mean_base")

    def __init__(self, arrays: Arrays) -> None:
        self._log_variance, self._mean = (arrays[name] for name in self.NAMES[:2])
        self._log_variance_base, self._mean_base = (arrays[name] for name in self.NAMES[2:])
        self._centre = arrays["centre"]

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and log variance, [row, horizon] each."""
        return (
            self._linear(rows, self._mean) + self._mean_base,
            self._linear(rows, self._log_variance) + self._log_variance_base,
        )

    def contributions(self, row: NDArray[np.floating]) -> RowContributions:
        """Return weight times distance from the mean of the training rows, which is exact."""
        shifted: Floats = row.astype(np.float64) - self._centre
        return RowContributions(
            self._mean * shifted,
            self._mean_base,
            self._log_variance * shifted,
            self._log_variance_base,
        )

    def _linear(self, rows: NDArray[np.floating], weights: Floats) -> Floats:
        sums = np.empty((len(rows), len(weights)))
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            # The rounding of a matrix product depends on the number of rows; this sum's does not.
            sums[part] = ((rows[part] - self._centre)[:, None, :] * weights).sum(axis=-1)
        return sums


ROW_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility"})
"""The measures of ``gates.gate.MEASURES`` that a row model has."""


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """A checkpoint's row model with its identity, features and calibration."""

    kind: ModelKind
    model: RowModel
    schema: FeatureSchema
    horizons: tuple[int, ...]
    model_id: str
    sha256: str
    spread: tuple[float, ...]  # standard deviation of the return ÷ root of the variance
    calibration: Calibration | None


class RowAdded(NamedTuple):
    """One bar's features [feature], its σ, and the contribution of each feature."""

    row: NDArray[np.float32]
    sigma: float
    added: RowContributions


class RowForecaster(CheckpointForecaster):
    """A row model behind the ``Forecaster`` protocol."""

    dtype = "float64"
    warms_by_all = True

    def __init__(self, trained: TrainedRows, *, mode: str, threads: int) -> None:
        """Answer by *trained* on one thread; *threads* is what a run records."""
        super().__init__(
            trained,
            FeatureMemory(trained.schema),
            context=trained.schema.lookback,
            horizons=trained.horizons,
            measures=ROW_MEASURES,
            mode=mode,
            threads=threads,
            backend=trained.kind.name,
        )
        self.trained = trained
        self._roots = np.sqrt(trained.horizons)
        self._spread = np.array(trained.spread)

    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Do nothing: the features' lookback is all that an answer needs."""

    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the answer to each row with full lookback."""
        del is_group
        answers: list[Forecast | None] = [None] * len(bars)
        ready = np.flatnonzero(taken.complete(self.trained.schema)).tolist()
        if ready:
            first = len(bars) - len(taken.values)
            predictions = self.forecasts(taken.values[ready], taken.sigma[ready])
            for at, forecast in zip(ready, predictions, strict=True):
                answers[first + at] = forecast
        return answers

    def explain(self, instrument: str) -> RowAdded:
        """Return the contribution of each feature of the last bar to its forecast.

        Raises ``InvariantBroken`` before the first decision.
        """
        memory = self.memory.of(instrument)
        if len(memory.tail) < self.context:
            raise self._undecided(instrument)
        taken = InstrumentMemory(instrument, self.trained.schema).take_all(list(memory.tail))
        row = taken.values[-1]
        return RowAdded(row, float(taken.sigma[-1]), self.trained.model.contributions(row))

    def figures(self, rows: NDArray[np.float32], sigmas: Floats) -> tuple[Floats, Floats]:
        """Return mean return and volatility, [row, horizon] each; NaN unless a row is finite."""
        mean, log_variance = self.trained.model.answer(rows)
        root = sigmas[:, None] * self._roots
        if not (finite := np.isfinite(rows)).all():
            root[~finite.all(axis=1)] = np.nan
        return mean * root, np.exp(0.5 * log_variance) * root

    def forecasts(self, rows: NDArray[np.float32], sigmas: Floats) -> list[Forecast]:
        """Return the forecast of each of *rows*; NaN if a feature is not finite."""
        mean, volatility = self.figures(rows, sigmas)
        figures = (mean, volatility * self._spread, volatility)
        return [
            Forecast(self.horizons, means, stdevs, (), (), (), volatilities)
            for means, stdevs, volatilities in zip(*map(tuples, figures), strict=True)
        ]


class EnsembleForecaster(CheckpointForecaster):
    """A network and a row model behind the ``Forecaster`` protocol, their answers mixed.

    The network keeps the bars and computes the features, by the wider of both members' schemas.
    """

    member_shape: ClassVar[tuple[int, int]] = (1, 2)
    """Members in ``Forecast.auxiliary``, and the numbers of each per horizon."""

    def __init__(
        self,
        network: NetworkForecaster,
        rows: RowForecaster,
        shares: Sequence[float],
        *,
        spread: Sequence[float],
        calibration: Calibration | None,
    ) -> None:
        """Mix by *shares*, one per horizon: the network's in the logarithm of the variance.

        *network* computes the wider of both members' features. *spread* is, by horizon, the
        standard deviation of the return ÷ the mixed volatility; *calibration* is the ensemble's.
        Raises ``ConfigInvalid`` for members of other horizons, and for invalid shares.
        """
        if network.horizons != rows.horizons:
            raise ConfigInvalid(
                "The members of an ensemble must forecast the same horizons; train both with the "
                "same horizons."
            )
        super().__init__(
            network.model,
            network.memory,
            context=network.context,
            horizons=network.horizons,
            measures=network.measures,
            mode=network.mode,
            threads=network.threads,
            backend=network.backend,
        )
        self.network, self.rows = network, rows
        self.shares, self.spread = tuple(shares), tuple(spread)
        self._shares, self._spread = np.array(self.shares), np.array(self.spread)
        self.calibration = calibration
        self.device, self.dtype = network.device, network.dtype
        self.scanned_at_once = network.scanned_at_once
        self.warms_by_all = network.warms_by_all
        self.passes = network.passes

    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Restart the network's memory of the instrument."""
        self.network.remember(memory, bars, taken)

    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the network's answers, mixed."""
        return self._mixed(self.network.answer(bars, taken, is_group=is_group), taken)

    def explain(self, instrument: str) -> Attribution:
        """Return the network's attention at *instrument*'s last decision, bar by bar.

        Raises ``InvariantBroken`` for a network without attention.
        """
        return self.network.explain(instrument)

    def _mixed(
        self, answers: Sequence[Forecast | None], taken: FeatureRows
    ) -> list[Forecast | None]:
        """Return each forecast of the network mixed with the row model's; *taken* are its rows.

        A bar has None while a member lacks history; the row model may need more than the network.
        """
        schema = self.rows.trained.schema
        first = len(answers) - len(taken.values)
        complete = np.flatnonzero(taken.complete(schema)).tolist()
        network = {at: forecast for at in complete if (forecast := answers[first + at]) is not None}
        mixed: list[Forecast | None] = [None] * len(answers)
        if not network:
            return mixed
        ready = list(network)
        rows = taken.values[ready, : len(schema.names)]
        mean, volatility = self.rows.figures(rows, taken.sigma[ready])  # [row, horizon]
        of_network = np.array([forecast.volatility for forecast in network.values()])
        logs = self._shares * np.log(of_network) + (1.0 - self._shares) * np.log(volatility)
        both, figures = np.exp(logs), packed(np.concatenate((mean, volatility), axis=1))
        columns = tuples(both * self._spread), tuples(both), figures
        for (at, forecast), stdev, wide, of_rows in zip(network.items(), *columns, strict=True):
            mixed[first + at] = structs.replace(
                forecast, stdev_return=stdev, volatility=wide, auxiliary=of_rows
            )
        return mixed


def network_member(forecaster: Forecaster) -> Forecaster:
    """Return the network of an ensemble, or *forecaster* itself if it is none."""
    return forecaster.network if isinstance(forecaster, EnsembleForecaster) else forecaster


def row_member(forecaster: Forecaster) -> RowForecaster | None:
    """Return *forecaster*, or an ensemble's member, if it is a row model; else None."""
    member = forecaster.rows if isinstance(forecaster, EnsembleForecaster) else forecaster
    return member if isinstance(member, RowForecaster) else None


def network_shares(forecaster: Forecaster) -> tuple[float, ...] | None:
    """Return the network's share of an ensemble's log variance by horizon; None for others."""
    return forecaster.shares if isinstance(forecaster, EnsembleForecaster) else None


def figures_of_rows(forecast: Forecast) -> Floats:
    """Return [2, horizon]: mean return and volatility of an ensemble's row model."""
    numbers = np.frombuffer(forecast.auxiliary, dtype="<f4").astype(np.float64)
    return numbers.reshape(2, len(forecast.horizons))


# ---------------------------------------------------------------- from a card


def trained_rows(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: ModelKind
) -> TrainedRows:
    """Return the row model of *card*; raise ``ConfigInvalid`` for an unknown feature schema."""
    assert kind.rows is not None
    identity, calibration = section_of(card, "model"), section_of(card, "calibration", {})
    schema = known_schema(card)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    ahead = tuple(card["architecture"]["horizons"])
    return TrainedRows(
        kind=kind,
        model=kind.rows(arrays),
        schema=schema,
        horizons=ahead,
        model_id=str(identity.get("id", "")),
        sha256=str(identity.get("sha256", "")),
        spread=per_horizon(calibration.get("spread", 1.0), ahead),
        calibration=calibration_of(calibration, 0.0, ahead),
    )


def _of_rows(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> RowForecaster:
    choose_backend(card, options.backend, device=options.device)
    torch.set_num_threads(options.threads)
    kind = known_kind(card)
    assert kind is not None
    reject_method(options, kind.name)
    return RowForecaster(
        trained_rows(card, tensors, kind), mode=options.mode, threads=options.threads
    )


def _of_members(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> EnsembleForecaster:
    choose_backend(card, options.backend, device=options.device)
    cards = [part_of(card, member) for member in MEMBERS]
    wide = features.wider(*map(known_schema, cards))
    cards[0]["features"] = {**section_of(cards[0], "features"), COMPUTED: wide.schema_id}
    of_network, of_rows = (tensors_of(tensors, member) for member in MEMBERS)
    network = network_forecaster(cards[0], of_network, replace(options, vectors=None))
    rows = _of_rows(
        cards[1], of_rows, replace(options, backend="auto", method=PLAIN, by_relevance=False)
    )
    section = section_of(card, "calibration")
    return EnsembleForecaster(
        network,
        rows,
        per_horizon(section_of(card, "ensemble")["network_share"], network.horizons),
        spread=per_horizon(section["spread"], network.horizons),
        calibration=calibration_of(section, network.model.network.content_free(), network.horizons),
    )


ROW_KINDS: Final[Mapping[str, ModelKind]] = {
    name: register(
        ModelKind(
            name,
            "of one bar's features",
            build=_of_rows,
            rows=model,
            is_experimental=False,  # none is bundled alone
        )
    )
    for name, model in (("tree", TreeModel), ("glm", GlmModel))
}
"""The kinds that answer from one row of features."""
ENSEMBLE: Final = "ensemble"
"""The kind of checkpoint that holds a network and a row model."""
ENSEMBLE_KIND: Final = register(
    ModelKind(
        ENSEMBLE,
        "a network with a tree or a glm",
        build=_of_members,
        members=MEMBERS,
        is_experimental=False,  # its network is listed
    )
)
