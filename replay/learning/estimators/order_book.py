"""Networks over order books: fitted on windows of recorded depth, judged on untouched books.

With less than seven days of depth from the exchange a network counts as untrained and is not
judged. Errors are by calendar day.

The rules are docs/orderbook.md, D10 to D12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.card import NOTICE
from tracepaper.replay.learning.estimators.networks import fit
from tracepaper.replay.learning.fit import Fit, FitOptions, MeanLoss, policy_of
from tracepaper.replay.learning.fitted import FittedModel
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, concatenated
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import BOOK_DAYS, BOOKS, views
from tracepaper.replay.learning.order_books import FEATURES, BookDataset, BookPanel
from tracepaper.replay.learning.recipe import Kind, register
from tracepaper.replay.learning.samples import FLAT, NO_LABEL, Samples
from tracepaper.replay.learning.splits import SYMBOL_MASK, Panel, Part
from tracepaper.replay.learning.windows import Batch, Epochs, windows
from tracepaper.replay.report.metrics import is_credible
from tracepaper.storage.checkpoints import Checkpoint, load, save
from tracepaper.strategies.forecasters.order_book import ORDER_BOOK, BookModel
from tracepaper.strategies.networks.order_book import MOVES, OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.units import iso

WEIGHT_DECAY: Final = 0.01
VALIDATIONS: Final = 20
"""Validations during a fit."""
VALIDATED_WINDOWS: Final = 16


SMOOTHED: Final = 1.0
"""Additive smoothing of the moves' counts in the training part."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BookFitOptions:
    """Options of a fit of an order-book network."""

    steps: Annotated[int, Meta(ge=1, description="Optimiser steps.")] = 200
    windows: Annotated[int, Meta(ge=1, description="Windows per step.")] = 4
    learning_rate: Annotated[float, Meta(gt=0, lt=1, description="Peak learning rate.")] = 2e-3
    seed: Annotated[int, Meta(description="Random seed.")] = 0
    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = 2


class OrderBookModel(FittedModel):
    """A fitted network over order books."""

    @cached_property
    def network(self) -> OrderBookNetwork:
        """The network with its weights; raises like ``BookModel.read``."""
        return BookModel.read(self.card, self.tensors).network

    def scaled(self, data: BookDataset) -> Self:
        """Return a copy with frequencies and split for its judgement; nothing is scaled."""
        if data.untrained():
            return self
        split = {"untouched_from": iso(data.split.calibration_until_ms)}
        horizons = self.card["architecture"]["horizons"]
        frequencies = frequencies_of(data.labelled(Part.TRAIN), horizons)
        return self.with_card(split=split, frequencies=frequencies)

    def answers(self, data: BookDataset, part: Part) -> Forecasts:
        """Return its forecasts of *part*, with those of the frequencies and the last move."""
        return book_forecasts(self.network, data.samples(part), self.card["frequencies"])

    def judge(self, data: BookDataset, *, bars: int | None = None) -> Judgement:
        """Return the judgement on the untouched books."""
        del bars
        table = self.answers(data, Part.TEST)
        figures = {str(at): figures_of(rows) for at, rows in table.by_horizon()}
        return Judgement(table, figures, sentences_of(figures))

    def save(self, folder: Path, data: BookDataset) -> Checkpoint:
        """Write the checkpoint into *folder*; return it."""
        del data
        return save(folder, self.tensors, self.card)


def load_books(folder: Path) -> tuple[OrderBookNetwork, dict[str, Any]]:
    """Return the network in *folder* and its card; raise like ``BookModel.read``."""
    checkpoint = load(folder)
    return BookModel.read(checkpoint.card, checkpoint.tensors).network, checkpoint.card


# --- the fit


def learn_books(
    network: OrderBookNetwork,
    data: BookDataset,
    options: BookFitOptions,
    *,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Fit:
    """Return the fit to windows of *data*; every book of a window is a sample."""
    training, validation = (
        shallow(part, network) for part in (data.samples(Part.TRAIN), data.native(Part.VALIDATION))
    )
    window, horizons = network.config.window, network.config.horizons
    validated = [
        (place, start, start + window)
        for place, samples in enumerate(validation)
        for start in range(0, len(samples.panel) - horizons[0], window)
    ]
    chosen = np.array(validated[:: max(1, len(validated) // VALIDATED_WINDOWS)])
    objective = MeanLoss(
        network,
        "cross-entropy of the moves",
        Epochs(training, length=window, batch=1, seed=options.seed).stream,
        lambda: (windows(validation, cut[None], window) for cut in chosen),
        moves_loss,
        accumulate=options.windows,
    )
    policy = policy_of(
        network,
        FitOptions(
            steps=options.steps,
            accumulate=options.windows,
            learning_rate=options.learning_rate,
            weight_decay=WEIGHT_DECAY,
            validate_every=max(1, options.steps // VALIDATIONS),
            average=0.0,
            seed=options.seed,
        ),
    )
    return Fit(objective, policy, folder=folder, about=about)


def moves_loss(network: OrderBookNetwork, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the labels of *batch*."""
    logits, moves = network(batch.values)[0], batch.labels["move"].flatten()
    return cross_entropy(logits.flatten(0, 1), moves, ignore_index=NO_LABEL)


def shallow(part: Sequence[Samples], network: OrderBookNetwork) -> list[Samples]:
    """Return *part* with as many levels as *network* reads."""
    levels, panels = network.config.levels, [samples.panel for samples in part]
    return [
        replace(samples, panel=panel.shallower(levels))
        for samples, panel in zip(part, panels, strict=True)
        if isinstance(panel, BookPanel)
    ]


# --- forecasts and figures


def frequencies_of(training: Sequence[Samples], horizons: Sequence[int]) -> dict[str, list[float]]:
    """Return the frequencies of down, flat and up moves of the mid in *training*, by horizon."""
    frequencies: dict[str, list[float]] = {}
    for column, horizon in enumerate(horizons):
        counts = np.full(len(MOVES), SMOOTHED)
        for samples in training:
            moves = samples.labels["move"][0, samples.weights[:, column] > 0, column]
            counts += np.bincount(moves, minlength=len(MOVES))
        frequencies[str(horizon)] = (counts / counts.sum()).tolist()
    return frequencies


def book_forecasts(
    network: OrderBookNetwork,
    part: Sequence[Samples],
    frequencies: Mapping[str, Sequence[float]],
) -> Forecasts:
    """Return the forecasts of *network* at the labelled books of *part*.

    The other forecasters are the moves' frequencies in the training part, and the last move.
    """
    logs = [answers(network, samples.panel) for samples in shallow(part, network)]
    parts = []
    for column, horizon in enumerate(network.config.horizons):
        constant = np.log(np.array(frequencies[str(horizon)]))
        parts += [
            _of_stretch(samples, log[:, column], column, constant)
            for samples, log in zip(part, logs, strict=True)
        ]
    return concatenated(parts)


@torch.no_grad()
def answers(network: OrderBookNetwork, panel: Panel) -> Floats:
    """Return log probabilities [book, horizon, move].

    Windows overlap by half, so every book but the first has at least half a window before it.
    """
    window = network.config.window
    half = max(1, window // 2)
    parts: list[Floats] = []
    for start in range(0, max(1, len(panel) - half), half):
        logits = network(torch.from_numpy(panel.values(start, start + window)))[0]
        log = logits.log_softmax(dim=-1).numpy().astype(np.float64)
        parts.append(log if start == 0 else log[window - half :])
    return np.concatenate(parts)


def _of_stretch(samples: Samples, log: Floats, column: int, constant: Floats) -> Forecasts:
    """Return the rows of the labelled books; *constant* are log frequencies."""
    segment, horizon = samples.segment, samples.horizons[column]
    moves = samples.labels["move"][0, :, column]
    past = np.full_like(moves, FLAT)  # the default without an earlier move
    past[horizon:] = moves[:-horizon]
    rows = np.flatnonzero(samples.weights[:, column] > 0)
    count, opened = len(rows), segment.open_time_ms[rows]
    return Forecasts(
        segment.keys[rows] & SYMBOL_MASK,
        opened,
        opened + horizon * segment.interval_ms,
        np.full(count, horizon),
        segment.interval_ms,
        {"move": moves[rows]},
        {
            MODEL: {"log_probability": log[rows], "move": log[rows].argmax(axis=1)},
            "frequencies": {"log_probability": np.tile(constant, (count, 1))},
            "most frequent": {"move": np.full(count, constant.argmax())},
            "last move": {"move": past[rows]},
        },
    )


def figures_of(rows: Forecasts) -> dict[str, Any]:
    """Return mean losses and accuracies, and the difference of losses with its error by day."""
    loss, hit = (
        {name: metric.terms(view) for name, view in views(metric, rows).items()}
        for metric in BOOKS.values()
    )
    days = len(np.unique(rows.day))
    mean, error = statistics.mean(loss[MODEL] - loss["frequencies"], rows.day)
    return {
        "books": len(rows),
        "days": days,
        "log_loss": float(loss[MODEL].mean()),
        "log_loss_of_frequencies": float(loss["frequencies"].mean()),
        "accuracy": float(hit[MODEL].mean()),
        "accuracy_of_most_frequent": float(hit["most frequent"].mean()),
        "accuracy_of_last_move": float(hit["last move"].mean()),
        "difference": mean,
        "error": error,
        "is_better": bool(days >= BOOK_DAYS and mean < 0 and is_credible(mean, error)),
    }


def sentences_of(figures: Mapping[str, Any]) -> list[str]:
    """Return the sentences that follow from the figures."""
    lines = [NOTICE]
    for horizon, section in figures.items():
        verdict = "better" if section["is_better"] else "not credibly better"
        few = "; too few days to judge" if section["days"] < BOOK_DAYS else ""
        lines.append(
            f"At {horizon} books its log loss on {section['days']} untouched days is {verdict} "
            f"than that of the moves' frequencies ({section['log_loss']:.4f} against "
            f"{section['log_loss_of_frequencies']:.4f}, "
            f"{plus_minus(section['error'], '.4f', unit=' by days')}{few})."
        )
    if not any(section["is_better"] for section in figures.values()):
        lines.append("experimental: it has beaten nothing at any horizon.")
    return lines


register(
    Kind(
        ORDER_BOOK,
        OrderBookConfig,
        BookFitOptions,
        fit,
        OrderBookModel,
        shared=(),
        fixed={"features": FEATURES},
        make=OrderBookNetwork,
        learn=learn_books,
    )
)
