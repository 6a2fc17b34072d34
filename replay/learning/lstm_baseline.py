"""A small LSTM as a baseline: what a recurrent network of the same features makes of an hour.

It is fitted as any network is, on the training part, and stopped on the validation part; nothing
about it is chosen by hand. It takes minutes, so it is fitted where a recipe asks for it.

The rule is docs/models.md, L35.
"""

from __future__ import annotations

from typing import Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.learning.baselines import (
    Answer,
    Arrays,
    Asked,
    Measure,
    Training,
)
from tracepaper.replay.learning.evaluation.forecasts import predict
from tracepaper.replay.learning.fit import FitOptions, heads_fit
from tracepaper.replay.learning.splits import Segment
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.baselines import LstmConfig, LstmNetwork

DIM: Final = 32
WINDOW: Final = 64
"""Bars that it remembers, as many as the network kind does by default."""
OPTIONS: Final = FitOptions(steps=400, windows=256, learning_rate=2e-3, precision="float32")
_WINDOW, _HORIZONS = "window", "horizons"


def fit_lstm(training: Training) -> Arrays:
    """Return the weights, and beside them the window and the horizons in bars."""
    horizons = tuple(training.samples[0].horizons)
    config = LstmConfig(
        features=training.rows[0].shape[1], dim=DIM, window=WINDOW, horizons=horizons
    )
    # A baseline leaves the generator as it was: the network's dropout draws from the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(OPTIONS.seed)
        fit = heads_fit(LstmNetwork(config), training.samples, training.stopping, OPTIONS)
        fit.run(lambda _: None)
    arrays = {name: tensor.numpy() for name, tensor in fit.best.items()}
    return {**arrays, _WINDOW: np.array([WINDOW]), _HORIZONS: np.array(horizons)}


class _Kept:
    """What the network says of each segment's rows, kept until other rows are asked for.

    One pass answers every horizon, and tables ask a horizon at a time.
    """

    def __init__(self, network: LstmNetwork) -> None:
        self._network = network
        self._known: dict[int, tuple[Segment, NDArray[np.int64], dict[str, Array]]] = {}

    def __call__(self, asked: Asked) -> Array:
        segment, rows, said = self._known.get(id(asked.segment), (None, asked.rows, {}))
        if segment is not asked.segment or not np.array_equal(rows, asked.rows):
            found = predict(self._network, asked.segment, asked.rows)
            said = {of: getattr(found, of).astype(np.float64) for of in get_args(Measure)}
            self._known[id(asked.segment)] = (asked.segment, asked.rows, said)
        return said[asked.of][:, asked.column]


def read_lstm(fitted: Arrays) -> Answer:
    """Return what answers by the arrays of ``fit_lstm``."""
    return _Kept(network_of(fitted))


def network_of(fitted: Arrays) -> LstmNetwork:
    """Return the network of these arrays."""
    features = fitted["recurrence.weight_ih_l0"].shape[1]
    config = LstmConfig(
        features=features,
        dim=fitted["recurrence.weight_hh_l0"].shape[1],
        window=int(fitted[_WINDOW][0]),
        horizons=tuple(fitted[_HORIZONS].tolist()),
    )
    network = LstmNetwork(config)
    network.load_state_dict(
        {
            name: torch.from_numpy(np.array(array))
            for name, array in fitted.items()
            if name not in (_WINDOW, _HORIZONS)
        }
    )
    return network
