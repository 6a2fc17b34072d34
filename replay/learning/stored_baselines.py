"""All baselines as they were fitted: plain arrays beside a checkpoint, so that any candles do.

Among them is a small LSTM: what a recurrent network of the same features makes of an hour. It is
fitted as any network is, and stopped on the validation part; nothing about it is chosen by hand. It
takes minutes, so it is fitted where a recipe asks for it.

The rule is docs/models.md, L35.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from torch import Tensor

from tracepaper.replay.learning.baselines import (
    BASELINES,
    Answer,
    Arrays,
    Asked,
    Measure,
    Training,
    baseline,
    nothing,
    past_variances,
)
from tracepaper.replay.learning.boosting import import_lightgbm
from tracepaper.replay.learning.fit import FitOptions, heads_fit
from tracepaper.replay.learning.predict import predict
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Segment
from tracepaper.storage import checkpoints
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, shown
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.lstm import LstmConfig, LstmNetwork

FILE_NAME: Final = "baselines.safetensors"
NO_TREES: Final = (
    "LightGBM was not installed when this was judged, so no baseline of trees stands beside it."
)

Fitted = Mapping[str, Arrays]
"""Each baseline's arrays by its name."""


def fit_baselines(
    training: Sequence[Samples], stopping: Sequence[Samples] = (), requested: Sequence[str] = ()
) -> Fitted:
    """Fit every registered baseline to the *training* samples; those of trees need LightGBM.

    Those that take minutes are fitted where they are *requested* by name; *stopping* samples end
    their fits.
    """
    known = Training([], [], [], [], [], [], [], training, stopping)
    for samples in training:
        span = slice(samples.start, samples.stop)
        unused = samples.weights[span] == 0
        known.horizons.append(samples.horizons)
        known.segments.append(samples.segment)
        known.spans.append(span)
        known.rows.append(samples.segment.values[span])
        known.returns.append(np.where(unused, np.nan, samples.labels["returns"][span]))
        known.variances.append(np.where(unused, np.nan, samples.labels["variance"][span]))
        known.past.append(past_variances(samples.segment)[:, span])
    has_lightgbm = _has_lightgbm()
    return {
        name: each.fit(known)
        for name, each in BASELINES.items()
        if (has_lightgbm or not each.needs_lightgbm) and (name in requested or not each.on_request)
    }


def requested_names(names: object) -> tuple[str, ...]:
    """Return what ``[training] baselines`` names, each once; raise ``ConfigInvalid`` else."""
    if not isinstance(names, list):
        raise ConfigInvalid('training.baselines must be a list of names, such as ["lstm"].')
    known = [name for name, each in BASELINES.items() if each.on_request]
    for name in names:
        if name not in known:
            raise ConfigInvalid(
                f"training.baselines names {shown(name)}, which is not fitted on request; choose of"
                f" {', '.join(known)}. The others stand there anyway."
            )
    return tuple(dict.fromkeys(names))


def unfitted() -> Fitted:
    """Return the baselines that nothing is fitted of, for candles without a bar of the training."""
    return {name: {} for name, each in BASELINES.items() if each.fit is nothing}


def _has_lightgbm() -> bool:
    try:
        import_lightgbm()
    except ConfigInvalid:
        return False
    return True


def answers(fitted: Fitted) -> dict[str, Answer]:
    """Return what each of the *fitted* baselines answers, in the order of the tables."""
    return {name: each.read(fitted[name]) for name, each in BASELINES.items() if name in fitted}


def save_judged(
    folder: Path,
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
    fitted: Fitted,
) -> Checkpoint:
    """Write a checkpoint with the baselines that its *card*'s figures stand beside; return it.

    Where trees are missing among them, the card says why.
    """
    about = _about(fitted, card["features"]["schema_id"], card["architecture"]["horizons"])
    file = save_arrays(
        {
            f"{name}/{key}": np.ascontiguousarray(array)
            for name, own in fitted.items()
            for key, array in own.items()
        },
        metadata=about,
    )
    section = {"file": FILE_NAME, "sha256": checkpoints.sha256_of(file), "names": list(fitted)}
    whole = {**card, "baselines": section}
    if any(each.needs_lightgbm and name not in fitted for name, each in BASELINES.items()):
        sentences = [*card["honesty"]["sentences"], NO_TREES]
        whole["honesty"] = {**card["honesty"], "sentences": sentences}
    return checkpoints.save(folder, tensors, whole, beside={FILE_NAME: file})


def stored_baselines(folder: Path, card: Mapping[str, Any]) -> Fitted | None:
    """Return the baselines beside the checkpoint in *folder*; None where its card names none.

    Raises ``CheckpointMismatch`` for a file that is gone, was changed, or is of other features or
    horizons than the card's.
    """
    section = card.get("baselines")
    if not isinstance(section, Mapping):
        return None
    found = checkpoints.read_beside(folder, FILE_NAME, str(section.get("sha256")))
    names = [str(name) for name in section.get("names", ())]
    wanted = _about(names, card["features"]["schema_id"], card["architecture"]["horizons"])
    if found.metadata != wanted:
        raise CheckpointMismatch(
            f"{folder / FILE_NAME} is of {shown(found.metadata.get('of'))}, and the checkpoint of "
            f"{shown(wanted['of'])}; restore the file from where it came."
        )
    fitted: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, array in found.arrays.items():
        name, _, own = key.partition("/")
        if name not in fitted:
            raise CheckpointMismatch(
                f"{folder / FILE_NAME} holds {name}, which the card does not name; restore it."
            )
        fitted[name][own] = array
    return fitted


def _about(names: Iterable[str], schema_id: str, horizons: Sequence[int]) -> dict[str, str]:
    """Return what the file says of itself: one entry, for a file keeps several in any order."""
    said = f"features {schema_id}, horizons {' '.join(map(str, horizons))}: {' '.join(names)}"
    return {"of": said}


# --- an LSTM, here because a network's training knows the other baselines


LSTM_DIM: Final = 32
LSTM_WINDOW: Final = 64
"""Bars that it remembers, as many as the network kind does by default."""
LSTM_OPTIONS: Final = FitOptions(steps=400, windows=256, learning_rate=2e-3, precision="float32")
_WINDOW, _HORIZONS = "window", "horizons"


def fit_lstm(training: Training) -> Arrays:
    """Return the weights, and beside them the window and the horizons in bars."""
    horizons = tuple(training.samples[0].horizons)
    config = LstmConfig(
        features=training.rows[0].shape[1], dim=LSTM_DIM, window=LSTM_WINDOW, horizons=horizons
    )
    # A baseline leaves the generator as it was: the network's dropout draws from the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(LSTM_OPTIONS.seed)
        fit = heads_fit(LstmNetwork(config), training.samples, training.stopping, LSTM_OPTIONS)
        fit.run(lambda _: None)
    arrays = {name: tensor.numpy() for name, tensor in fit.best.items()}
    return {**arrays, _WINDOW: np.array([LSTM_WINDOW]), _HORIZONS: np.array(horizons)}


class _KeptLstm:
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
            said = {of: found[of].astype(np.float64) for of in get_args(Measure)}
            self._known[id(asked.segment)] = (asked.segment, asked.rows, said)
        return said[asked.of][:, asked.column]


@baseline("lstm", of="both", fit=fit_lstm, on_request=True)
def read_lstm(fitted: Arrays) -> Answer:
    """Return the baseline that forecasts by the arrays of ``fit_lstm``."""
    return _KeptLstm(lstm_of(fitted))


def lstm_of(fitted: Arrays) -> LstmNetwork:
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
