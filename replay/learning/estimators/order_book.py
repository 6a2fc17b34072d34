"""Networks over order books: fitted on windows of recorded depth, judged on untouched books.

Below seven days of the exchange's own depth a network is called untrained, and nothing is measured
of it. Errors are by calendar day.

The rules are docs/orderbook.md, D10 to D12.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.order_book import DepthHeader
from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.card import NOTICE, model_section, versions_section
from tracepaper.replay.learning.fit import Fit, MeanLoss, Policy
from tracepaper.replay.learning.fitted import DataRequest, FitRun, FittedModel
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, concatenated
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import BOOK_DAYS, BOOKS, views
from tracepaper.replay.learning.order_books import (
    JUDGED_SOURCE,
    UNKNOWN,
    BookDataset,
    labels_of,
)
from tracepaper.replay.learning.recipe import Kind, Recipe, register
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.report.metrics import is_credible
from tracepaper.storage.checkpoints import Checkpoint, load, read_card, save
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.forecasters.build import known_kind
from tracepaper.strategies.forecasters.order_book import ORDER_BOOK
from tracepaper.strategies.networks.order_book import MOVES, OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import COLUMNS, KIND, Books, tokens_of
from tracepaper.strategies.units import iso

SCHEMA: Final = "book-1"
"""Of the columns of a token (``strategies/order_book.py``)."""
WARMUP: Final = 0.05
CLIP: Final = 1.0
WEIGHT_DECAY: Final = 0.01
VALIDATIONS: Final = 20
"""Times that a fit looks at its validation part."""
VALIDATED_WINDOWS: Final = 16


SMOOTHED: Final = 1.0
"""Added to the count of each move in the training part."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BookFitOptions:
    """How to fit: windows a step, and where the seed of all chance stands."""

    steps: Annotated[int, Meta(ge=1, description="Optimiser steps.")] = 200
    windows: Annotated[int, Meta(ge=1, description="Windows per step.")] = 4
    learning_rate: Annotated[float, Meta(gt=0, lt=1, description="Peak learning rate.")] = 2e-3
    seed: Annotated[int, Meta(description="Random seed.")] = 0
    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = 2


FEATURES: Final = {"schema_id": SCHEMA, "columns": list(COLUMNS), "lookback": 1}
"""``[features]`` of a card, which no recipe chooses."""


def read(_: Recipe, request: DataRequest) -> BookDataset:
    """Return the recorded order books, which every recipe reads alike."""
    if request.columns:
        raise ConfigInvalid("Order books have no columns to choose; leave --columns out.")
    return BookDataset.read(request.paths)


def suits(recipe: Recipe, data: BookDataset) -> None:
    """Raise ``ConfigInvalid`` where books are too shallow to be fitted anew by *recipe*."""
    levels, held = recipe.architecture.levels, data.header.levels
    if data.parts is not None and levels > held:
        raise ConfigInvalid(
            f"architecture.levels is {levels}, and the files hold {held}; give as many at most."
        )


def fit(data: BookDataset, recipe: Recipe, run: FitRun) -> OrderBookModel:
    """Fit a network on *data*.

    It has as many levels as the files hold. Raises ``DataInvalid`` where no book of the training
    part knows a horizon. Nothing that the fit measures is said: below seven days of the exchange's
    own depth it would mean nothing.
    """
    header, config, options = data.header, recipe.architecture, recipe.options
    if data.fold is None:
        torch.set_num_threads(options.threads)
        config = replace(config, levels=header.levels)
        for sentence in (*data.torn, *data.untrained()):
            run.say(sentence)
    suits(recipe, data)
    training, validation = (
        [books.shallower(config.levels) for books in data.books(part)]
        for part in (Part.TRAIN, Part.VALIDATION)
    )
    longest = max(map(len, training), default=0)
    if longest <= config.horizons[-1]:
        raise DataInvalid(
            f"{data.files[0].name} holds {longest} books in a row to learn from, and the "
            f"horizon of {config.horizons[-1]} needs more; record longer, ask for fewer folds, or "
            "give shorter horizons."
        )
    about = {
        "options": asdict(options),
        "network": asdict(config),
        "books": [file.sha256 for file in data.files],
    }
    run = run._replace(observe=lambda _: None)
    network, stopped = fit_network(training, validation, config, options, run, about)
    category, _, symbol = header.instrument.partition(":")
    card = {
        "model": dict(model_section(KIND, run.name, run.created_ms)),
        "architecture": asdict(config),
        "features": FEATURES,
        "market": {
            "symbols": [symbol],
            "category": category,
            "interval": f"{header.every_ms} ms",
            "every_ms": header.every_ms,
            "price_decimals": header.price_decimals,
            "quantity_decimals": header.quantity_decimals,
        },
        "calibration": {"moves": list(MOVES)},
        "data": {
            "recorded_ms": data.recorded_ms,
            "stretches": len(data.stretches),
            "files": [
                {key: file[key] for key in ("name", "sha256", "source", "books")}
                | {"from": iso(file["from_ms"]), "until": iso(file["until_ms"])}
                for file in map(asdict, data.files)
            ],
        },
        "training": asdict(options),
        "versions": versions_section(),
    }
    return OrderBookModel(card, network.state_dict(), stopped)


def read_of(card: Mapping[str, Any], request: DataRequest, **_: Any) -> BookDataset:  # noqa: ANN401 - a path has none
    """Read books for the model of *card*: what the exchange itself sent of its instrument and pace.

    What it has seen is all from before the card's untouched time.
    """
    data = BookDataset.read(request.paths)
    check_fits(data.header, card, Path(request.paths[0]))
    if any(file.source != JUDGED_SOURCE for file in data.files):
        raise DataInvalid(
            "Only books that `tracepaper data record` took from the exchange are judged; give "
            "files of them alone."
        )
    return data.seen_until(instant(card["split"]["untouched_from"]))


class OrderBookModel(FittedModel):
    """A fitted network over order books."""

    @cached_property
    def network(self) -> OrderBookNetwork:
        """The network with its weights."""
        return network_of(self.card, self.tensors)

    def for_fold(self, data: BookDataset) -> Self:
        """Return it with the frequencies of the moves that it was fitted to, for comparison."""
        horizons = self.card["architecture"]["horizons"]
        return self.with_card(frequencies=frequencies_of(data.books(Part.TRAIN), horizons))

    def answers(self, data: BookDataset, part: Part) -> Forecasts:
        """Return its forecasts of *part*, beside frequencies and the last move.

        Raises ``ConfigInvalid`` where no move is known to one of its horizons.
        """
        config = self.network.config
        stretches = [books.shallower(config.levels) for books in data.books(part)]
        forecasts = book_forecasts(self.network, stretches, self.card["frequencies"])
        forecasts = forecasts.where(forecasts.open_ms >= data.judged_from_ms)
        for horizon in config.horizons:
            if horizon not in forecasts.horizons:
                raise ConfigInvalid(
                    f"The judged books hold none whose move to {horizon} books is known; give "
                    "files of that time, a longer span, or fewer folds."
                )
        return forecasts

    def judge(self, data: BookDataset, *, bars: int | None = None) -> Judgement:
        """Return its forecasts of the untouched books, and their figures."""
        del bars
        table = self.answers(data, Part.TEST)
        figures = {str(at): figures_of(rows) for at, rows in table.by_horizon()}
        return Judgement(table, figures, sentences_of(figures))

    def calibrated(self, data: BookDataset, *, bars: int | None = None) -> Self:
        """Return it as it is: its probabilities are not scaled."""
        del data, bars
        return self

    def evaluated(self, data: BookDataset, *, bars: int | None = None) -> Self:
        """Return it with its figures on untouched books, or with why there are none."""
        del bars
        result, sentences = self, data.untrained()
        trained = not sentences
        if trained:
            result = self.with_card(split={"untouched_from": iso(data.untouched_ms)}).for_fold(data)
            judged = result.judge(data)
            result, sentences = result.with_card(figures=judged.figures), judged.sentences
        sentences += [self.stopped] if self.stopped else []
        model = {**self.card["model"], "trained": trained}
        return result.with_card(model=model, honesty={"sentences": sentences})

    def save(self, folder: Path, data: BookDataset) -> Checkpoint:
        """Write the checkpoint into *folder*; return it."""
        del data
        return save(folder, self.tensors, self.card)


def network_of(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OrderBookNetwork:
    """Return the network of a card with these weights; raise ``CheckpointMismatch``."""
    if (kind := card["model"].get("kind")) != KIND:
        raise CheckpointMismatch(f"It is a model of the kind {shown(kind)}, not {KIND}.")
    network = OrderBookNetwork(OrderBookConfig.read(card["architecture"]))
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointMismatch(
            f"The weights do not fit their architecture ({reason:.200}); restore the checkpoint."
        ) from None
    return network.eval()


def is_of_books(folder: Path) -> bool:
    """Return whether *folder* holds a checkpoint of order books."""
    try:
        kind = known_kind(read_card(folder))
    except CheckpointMismatch:
        return False
    return kind is not None and kind.source is DataSource.ORDER_BOOKS


def load_books(folder: Path) -> tuple[OrderBookNetwork, dict[str, Any]]:
    """Return the network in *folder* and its card; raise ``CheckpointMismatch`` for others."""
    checkpoint = load(folder)
    card = checkpoint.card
    if (kind := card["model"].get("kind")) != KIND:
        raise CheckpointMismatch(
            f"{folder} holds a model of the kind {shown(kind)}, not {KIND}; name one that "
            f"`tracepaper train --set model.kind={KIND}` wrote."
        )
    return network_of(card, checkpoint.tensors), card


def check_fits(header: DepthHeader, card: Mapping[str, Any], path: Path) -> None:
    """Raise ``DataInvalid`` unless the books of *path* are such as *card*'s model has learnt."""
    market, levels = card["market"], card["architecture"]["levels"]
    wanted = f"{market['category']}:{market['symbols'][0]}"
    if header.instrument != wanted:
        raise DataInvalid(
            f"{path} holds books of {header.instrument}, and the model was fitted on {wanted}; "
            "name a file of that."
        )
    if header.every_ms != market["every_ms"] or header.levels < levels:
        raise DataInvalid(
            f"{path} holds {header.levels} levels each {header.every_ms:,} ms, and the model reads "
            f"{levels} each {market['every_ms']:,} ms; record so, or train on this file."
        )


# --- the fit


def fit_network(
    training: list[Books],
    validation: list[Books],
    config: OrderBookConfig,
    options: BookFitOptions,
    run: FitRun | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[OrderBookNetwork, str]:
    """Return a network fitted on windows of *training*, the best of its looks at *validation*.

    Every book of a window is a sample. The same options give the same network on one machine.
    Beside it why it stopped before its time, in words; else an empty text. *run* keeps its state,
    and *about* says what it is fitted to.
    """
    torch.manual_seed(options.seed)
    network = OrderBookNetwork(config)
    learnt = _Moves(network, training, validation, options)
    policy = _policy(network, options)
    running = Fit(learnt, policy, folder=run and run.folder, about=about)
    if run is None:
        running.run(lambda _: None)
    else:
        run.complete(running)
    network.load_state_dict(running.best)
    return network.eval(), running.progress.stopped


def _policy(network: OrderBookNetwork, options: BookFitOptions) -> Policy:
    """Return how a fit of books goes: all decay, and none is averaged."""
    steps = options.steps
    warm = max(1, int(WARMUP * steps))

    def rate(step: int) -> float:
        share = min((step + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * step / steps))
        return options.learning_rate * float(share)

    return Policy(
        steps,
        [{"params": list(network.parameters()), "weight_decay": WEIGHT_DECAY}],
        rate,
        clip=CLIP,
        validate_every=max(1, steps // VALIDATIONS),
        accumulate=options.windows,
        keeps_later=True,
    )


class _Moves(MeanLoss[Books]):
    """What a network of order books learns: the next moves of the mid, at every book."""

    def __init__(
        self,
        network: OrderBookNetwork,
        training: list[Books],
        validation: list[Books],
        options: BookFitOptions,
    ) -> None:
        super().__init__(network, seed=options.seed, accumulate=options.windows)
        self._config, least = network.config, network.config.horizons[0]
        self._known = [books for books in training if len(books) > least]
        self._looks = [books for books in validation if len(books) > least]

    def drawn(self, generator: np.random.Generator) -> Books:
        """Return a window of some stretch that is drawn by its length."""
        config = self._config
        lengths = np.array([len(books) for books in self._known])
        books = self._known[generator.choice(len(lengths), p=lengths / lengths.sum())]
        # Its labels are those of the stretch, so a window may end where the stretch does.
        span = min(len(books), config.window + config.horizons[-1])
        start = int(generator.integers(0, len(books) - span + 1))
        return books.part(start, start + span)

    def judged(self) -> Iterator[Books]:
        """Yield windows spread evenly over the stretches."""
        config = self._config
        windows = [
            books.part(start, start + config.window + config.horizons[-1])
            for books in self._looks
            for start in range(0, len(books) - config.horizons[0], config.window)
        ]
        yield from windows[:: max(1, len(windows) // VALIDATED_WINDOWS)]

    def bars(self, batch: Books) -> int:
        """Return the books of a window."""
        return min(len(batch), self._config.window)

    def loss(self, network: OrderBookNetwork, batch: Books) -> Tensor:
        """Return the mean cross-entropy over its books and the horizons that they know."""
        config = self._config
        labels = labels_of(batch, config.horizons)[: config.window]
        tokens = tokens_of(batch.part(0, config.window))
        logits = network(torch.from_numpy(tokens)[None])[0]
        wanted = torch.from_numpy(labels).flatten()
        return cross_entropy(logits.flatten(0, 1), wanted, ignore_index=UNKNOWN)


# --- what it is worth


def frequencies_of(training: Sequence[Books], horizons: Sequence[int]) -> dict[str, list[float]]:
    """Return how often the mid went down, nowhere and up in *training*, by horizon."""
    frequencies: dict[str, list[float]] = {}
    for horizon in horizons:
        counts = np.full(len(MOVES), SMOOTHED)
        for books in training:
            labels = labels_of(books, (horizon,))[:, 0]
            counts += np.bincount(labels[labels != UNKNOWN], minlength=len(MOVES))
        frequencies[str(horizon)] = (counts / counts.sum()).tolist()
    return frequencies


def book_forecasts(
    network: OrderBookNetwork,
    stretches: Sequence[Books],
    frequencies: Mapping[str, Sequence[float]],
) -> Forecasts:
    """Return the forecasts of *network* at the books of *stretches* whose move is known.

    Beside them stand the moves' frequencies in the training part, and the last move.
    """
    every_ms = min(
        (int(np.diff(books.seen_ms).min()) for books in stretches if len(books) > 1), default=1
    )
    logs = [answers(network, books) for books in stretches]
    parts = []
    for column, horizon in enumerate(network.config.horizons):
        usual = np.log(np.array(frequencies[str(horizon)]))
        parts += [
            _of_stretch(books, log[:, column], horizon, every_ms, usual)
            for books, log in zip(stretches, logs, strict=True)
        ]
    return concatenated(parts)


@torch.no_grad()
def answers(network: OrderBookNetwork, books: Books) -> Floats:
    """Return log probabilities [book, horizon, move]; each from half a window or more, if it can.

    Windows overlap by half; a book is answered by the first that shows so much before it.
    """
    window = network.config.window
    half = max(1, window // 2)
    parts: list[Floats] = []
    for start in range(0, max(1, len(books) - half), half):
        logits = network(torch.from_numpy(tokens_of(books.part(start, start + window)))[None])[0]
        log = logits.log_softmax(dim=-1).numpy().astype(np.float64)
        parts.append(log if start == 0 else log[window - half :])
    return np.concatenate(parts)


def _of_stretch(books: Books, log: Floats, horizon: int, every_ms: int, usual: Floats) -> Forecasts:
    """Return the rows of those *books* whose move is known; *usual* are log frequencies."""
    moves = labels_of(books, (horizon,))[:, 0]
    past = np.ones_like(moves)  # flat, where no move before is known
    if horizon < len(books):
        past[horizon:] = moves[:-horizon]
    labelled = moves != UNKNOWN
    count, seen_ms = int(labelled.sum()), books.seen_ms[labelled]
    return Forecasts(
        np.zeros(count, dtype=np.int64),
        seen_ms,
        seen_ms + horizon * every_ms,
        np.full(count, horizon),
        every_ms,
        {"move": moves[labelled]},
        {
            MODEL: {"log_probability": log[labelled], "move": log[labelled].argmax(axis=1)},
            "frequencies": {"log_probability": np.tile(usual, (count, 1))},
            "most frequent": {"move": np.full(count, usual.argmax())},
            "last move": {"move": past[labelled]},
        },
    )


def figures_of(rows: Forecasts) -> dict[str, Any]:
    """Return the means over all books, and the difference of the losses with its error by day."""
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
    """Return what an honest reader must know, in words that follow from the figures."""
    lines = [NOTICE]
    for horizon, section in figures.items():
        verdict = "better" if section["is_better"] else "not credibly better"
        few = "; so few days tell nothing" if section["days"] < BOOK_DAYS else ""
        lines.append(
            f"At {horizon} books its log loss on {section['days']} untouched days is {verdict} "
            f"than that of the moves' frequencies ({section['log_loss']:.4f} against "
            f"{section['log_loss_of_frequencies']:.4f}, "
            f"{plus_minus(section['error'], '.4f')} by days{few})."
        )
    if not any(section["is_better"] for section in figures.values()):
        lines.append("experimental: it has beaten nothing at any horizon.")
    return lines


def load_model(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OrderBookModel:
    """Return the network of a checkpoint; raise ``CheckpointMismatch`` for one that is not."""
    network_of(card, tensors)
    return OrderBookModel(card, tensors)


register(
    Kind(
        ORDER_BOOK,
        OrderBookConfig,
        BookFitOptions,
        read,
        read_of,
        fit,
        load_model,
        listed=asdict,
        suits=suits,
        shared=(),
        fixed={"features": FEATURES},
    )
)
