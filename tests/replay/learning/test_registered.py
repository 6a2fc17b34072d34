"""A label, a loss and a baseline are one function and one entry each."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch
from fakes import registered
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from tracepaper.replay.document.terminal import show
from tracepaper.replay.learning import baselines, losses, samples
from tracepaper.replay.learning.baselines import (
    Answer,
    Arrays,
    Baseline,
    Training,
    answers,
    fit_baselines,
)
from tracepaper.replay.learning.fit import FitOptions, HeadLosses, heads_fit, loss_shares
from tracepaper.replay.learning.judge.forecasts import SegmentFields, forecasts_of
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import figures
from tracepaper.replay.learning.judge.tables import tables_of
from tracepaper.replay.learning.losses import Loss
from tracepaper.replay.learning.samples import Label, samples_in, targets
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import Epochs, judged_rows, predict
from tracepaper.strategies.networks.architecture import Outputs
from tracepaper.strategies.networks.flash import FlashNetwork

torch.set_num_threads(1)
PANEL = learning.panel(4 * learning.DAY_BARS)
SPLIT = learning.split(1.5, 2.5, 3.2)


def crossed(price: NDArray[Any], _: NDArray[Any], horizon: int) -> NDArray[np.float32]:
    """Return 1 where the close returns to its current value within the horizon, else 0."""
    values = np.full(price.shape, np.nan, dtype=np.float32)
    for asset, row in np.ndindex(len(price), price.shape[1] - horizon):
        ahead = np.sign(price[asset, row + 1 : row + 1 + horizon] - price[asset, row])
        values[asset, row] = float(len(set(ahead.tolist())) > 1)
    return values


def absolute_error(outputs: Outputs, labels: Mapping[str, Tensor], _: Sequence[float]) -> Tensor:
    return (outputs.mean - labels["crossed"]).abs()


def test_a_label_and_a_loss_are_one_function_each(tmp_path: Path) -> None:
    options = FitOptions(steps=2, batch=2, length=256, validate_every=1)
    new = Loss("mean error", absolute_error, is_price=True)
    with (
        registered(samples.LABELS, lambda: samples.LABELS.update(crossed=Label(crossed, 0.5))),
        registered(losses.LOSSES, lambda: losses.LOSSES.update(test=new)),
    ):
        assert targets(PANEL, (5, 30))["crossed"].shape == (1, len(PANEL), 2)
        training, validation = (
            samples_in([PANEL], learning.HORIZONS, SPLIT, part)
            for part in (Part.TRAIN, Part.VALIDATION)
        )
        batch = next(Epochs(training, length=256, batch=2, seed=0).stream())
        assert set(batch.labels["crossed"].unique().tolist()) <= {0.0, 0.5, 1.0}
        assert loss_shares(learning.HORIZONS, options)[3].tolist() == pytest.approx(
            loss_shares(learning.HORIZONS, options)[0].tolist()
        )
        torch.manual_seed(0)
        fit = heads_fit(FlashNetwork(learning.tiny()), training, validation, options)
        fit.run(lambda _: None)
        assert isinstance(fit.objective, HeadLosses)
        assert fit.objective.best.shape == (4, 2)
        assert np.isfinite(fit.objective.best).all()
        assert losses.titles(()) == "Student-t NLL, cross-entropy, QLIKE, mean error"


def test_a_baseline_is_one_function() -> None:
    def zero(_: Arrays) -> Answer:
        return lambda query: np.zeros(len(query.rows))

    def level(training: Training) -> Arrays:
        return {"level": np.nanmean(np.concatenate(training.variances), axis=0)}

    def calm(fitted: Arrays) -> Answer:
        return lambda query: np.full(len(query.rows), fitted["level"][query.column])

    with registered(
        baselines.BASELINES,
        lambda: baselines.BASELINES.update(
            zero=Baseline("mean", zero), calm=Baseline("variance", calm, level)
        ),
    ):
        training, part = (
            samples_in([PANEL], learning.HORIZONS, SPLIT, which)
            for which in (Part.TRAIN, Part.TEST)
        )
        network = FlashNetwork(learning.tiny())
        answered = [
            SegmentFields(samples, rows, predict(network, samples.segment, rows))
            for samples, rows in judged_rows(network, part)
        ]
        table = forecasts_of(answered, answers(fit_baselines(training)), learning.HORIZONS)
        measured = figures(table.cooled({}))
        assert measured["5"]["sign_accuracy"]["zero"][0] == 0.5
        assert "calm" in measured["30"]["qlike"]
        page = io.StringIO()
        judgement = Judgement(table.cooled({}), {**measured, "gates": {}}, [])
        show(Console(width=160, file=page), tables_of(judgement))
        assert "zero" in page.getvalue()
        assert "Mean absolute error of the return" in page.getvalue()
        assert "calm" in page.getvalue()
