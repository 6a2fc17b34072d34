"""A checkpoint under examination: what it says of untouched bars as they are, and when changed.

The rules are docs/models.md, L38 to L42.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.training.evaluation import Predictions, predict, thinned
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.rowwise import predictions
from tracepaper.replay.training.samples import Samples, first_position
from tracepaper.replay.training.series import Part, Segment
from tracepaper.replay.training.windows import windowed_rows
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import (
    HALVES,
    is_ensemble,
    part_of,
    restore,
    tensors_of,
)
from tracepaper.strategies.forecasters.tabular import TrainedRows, row_kind, trained_rows
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.units import DAY_MS

TARGETS: Final = ("log variance", "mean")
"""What of a forecast is looked at; the mean is in units of σ √h."""
_ROWS_AT_ONCE: Final = 16_384  # of all windows of one pass; bounds memory

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


class DecidedBar(NamedTuple):
    """One bar that is decided, by its row in a segment."""

    samples: Samples
    row: int

    @property
    def day(self) -> int:
        """The number of its day."""
        return int(self.samples.segment.open_time_ms[self.row]) // DAY_MS

    def rows(self, count: int) -> Rows:
        """Return a copy of the last *count* rows of features up to it: [count, feature]."""
        known: Rows = self.samples.segment.values[self.row - count + 1 : self.row + 1].copy()
        return known

    def positions(self, count: int) -> Tensor:
        """Return the absolute numbers of these bars."""
        first = first_position(self.samples.segment, self.row) - count + 1
        return torch.arange(first, first + count)


class Mix(NamedTuple):
    """How an ensemble mixes its members, [horizon] each: see ``EnsembleForecaster``."""

    shares: Array
    spread: Array

    def log_variance(self, network: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        """Return the ensemble's of both halves' log variances [.., horizon]."""
        found: NDArray[Any] = self.shares * network + (1.0 - self.shares) * rows
        return found


@dataclass(frozen=True)
class Subject:
    """A network, or a model of one row of features, or both, and what it is examined on."""

    material: Material
    horizon: int
    """Bars ahead, that of the gates."""
    network: Network | None = None
    trained: TrainedRows | None = None
    mix: Mix | None = None
    """Of an ensemble, which has both."""

    @classmethod
    def of(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material) -> Self:
        """Return that of *card* and *tensors*; an ensemble's halves are those in its checkpoint."""
        if is_ensemble(card):
            one, other = (
                cls.of(part_of(card, half), tensors_of(tensors, half), material) for half in HALVES
            )
            shares, spread = (
                np.array([card[section][key][str(h)] for h in material.horizons])
                for section, key in (("ensemble", "network_share"), ("calibration", "spread"))
            )
            return replace(one, trained=other.trained, mix=Mix(shares, spread))
        horizon, kind = int(card["calibration"]["horizon"]), row_kind(card)
        if kind is None:
            return cls(material, horizon, network=restore(card, tensors).eval())
        return cls(material, horizon, trained=trained_rows(card, tensors, kind))

    @property
    def column(self) -> int:
        """The place of ``horizon`` among the model's."""
        return self.material.horizons.index(self.horizon)

    @property
    def of_network(self) -> str:
        """What a title says where an ensemble's network alone is examined."""
        return "" if self.mix is None else " (the ensemble's network)"

    def need_network(self, option: str) -> Network:
        """Return the network; raise ``ConfigInvalid`` where the model sees one row alone."""
        if self.network is None:
            raise ConfigInvalid(
                f"{option} changes the bars that a model sees, and this one sees the features of "
                f"one bar alone; leave {option} out."
            )
        return self.network

    def predict(self, segment: Segment, rows: Ids) -> Predictions:
        """Return what it says of *rows* of *segment*, as ``Predictions``."""
        if self.trained is None:
            assert self.network is not None
            return predict(self.network, segment, rows)
        own = predictions(self.trained.model, self.own_rows(segment.values[rows]))
        if self.network is None:
            return replace(own, scale=own.scale * np.array(self.trained.spread, dtype=np.float32))
        assert self.mix is not None
        said = predict(self.network, segment, rows)
        mixed = self.mix.log_variance(np.log(said.variance), np.log(own.variance))
        scale = (np.exp(0.5 * mixed) * self.mix.spread).astype(np.float32)
        return replace(said, variance=np.exp(mixed).astype(np.float32), scale=scale, dof=own.dof)

    def own_rows(self, rows: Rows) -> Rows:
        """Return the columns of *rows* [.., feature] that the row model sees: the first."""
        assert self.trained is not None
        return rows[..., : len(self.trained.schema.names)]

    def labelled(self, part: Part, at_most: int | None = None) -> list[tuple[Samples, Ids]]:
        """Return the labelled rows of *part* with a whole context, by segment.

        Evenly fewer where there are more than *at_most*, or a network takes a pass for each.
        """
        try:
            every = self.material.samples(part)
        except DataInvalid:
            raise DataInvalid(
                f"The candles hold no labelled bar of the card's {part.value} part; give --data of"
                " that time too, or leave out what is examined on it."
            ) from None
        context = 1 if self.network is None else self.network.config.receptive_field
        rows = [windowed_rows(samples, context) for samples in every]
        total = sum(map(len, rows))
        step = 1 if at_most is None else max(-(-total // at_most), 1)
        if self.network is not None and step == 1:
            rows = [thinned(own, total, self.network) for own in rows]
        found = [(s, own[::step]) for s, own in zip(every, rows, strict=True) if len(own)]
        if not found:
            raise ConfigInvalid(
                f"The {part.value} part has no bar with {context} bars before it; give longer"
                " candles."
            )
        return found

    def decisions(self, count: int) -> list[DecidedBar]:
        """Return *count* decisions of the test part, evenly spread; all where there are fewer."""
        every = [(s, row) for s, rows in self.labelled(Part.TEST) for row in rows.tolist()]
        chosen = np.unique(np.linspace(0, len(every) - 1, count).round().astype(np.int64))
        return [DecidedBar(*every[at]) for at in chosen.tolist()]

    @cached_property
    def neutral(self) -> Rows:
        """The neutral row [feature]: the mean of each feature over the training part.

        The ridge that stands beside a checkpoint is centred there, so that any candles do.
        """
        if "ridge" in (stored := self.material.stored or {}):
            centre: Rows = stored["ridge"]["centre"].astype(np.float32)
            return centre
        total, count = np.zeros(len(self.material.schema.names)), 0
        for samples in self.material.samples(Part.TRAIN):
            known = samples.segment.values[samples.start : samples.stop]
            total += known.sum(axis=0, dtype=np.float64)
            count += len(known)
        found: Rows = (total / count).astype(np.float32)
        return found


class Said(NamedTuple):
    """What a network says of the last bar of each window: [window, horizon]."""

    mean: NDArray[np.float32]
    log_variance: NDArray[np.float32]

    def targets(self, column: int) -> Array:
        """Return ``TARGETS`` at one horizon: [target, window]."""
        both = (self.log_variance[:, column], self.mean[:, column])
        return np.stack(both).astype(np.float64)


def ask(network: Network, windows: Rows, positions: Tensor) -> Said:
    """Ask *network* about *windows* [window, bar, feature], all at int64 *positions* [bar].

    Its features are the first of those.
    """
    step = max(_ROWS_AT_ONCE // windows.shape[1], 1)
    place = positions.to(network.device)
    parts = []
    own = windows[..., : network.config.features]
    with torch.inference_mode():
        for start in range(0, len(windows), step):
            x = torch.from_numpy(own[start : start + step]).to(network.device)
            said = network(x, place)
            parts.append(
                [part[:, -1].float().cpu().numpy() for part in (said.mean, said.log_variance)]
            )
    return Said(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def answer_of(
    network: Network, positions: Tensor, target: str, column: int
) -> Callable[[Tensor], Tensor]:
    """Return [window, bar, feature] → the *target* [window] at one horizon, differentiably."""
    place = positions.to(network.device)

    def answer(windows: Tensor) -> Tensor:
        own = windows[..., : network.config.features]
        said = network(own.to(network.device), place)
        chosen: Tensor = said.log_variance if target == TARGETS[0] else said.mean
        return chosen[:, -1, column]

    return answer


def looked(network: Network, window: Rows, positions: Tensor) -> Array:
    """Return where *network* looks in one *window* [bar, feature]: the rollout's weights [bar]."""
    x = torch.from_numpy(window[None, :, : network.config.features])
    with torch.inference_mode():
        rollout = network.look(x.to(network.device), positions.to(network.device)).rollout
    found: Array = rollout.weights[0, 0].double().cpu().numpy()
    return found


def days_of(decisions: Sequence[DecidedBar]) -> Ids:
    """Return the day of each decision."""
    return np.array([decision.day for decision in decisions], dtype=np.int64)
